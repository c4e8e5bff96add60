"""Files to Volumes and back: CT formats are read, NIfTI and PNG are written, label maps checked.

Every reader gives (X, Y, Z) in RAS+ order with its affine. Two-dimensional pictures (PNG) are
volumes of shape (X, Y, 1). The arrays may be read-only views of the file's bytes. nifti.py decodes
NIfTI, png.py PNG, itk.py the formats of SimpleITK.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tubesynth.runtime.atomic import replacing
from tubesynth.runtime.errors import InputError, SettingError
from tubesynth.runtime.log import logger, warn_once
from tubesynth.runtime.memory import check_fits
from tubesynth.runtime.reading import no_such, read_bytes
from tubesynth.volume.classes import count_classes, translate
from tubesynth.volume.grid import Volume, grid_text, same_grid, shear_of

MOST_BYTES = 2**36  # of a file
MOST_LABEL = 2**16 - 1
# Of values that are no classes. With a further class for each, vessels would be in several classes.
LABEL_REMEDY = (
    "give each value's class in data.label_map (synthesize, reconstruct: --label-map); several may"
    " be the vessel class"
)
MAX_TILT_DEG = 30  # larger ones are warned of, as is a larger cosine between two axes:
TILTED_GANTRY = 0.01
SLOPE_ERROR = 0.02  # a stored 7 times its header's slope may be 6.997
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".png")


def read_volume(path) -> Volume:
    """The image in a file or a DICOM folder: stored integers or float32, all finite."""
    volume = _read(Path(path))
    _warn_of_axes(volume, path)
    num_bad = _count_not_finite(volume.array)
    if num_bad:
        raise InputError(
            f"{path}: {num_bad} voxels are not finite; replace them, for example by -1024 HU"
        )
    return volume


def read_labels(path, label_map: Mapping[int, int] | None = None) -> Volume:
    """The label map in a file as uint8 class indices; the file may store any type of number.

    label_map: {stored value: class} of a file of another scheme; all other values become 0.
    """
    return as_classes(read_label_values(path), label_map, path)


def as_classes(values: Volume, label_map: Mapping[int, int] | None, path) -> Volume:
    """The result of read_label_values as class indices, as read_labels gives them."""
    array = values.array
    if label_map is None:
        if array.dtype != np.uint8:
            raise SettingError(f"{path}: label value {array.max()} is above 255; {LABEL_REMEDY}")
        return values
    classes = translate(array, label_map)
    counts = count_classes(array)
    unlisted = [value for value in counts if value > 0 and value not in label_map]
    if unlisted and not classes.any():
        logger.warning(
            f"{path}: all background: data.label_map has no class for its values"
            f" ({_listed(unlisted)}); add them, or leave it out if the values are classes"
        )
    elif unlisted:
        volumes = [f"{v} ({counts[v] * values.voxel_ml:.3g} ml)" for v in unlisted]
        warn_once(
            f"values that data.label_map does not list become background: {_listed(volumes)} in"
            f" {path}",
            key=f"unlisted {unlisted}",
        )
    return Volume(classes, values.affine)


def read_label_values(path) -> Volume:
    """The stored values of a label map, whole numbers from 0: uint8, or uint16 if they need it."""
    volume = _read(Path(path))
    _warn_of_axes(volume, path)
    array = volume.array
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= MOST_LABEL):  # also false for NaN
        raise InputError(
            f"{path}: label values from {low} to {high}, not 0 to {MOST_LABEL}; give a label map"
        )
    whole = np.rint(array) if array.dtype.kind == "f" else array
    if whole is not array:
        fractions = array[np.abs(whole - array) > SLOPE_ERROR]
        if len(fractions):
            raise InputError(
                f"{path}: label value {fractions[0]} is no whole number; resample label maps to the"
                " nearest voxel"
            )
    dtype = np.uint8 if high <= 255 else np.uint16
    return Volume(whole.astype(dtype, copy=False), volume.affine)


def check_labels(
    labels: np.ndarray,
    num_classes: int,
    path,
    remedy: str = LABEL_REMEDY,
) -> None:
    """InputError for label values outside 0 to num_classes - 1; labels: an array of any shape."""
    if labels.size and int(labels.max()) >= num_classes:
        values = np.unique(labels[labels >= num_classes]).tolist()
        raise SettingError(f"{path}: {outside_classes(values, num_classes)}; {remedy}")


def outside_classes(values: list[int], num_classes: int) -> str:
    """What is wrong with label values that are no classes."""
    return f"label values {_listed(values)} are outside the classes 0 to {num_classes - 1}"


def _listed(values: list) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def check_dimensions(volume: Volume, dim: int, path) -> None:
    """InputError for several slices where dim is 2, and for a single one where it is 3."""
    shape = " x ".join(map(str, volume.shape))
    if dim == 2 and volume.shape[2] != 1:
        raise InputError(
            f"{path}: {shape} voxels, but dim 2 takes one slice: use a config of dim 3, or write"
            " slices"
        )
    if dim == 3 and min(volume.shape) == 1:
        raise InputError(
            f"{path}: {shape} voxels are a picture, but dim 3 takes volumes: use a config of dim 2,"
            " or give the whole volume"
        )


def check_same_grid(image: Volume, label: Volume, image_path, label_path) -> None:
    """InputError for a label map that is more than a tenth of a voxel off its image's grid."""
    if same_grid(image, label, tolerance_mm=max(0.01, 0.1 * float(image.spacing.min()))):
        return
    raise InputError(
        f"{label_path}: grid of {grid_text(label)}, but {image_path} has {grid_text(image)}; "
        "resample the label map onto the image's grid"
    )


