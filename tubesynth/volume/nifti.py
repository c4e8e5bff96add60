"""NIfTI bytes to Volume and back: nibabel decodes the header, NumPy the voxels.

Decoded arrays are (X, Y, Z) in RAS+ order (nibabel's closest canonical orientation) with the affine
of that order. It is the header's sform, else its qform, else its voxel sizes (pixdim): the first
that is set and spans a volume. A header whose sform and pixdim give voxels of other sizes is
refused, since half of all programs read the one and half the other; a header whose sform and qform
differ in their place alone is read with a warning. Stored integers without scaling keep their type;
all else is float32.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import warn_once
from tubesynth.runtime.memory import check_fits
from tubesynth.volume.grid import MAX_SHEAR, Volume, shear_of, spacing_of

GZIP = b"\x1f\x8b"  # first bytes of a gzip member
MOST_VOXELS = 2**32  # 512 x 512 x 16384
MOST_SURPLUS = 2**24  # bytes of a file before its voxels, and after
LONGEST_HEADER = 540  # bytes, of NIfTI-2
GZIP_CHUNK = 1 << 20  # bytes
MAX_SIZE_ERROR = 0.02  # of voxel sizes: the sform's against pixdim
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def decode_nifti(raw: bytes, path: Path) -> Volume:
    """The volume in the bytes of a .nii or .nii.gz file; InputError if they are not valid.

    path: the file's name for messages.
    """
    header = _header(raw, path)
    with _refusing(path):
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
        slope, intercept = header.get_slope_inter()
        offset = header.get_data_offset()
    if header["magic"].item()[:2] == b"ni":
        raise InputError(f"{path}: header of a .hdr/.img pair; convert it to one .nii.gz file")
    shape = _three_axes(shape, path)
    if dtype.kind not in "iuf":
        raise InputError(
            f"{path}: voxels of type {dtype} are no CT; convert it to one number a voxel"
        )
    count = math.prod(shape)
    if count > MOST_VOXELS or offset > MOST_SURPLUS:
        raise InputError(
            f"{path}: no readable NIfTI header (shape {shape}, voxels from byte {offset});"
            " convert it again"
        )
    needed = offset + count * dtype.itemsize
    if raw[:2] == GZIP:
        check_fits(2 * needed, path)  # zlib joins what it has unpacked in blocks
    raw = _content(raw, needed + MOST_SURPLUS, path)
    if len(raw) < needed:
        raise InputError(f"{path}: truncated, {len(raw)} of {needed} bytes; copy it again")
    array = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F")
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        # HU = slope * stored + intercept; float32 represents 16-bit integers exactly, not 32-bit
        wide = np.float64 if dtype.itemsize > 2 else np.float32
        with np.errstate(over="ignore", invalid="ignore"):  # read_volume refuses infinite voxels
            array = (array.astype(wide) * wide(slope) + wide(intercept)).astype(np.float32)
    elif dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
    return to_ras(array, _affine_of(header, path))


def stored_affine(path: Path) -> np.ndarray:
    """The affine (4, 4) of a file's array in its stored order, before reorientation to RAS+; reads
    the header alone.
    """
    with open(path, "rb") as stream:
        header = _header(stream.read(2**16), path)
    return _affine_of(header, path)


def with_axes_of(volume: Volume, path: Path) -> Volume:
    """The volume with the axes' order and directions of a NIfTI file; unchanged for other formats.

    The result is for writing only: it is not RAS+.
    """
    import nibabel as nib

    if not path.name.lower().endswith((".nii", ".nii.gz")) or path.is_dir():
        return volume
    stored = nib.io_orientation(stored_affine(path))
    change = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), stored)
    array = nib.orientations.apply_orientation(volume.array, change)
    to_stored = nib.orientations.inv_ornt_aff(change, volume.shape)
    return Volume(array, volume.affine @ to_stored)


def _header(raw: bytes, path: Path):
    import nibabel as nib

    raw = _content(raw, None, path)
    if raw.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a pointer of Git LFS, not the volume; run git lfs pull")
    if len(raw) < 348:
        raise InputError(f"{path}: {len(raw)} bytes are no NIfTI file; copy or convert it again")
    is_second = 540 in (int.from_bytes(raw[:4], order) for order in ("little", "big"))
    header_type = nib.Nifti2Header if is_second else nib.Nifti1Header
    with _refusing(path):
        header = header_type(raw[: header_type.template_dtype.itemsize], check=False)
        unset = header["pixdim"][1:4] == 0  # check_fix makes them 1
        header.check_fix(logger=_NullLogger(), error_level=40)
    sform = np.asarray(header.get_sform())
    if int(header["sform_code"]) > 0 and np.isfinite(sform).all():
        header["pixdim"][1:4][unset] = spacing_of(sform)[unset]
    return header


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise an InputError for what nibabel raises on invalid fields of a header."""
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        yield
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: no readable NIfTI header ({error}); convert it again") from error


