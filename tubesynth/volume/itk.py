"""Volumes that SimpleITK reads: NRRD, MetaImage, and a folder with a DICOM series.

SimpleITK's z, y, x order and its LPS frame are converted in this file only.
"""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import warn_once
from tubesynth.runtime.memory import check_fits
from tubesynth.volume.dicom_frames import Planes, frame_planes
from tubesynth.volume.files import file_suffix
from tubesynth.volume.grid import Volume
from tubesynth.volume.nifti import check_affine, to_ras

LONGEST_SIDE = 2**15  # voxels
_STANDARD_ERROR = threading.Lock()
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path) -> Volume:
    """The volume in an .nrrd, .nhdr, .mha or .mhd file; InputError if it is not readable."""
    if file_suffix(path) in (".mha", ".mhd"):
        _check_meta_image(path)
    sitk = _simpleitk()
    try:
        with _without_messages():
            reader = _header(sitk, str(path))
            _check_memory(sitk, reader, 1, path)
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{path}: not readable ({_reason(error)}); copy or convert it again"
        ) from error
    return _to_volume(image, path)


def read_dicom_series(folder: Path) -> Volume:
    """The one DICOM series in a folder, its slices ordered by position.

    A gantry tilt becomes a shear of the affine; InputError for what is no volume (see _slices), or
    for several series.
    """
    sitk = _simpleitk()
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) == 0:
        raise InputError(f"{folder}: holds no DICOM series; give a folder with the slices of one")
    if len(series) > 1:
        raise InputError(
            f"{folder}: holds {len(series)} DICOM series ({', '.join(series)}); give each its"
            " own folder"
        )
    files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    try:
        headers = [_header(sitk, file) for file in files]
        _check_memory(sitk, headers[0], len(files), folder)
        sizes = [header.GetSize()[2] for header in headers]
        if max(sizes) > 1:
            return _read_frames(sitk, files, folder, max(sizes))
        _check_number(headers, folder)
        names = [Path(file).name for file in files]
        order, step = _slices(_header_planes(headers, names, folder), names, folder)
        image = sitk.ReadImage([files[i] for i in order] if len(files) > 1 else files[0])
    except RuntimeError as error:
        raise InputError(f"{folder}: not readable ({_reason(error)}); export it again") from error
    return _to_volume(image, folder, step)


def _read_frames(sitk, files: list[str], folder: Path, num_frames: int) -> Volume:
    """The volume in one file of several frames, which lie in any order."""
    if len(files) > 1:
        raise InputError(
            f"{folder}: {len(files)} files with up to {num_frames} frames; keep the one to read"
        )
    planes = frame_planes(Path(files[0]), num_frames)
    names = [f"frame {i + 1}" for i in range(num_frames)]
    order, step = _slices(planes, names, Path(files[0]))
    frames = sitk.ReadImage(files[0])  # which owns the memory of the view
    image = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(frames)[order])
    x, y = planes.orientations[0].reshape(2, 3)
    image.SetOrigin(planes.positions[order[0]])
    image.SetDirection(np.stack([x, y, np.cross(x, y)], axis=1).ravel())
    image.SetSpacing([*planes.spacings[0, ::-1], 1.0])
    return _to_volume(image, folder, step)


def _check_number(headers: list, folder: Path) -> None:
    """A warning for fewer files than Images in Acquisition (DICOM PS3.3, C.7.6.1) says."""
    tag = "0020|1002"
    numbers = {header.GetMetaData(tag).strip() for header in headers if header.HasMetaDataKey(tag)}
    if len(numbers) == 1 and (number := numbers.pop()).isdecimal() and int(number) > len(headers):
        warn_once(
            f"{folder}: {len(headers)} of the {number} slices that were acquired; export the series"
            " again if it was to be whole"
        )


def _header_planes(headers: list, names: list[str], folder: Path) -> Planes:
    """The planes of a series with a file a slice; InputError where a file does not say its own."""
    tags = {"0028|0030": "pixel spacing", "0020|0032": "position", "0020|0037": "orientation"}
    for header, name in zip(headers, names, strict=True):
        missing = [text for tag, text in tags.items() if not header.HasMetaDataKey(tag)]
        if missing:
            raise InputError(f"{folder}: no {missing[0]} in {name}; export the series again")
        if header.GetSize() != headers[0].GetSize():
            (x, y), (x0, y0) = header.GetSize()[:2], headers[0].GetSize()[:2]
            raise InputError(
                f"{folder}: {x} x {y} pixels in {name}, {x0} x {y0} in {names[0]}: one is a"
                " localizer or of another series; remove it"
            )
    directions = np.array([header.GetDirection() for header in headers]).reshape(-1, 3, 3)
    return Planes(
        np.array([header.GetOrigin()[:3] for header in headers]),
        directions[:, :, :2].transpose(0, 2, 1).reshape(-1, 6),
        np.array([header.GetSpacing()[1::-1] for header in headers]),
    )