def write_volume(path, volume: Volume, dtype) -> None:
    """Write NIfTI with the true affine, or .png; the file appears whole or not at all.

    dtype: NumPy type of the stored voxels; for integer types values are rounded and clipped.
    """
    from tubesynth.volume.nifti import encode_nifti, gzip_bytes

    path, dtype, array = Path(path), np.dtype(dtype), volume.array
    num_bad = _count_not_finite(array)
    if num_bad:  # as integers they would look like valid voxels
        raise InputError(
            f"{path}: not written, {num_bad} of its voxels are not finite; check the model or the"
            " program that made them"
        )
    if dtype.kind in "iu" and array.dtype != dtype:
        bounds = np.iinfo(dtype)
        array = np.rint(array).clip(bounds.min, bounds.max).astype(dtype)
    volume = Volume(array, volume.affine)
    suffix = file_suffix(path)
    if suffix == ".png":
        from tubesynth.volume.png import encode_png

        raw = encode_png(volume, dtype, path)
    elif suffix in (".nii", ".nii.gz"):
        raw = encode_nifti(volume, dtype)
        raw = gzip_bytes(raw) if suffix == ".nii.gz" else raw
    else:
        raise InputError(f"{path}: only .nii, .nii.gz and .png are written; change the name")
    with replacing(path) as temporary:
        temporary.write_bytes(raw)


def source_files(path) -> list[Path]:
    """The files that a volume is read from: one, a folder's slices, or a header and its data."""
    path = Path(path)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if file_suffix(path) in (".mhd", ".nhdr"):
        header = path.read_bytes()[:65536].decode("latin-1")
        data_file = re.search(
            r"(?im)^\s*(?:ElementDataFile|data ?file)\s*[=:]\s*(\S.*?)\s*$", header
        )
        if data_file and (data_file[1].upper().startswith("LIST") or "%" in data_file[1]):
            raise InputError(
                f"{path}: its voxels are spread over many files; convert it to one .nii.gz file"
            )
        if data_file and (path.parent / data_file[1]).is_file():
            return [path, path.parent / data_file[1]]
    return [path]


def _warn_of_axes(volume: Volume, path) -> None:
    """A warning for axes that are oblique or sheared, with which results are oblique too."""
    directions = volume.affine[:3, :3] / volume.spacing
    tilt_deg = np.degrees(np.arccos(np.diag(directions).clip(-1, 1).min()))
    if tilt_deg > MAX_TILT_DEG:
        warn_once(
            f"{path}: tilted by {tilt_deg:.0f} degrees against the patient's axes, and a model's"
            " field of view is tilted with it; resample it onto the patient's axes"
        )
    if shear_of(volume.affine) > TILTED_GANTRY:
        warn_once(
            f"{path}: its axes are not at right angles (gantry tilt), a model's grid is; resample"
            " it onto straight axes if its tilt was corrected before"
        )


def _count_not_finite(array: np.ndarray) -> int:
    """The number of values that are NaN or infinite."""
    return 0 if array.dtype.kind != "f" else int((~np.isfinite(array)).sum())


def _read(path: Path) -> Volume:
    """The volume in a file of any format of SUFFIXES, or in a DICOM folder."""
    if path.is_dir():
        from tubesynth.volume.itk import read_dicom_series

        return read_dicom_series(path)
    suffix = file_suffix(path)
    remedy = "check the path, its permissions and its disk"
    if suffix in (".nii", ".nii.gz"):
        from tubesynth.volume.nifti import decode_nifti

        if path.is_file():
            check_fits(path.stat().st_size, path)
        return decode_nifti(read_bytes(path, remedy, MOST_BYTES), path)
    if not path.is_file():
        raise InputError(f"{path}: {no_such(path, 'file')}; {remedy}")
    if suffix == ".png":
        from tubesynth.volume.png import decode_png

        return decode_png(path)
    if suffix in SUFFIXES:
        from tubesynth.volume.itk import read_itk

        source_files(path)  # voxels that are spread over many files are an error
        return read_itk(path)
    raise InputError(
        f"{path}: unknown format, not one of {', '.join(SUFFIXES)} or a DICOM folder; convert it"
    )


def file_suffix(path: Path) -> str:
    """The longest of SUFFIXES that a file's name ends with; '' for none and for folders."""
    name = path.name.lower()
    endings = [s for s in SUFFIXES if name.endswith(s)]
    return max(endings, key=len) if endings and not path.is_dir() else ""


def is_dicom_folder(path: Path) -> bool:
    """Whether a folder has a file with the ending .dcm or with DICM at byte 128."""
    if not path.is_dir():
        return False
    for file in sorted(path.iterdir()):
        if file.is_file():
            with file.open("rb") as stream:
                if file.suffix.lower() == ".dcm" or stream.read(132)[128:] == b"DICM":
                    return True
    return False
