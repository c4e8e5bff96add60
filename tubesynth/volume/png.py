"""PNG pictures as volumes of one slice: x along the columns, y upwards, pixels of 1 mm.

A written picture has its affine in a text chunk, which other programs ignore: a picture that was
resized or cropped then has its true place and pixel size when it is read again.
"""

import io
import json
from pathlib import Path

import numpy as np

from tubesynth.runtime.errors import InputError
from tubesynth.volume.grid import Volume

AFFINE = "tubesynth affine"  # the key of the text chunk, a list of four rows in JSON


def decode_png(path: Path) -> Volume:
    """The gray values of a picture, (X, Y, 1)."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)  # (rows, columns[, channels]); a palette gives its indices
            stored_affine = picture.info.get(AFFINE)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not readable ({error}); save the picture again") from error
    if pixels.ndim == 3:
        channels = pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]  # without alpha
        if (channels != channels[:, :, :1]).any():
            raise InputError(f"{path}: a color picture; save it with one gray value per pixel")
        pixels = channels[:, :, 0]
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    affine = np.eye(4) if stored_affine is None else _affine(stored_affine, path)
    # (rows from the top, columns) -> (x, y upwards, 1)
    return Volume(pixels[::-1].T[:, :, None], affine)


def encode_png(volume: Volume, dtype, path: Path) -> bytes:
    """A grayscale PNG of the one slice, y upwards; path: of an error."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if volume.shape[2] != 1 or dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path}: a .png holds one slice of 8 or 16 bits, not {volume.shape} of {dtype};"
            " write .nii.gz"
        )
    text = PngInfo()
    if not np.array_equal(volume.affine, np.eye(4)):
        text.add_text(AFFINE, json.dumps(volume.affine.tolist()))
    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(volume.array[:, :, 0].T[::-1]))
    picture.save(stream, "png", pnginfo=text)
    return stream.getvalue()


def _affine(text: str, path: Path) -> np.ndarray:
    try:
        affine = np.array(json.loads(text), dtype=np.float64)
        is_valid = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
        is_valid = is_valid and abs(np.linalg.det(affine)) > 1e-9
    except (ValueError, TypeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise InputError(f"{path}: its text '{AFFINE}' is no affine; save the picture without it")
    return affine