def encode_nifti(volume: Volume, dtype) -> bytes:
    """The bytes of an uncompressed NIfTI-1 file: type `dtype`, sform and qform set, unit mm."""
    import nibabel as nib

    # to_bytes writes x fastest: an array in that memory order is not copied a second time
    image = nib.Nifti1Image(np.asfortranarray(volume.array, dtype=dtype), volume.affine)
    image.header.set_data_dtype(dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code="scanner")
    # a qform has no shear: a program that reads it would show the volume elsewhere
    is_sheared = shear_of(volume.affine) > MAX_SHEAR
    image.set_qform(volume.affine, code="unknown" if is_sheared else "scanner")
    return image.to_bytes()


def gzip_bytes(raw: bytes) -> bytes:
    """Deterministic gzip, without time and file name: equal volumes are equal files."""
    compressor = zlib.compressobj(3, zlib.DEFLATED, 31)
    return compressor.compress(raw) + compressor.flush()


def to_ras(array: np.ndarray, affine: np.ndarray) -> Volume:
    """Axes permuted and flipped to the closest RAS+ order: a view of the array, and its affine."""
    import nibabel as nib

    orientation = nib.io_orientation(affine)
    to_original = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return Volume(nib.apply_orientation(array, orientation), affine @ to_original)


def check_affine(affine: np.ndarray, path: Path) -> np.ndarray:
    """The affine itself; InputError if its axes are not finite, of sane length and independent."""
    if not _is_usable(affine):
        with np.errstate(over="ignore"):
            columns = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
        sizes = "x".join(f"{size:.3g}" for size in columns)
        raise InputError(
            f"{path}: its geometry spans no volume (voxels of {sizes} mm); convert the file again"
        )
    return affine


def _is_usable(affine: np.ndarray) -> bool:
    """Finite, voxels between a micrometer and a meter, axes that are not almost parallel."""
    columns = np.asarray(affine, dtype=np.float64)[:3, :3]
    if not np.isfinite(affine).all():
        return False
    sizes = np.linalg.norm(columns, axis=0)
    if sizes.min() < 1e-3 or sizes.max() > 1e3:
        return False
    return abs(np.linalg.det(columns / sizes)) > 0.1


def _content(raw: bytes, most: int | None, path: Path) -> bytes:
    """The content of a file, of all its gzip members; most None: its first bytes, with the header.

    InputError for a damaged gzip stream, and for one of more than `most` bytes.
    """
    if raw[:2] != GZIP:
        return raw
    contents, room = [], LONGEST_HEADER if most is None else most + 1
    # bgzip writes a member for each 64 KB: what follows a chunk's member is copied at its end.
    view, chunk_size = memoryview(raw), len(raw)
    try:
        while view[:2] == GZIP and room:
            stream = zlib.decompressobj(31)
            while room and not stream.eof:
                if not view:
                    problem = "its gzip stream ends early; copy or download it again"
                    raise InputError(f"{path}: {problem}")
                chunk = view[:chunk_size]
                contents.append(stream.decompress(chunk, room))
                room -= len(contents[-1])
                unread = len(stream.unused_data) + len(stream.unconsumed_tail)
                view = view[len(chunk) - unread :]
            chunk_size = GZIP_CHUNK
        if most is not None and not room:
            raise InputError(
                f"{path}: its gzip stream has more bytes than its header's shape; convert it again"
            )
    except zlib.error as error:
        raise InputError(
            f"{path}: its gzip stream is corrupt ({error}); copy or download it again"
        ) from error
    return contents[0] if len(contents) == 1 else b"".join(contents)