def _slices(planes: Planes, names: list[str], path: Path) -> tuple[list[int], np.ndarray | None]:
    """(order of the slices along their normal, (3,) mm in LPS from one to the next).

    InputError for slices that are no volume together: of several orientations, pixel spacings or
    phases, or with gaps. A gantry tilt is a step that is not normal to the slices.
    """
    for values, tolerance, kind in (
        (planes.orientations, 1e-3, "orientations"),
        (planes.spacings, 1e-3, "pixel spacings"),
    ):
        other = np.abs(values - values[0]).max(axis=1) > tolerance
        if other.any():
            raise InputError(
                f"{path}: slices of several {kind}, such as {names[0]} and"
                f" {names[int(other.argmax())]}; export each as a series of its own"
            )
    if len(names) == 1:
        return [0], None
    normal = np.cross(*planes.orientations[0].reshape(2, 3))
    order = np.argsort(planes.positions @ normal, kind="stable")
    positions = planes.positions[order]
    # distances between neighboring slices (N - 1,): all equal to 5 % of their median
    sizes = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    num_places = 1 + int((sizes > 0.01).sum())
    if num_places < len(sizes) + 1:
        phases, rest = divmod(len(names), num_places)
        many = f"{phases} phases of {num_places} slices" if not rest else "slices of several phases"
        raise InputError(
            f"{path}: {many} at the same positions ({len(names)} in all); export one phase alone"
        )
    worst = int(np.abs(sizes - np.median(sizes)).argmax())
    if abs(sizes[worst] - np.median(sizes)) > 0.05 * np.median(sizes) + 0.01:
        pair = f"{names[order[worst]]} and {names[order[worst + 1]]}"
        raise InputError(
            f"{path}: {sizes[worst]:.2f} mm between {pair}, else {np.median(sizes):.2f} mm: "
            "slices are missing or doubled; export the series again"
        )
    return order.tolist(), (positions[-1] - positions[0]) / (len(names) - 1)


def _to_volume(image, path: Path, slice_step: np.ndarray | None = None) -> Volume:
    """A SimpleITK image in RAS+; slice_step: (3,) mm in LPS from one slice to the next."""
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path}: {image.GetNumberOfComponentsPerPixel()} values a voxel; save one channel"
        )
    size = image.GetSize()
    if min(size) < 1:
        raise InputError(f"{path}: a volume of shape {size} is empty; convert it again")
    if any(n > 1 for n in size[3:]):
        raise InputError(
            f"{path}: shape {size} holds several frames; save one of them as a 3D file"
        )
    sitk = _simpleitk()
    dimension = len(size)
    array = sitk.GetArrayFromImage(image).T.reshape((*size, 1, 1)[:3], order="F")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {array.dtype} are no CT; save one number a voxel")
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    # the columns of the LPS affine are direction * spacing; RAS = diag(-1, -1, 1) LPS
    num_axes = min(dimension, 3)
    lps = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(dimension, dimension)
    lps[:num_axes, :num_axes] = (directions * np.array(image.GetSpacing()))[:num_axes, :num_axes]
    lps[:num_axes, 3] = image.GetOrigin()[:num_axes]
    if slice_step is not None:
        lps[:3, 2] = slice_step
    return to_ras(array, check_affine(_LPS_TO_RAS @ lps, path))


def _header(sitk, file: str):
    """SimpleITK's reader of a file, with the header read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _check_memory(sitk, header, num_files: int, path: Path) -> None:
    """InputError where files of this header's size, and NumPy's copy, do not fit in memory."""
    voxel = sitk.Image([1, 1], header.GetPixelID(), header.GetNumberOfComponents())
    itemsize = voxel.GetSizeOfPixelComponent() * header.GetNumberOfComponents()
    check_fits(2 * math.prod(header.GetSize()) * itemsize * num_files, path)


def _check_meta_image(path: Path) -> None:
    """InputError for a header of odd numbers, on which MetaIO overwrites its memory and aborts."""
    with open(path, "rb") as stream:
        header = stream.read(2**14).partition(b"ElementDataFile")[0].decode("latin-1")
    pairs = [line.partition("=") for line in header.splitlines()]
    fields = {key.strip(): value.split() for key, _, value in reversed(pairs)}
    dimensions, sizes = fields.get("NDims", []), fields.get("DimSize", [])
    is_valid = dimensions in (["2"], ["3"], ["4"]) and len(sizes) == int(dimensions[0])
    if not (is_valid and all(n.isdecimal() and 0 < int(n) <= LONGEST_SIDE for n in sizes)):
        raise InputError(
            f"{path}: no readable MetaImage header (NDims {' '.join(dimensions[:9])}, DimSize"
            f" {' '.join(sizes[:9])}); convert it again"
        )


@contextmanager
def _without_messages() -> Iterator[None]:
    """Drop what MetaIO prints beside the error that it raises, straight to the standard error.

    One thread at a time: another would save, and restore, what the first has put there.
    """
    with _STANDARD_ERROR:
        saved = os.dup(2)
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _simpleitk():
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # this file checks what it needs
    return sitk


def _reason(error: RuntimeError) -> str:
    """The last line of ITK's report, which states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "unknown reason"