def _three_axes(shape, path: Path) -> tuple[int, int, int]:
    """The stored shape with three axes; InputError if it is empty or has several frames."""
    shape = tuple(int(n) for n in shape)
    if min(shape, default=0) < 1:
        raise InputError(f"{path}: a volume of shape {shape} is empty; convert it again")
    if any(n > 1 for n in shape[3:]):
        raise InputError(
            f"{path}: shape {shape} holds several frames or channels; save one of them as a 3D file"
        )
    x, y, z = (*shape, 1, 1)[:3]
    return x, y, z


def _affine_of(header, path: Path) -> np.ndarray:
    """(4, 4) in mm: the first usable one of sform, qform and voxel sizes.

    InputError where the sform's voxels have other sizes than pixdim; a warning where neither form
    is set, where one that is set is unusable, or where the two differ in their place.
    """
    forms = _forms(header)
    usable = {name: affine for name, affine in forms.items() if _is_usable(affine)}
    if not usable:
        return check_affine(forms["pixdim"], path)
    if list(forms) == ["pixdim"]:
        warn_once(
            f"{path}: the header does not say where its axes point (sform and qform codes 0); left"
            " and right are a guess, convert it from DICOM again"
        )
    name, affine = next(iter(usable.items()))
    if ignored := [form for form in forms if form not in usable and form != "pixdim"]:
        warn_once(
            f"{path}: its {' and '.join(ignored)} spans no volume, so that its {name} counts; check"
            " where its axes point, or convert it again"
        )
    if name == "sform":
        _check_sform(header, usable, path)
    return affine


def _forms(header) -> dict[str, np.ndarray]:
    """{sform, qform, pixdim: affine (4, 4) in mm}, in this order; only those that are set."""
    forms = {}
    if int(header["sform_code"]) > 0:
        forms["sform"] = header.get_sform()
    if int(header["qform_code"]) > 0:
        try:
            forms["qform"] = header.get_qform()
        except ValueError:  # an invalid quaternion
            forms["qform"] = np.full((4, 4), np.nan)
    forms["pixdim"] = header.get_base_affine()
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:  # an undefined unit code
        unit = "unknown"
    scale = np.diag([*[_MM_PER_UNIT.get(unit, 1.0)] * 3, 1.0])
    with np.errstate(over="ignore", invalid="ignore"):  # a header may hold any number
        return {name: scale @ affine for name, affine in forms.items()}


def _check_sform(header, usable: dict[str, np.ndarray], path: Path) -> None:
    """InputError for an sform whose voxel sizes are not those of pixdim, a warning for another
    place than that of the qform.
    """
    shape = np.ones(3, dtype=int)
    stored = header.get_data_shape()[:3]
    shape[: len(stored)] = stored
    sform = usable["sform"]
    if "pixdim" in usable:
        along, sizes = spacing_of(sform), spacing_of(usable["pixdim"])
        # of sheared axes some programs store the distance between slices instead
        across = 1 / spacing_of(np.linalg.inv(sform).T)
        error = np.minimum(np.abs(along / sizes - 1), np.abs(across / sizes - 1))
        if (error[shape > 1] > MAX_SIZE_ERROR).any():
            texts = [" x ".join(f"{s:.4g}" for s in numbers) for numbers in (along, sizes)]
            raise InputError(
                f"{path}: voxels of {texts[0]} mm in its sform, but of {texts[1]} mm in its pixdim"
                " (and qform); set the wrong one right, or convert it from DICOM again"
            )
    if "qform" in usable:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1])).reshape(4, -1)
        # corners of qform and sform: (3, 8)
        apart = np.linalg.norm(((usable["qform"] - sform) @ corners)[:3], axis=0).max()
        if apart > spacing_of(sform).max():
            warn_once(
                f"{path}: its sform and its qform place it up to {apart:.1f} mm apart; the sform"
                " counts, but some programs show the other: set the wrong one right"
            )


class _NullLogger:
    """A logger that drops the messages of nibabel's header checks about repaired fields."""

    def log(self, level, message):
        pass
