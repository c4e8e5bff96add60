"""Every format, every kind of broken file, and the one line of the error."""

import gzip
import locale
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from refusals import refusal

from tubesynth.data.layout import find_splits
from tubesynth.runtime import memory
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases, pair_cases
from tubesynth.volume.files import (
    check_dimensions,
    check_labels,
    check_same_grid,
    read_labels,
    read_volume,
    source_files,
    write_volume,
)
from tubesynth.volume.grid import Volume, centered_affine, same_grid

REAL = Path(__file__).parents[2] / "shared" / "real"
SHAPE = (7, 6, 5)


def numbers(shape=SHAPE, dtype=np.int16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path, array, affine=None, header=None):
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine, header)
    image.header.set_data_dtype(array.dtype)
    nib.save(image, path)
    return path


# ---- reading


@pytest.mark.parametrize("dtype", ["i2", "u2", "u1", "i4", "f4", "f8", "i8", ">i2", ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_number_type_and_byte_order_reads_as_stored(tmp_path, dtype, suffix):
    array = numbers(dtype=dtype)
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    volume = read_volume(save(tmp_path / f"1{suffix}", array, header=header))
    assert volume.array.dtype.isnative
    assert volume.array.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))
    assert np.array_equal(volume.array, array)


def test_scl_slope_and_inter_are_applied_as_nibabel_does(tmp_path):
    image = nib.Nifti1Image(numbers().astype(np.float64) * 0.37 - 900, np.eye(4))
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "1.nii.gz")
    expected = nib.load(tmp_path / "1.nii.gz").get_fdata()
    assert np.abs(read_volume(tmp_path / "1.nii.gz").array - expected).max() < 1e-3


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "IPL"])
@pytest.mark.parametrize("oblique", [False, True])
def test_any_orientation_comes_out_as_nibabels_closest_canonical(tmp_path, axes, oblique):
    from scipy.spatial.transform import Rotation

    affine = centered_affine(SHAPE, [0.5, 0.6, 0.9])
    if oblique:
        turn = Rotation.from_euler("xyz", (12, -20, 15), degrees=True).as_matrix()
        affine[:3, :3] = turn @ affine[:3, :3]
    source = nib.Nifti1Image(numbers(), affine)
    turned = source.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
        )
    )
    nib.save(turned, tmp_path / "1.nii.gz")
    volume = read_volume(tmp_path / "1.nii.gz")
    assert np.array_equal(volume.array, numbers())
    assert np.allclose(volume.affine, affine, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nii.gz"])
def test_itk_formats_have_the_world_coordinates_of_the_same_nifti(tmp_path, suffix):
    image = sitk.GetImageFromArray(numbers((5, 6, 7)))
    image.SetSpacing((0.5, 0.6, 0.9))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]).ravel())
    sitk.WriteImage(image, str(tmp_path / f"1{suffix}"))
    volume = read_volume(tmp_path / f"1{suffix}")
    lps = np.array(image.TransformIndexToPhysicalPoint((2, 3, 4)))
    index = np.rint(volume.to_index(lps * [-1, -1, 1])).astype(int)
    assert volume.array[tuple(index)] == image.GetPixel(2, 3, 4)
    assert np.allclose(sorted(volume.spacing), [0.5, 0.6, 0.9], atol=1e-6)
    assert np.allclose(volume.to_world(index), lps * [-1, -1, 1], atol=1e-5)


def test_threads_that_read_meta_images_leave_the_standard_error_as_it_was(tmp_path):
    for index in range(8):
        image = sitk.GetImageFromArray(numbers((40, 50, 60)))
        sitk.WriteImage(image, str(tmp_path / f"{index}.mha"))
    before = os.fstat(2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_volume, 4 * sorted(tmp_path.iterdir())))
    assert os.path.samestat(before, os.fstat(2))


def test_labels_stored_with_a_slope_are_rounded_to_whole_numbers(tmp_path):
    labels = np.arange(60).reshape(3, 4, 5) % 9
    image = nib.Nifti1Image(labels.astype(np.float32), np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope != 1  # nibabel used the whole range
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz").array, labels)


def test_a_header_of_many_data_files_is_refused(tmp_path):
    (tmp_path / "a.mhd").write_text("NDims = 3\nDimSize = 2 2 2\nElementDataFile = LIST\n")
    with pytest.raises(InputError, match="spread over many files"):
        source_files(tmp_path / "a.mhd")


def write_dicom(folder, positions, series="1.2.3", slope=(1, -1024), tilt=0.0):
    before = locale.setlocale(locale.LC_ALL)
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, z in enumerate(positions):
        image = sitk.GetImageFromArray(np.full((4, 5), 1000 + 10 * z).astype(np.int16))
        image.SetSpacing((0.5, 0.6))
        tags = {
            "0008|0060": "CT",
            "0020|000e": series,
            "0020|000d": "1.2",
            "0008|0018": f"{series}.{i}",
            "0020|0032": f"-10\\{-20 + tilt * z}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(i),
            "0028|1052": str(slope[1]),
            "0028|1053": str(slope[0]),
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series}-{i:03}.dcm"))
        writer.Execute(image)
    # Writing DICOM leaves the process in the C locale, where text is ASCII.
    locale.setlocale(locale.LC_ALL, before)


def test_dicom_folder_reads_in_hu_with_positions_as_spacing_whatever_the_file_order(tmp_path):
    write_dicom(tmp_path / "7", [6, 0, 4, 2])
    volume = read_volume(tmp_path / "7")
    assert volume.shape == (5, 4, 4)
    assert np.allclose(volume.spacing, (0.5, 0.6, 2.0))
    index = np.rint(volume.to_index([10 - 0.5, 20, 4])).astype(int)
    assert volume.array[tuple(index)] == 1000 + 10 * 4
    assert list(find_cases(tmp_path)) == ["7"]


def test_the_affine_of_a_dicom_series_has_its_gantry_tilt(tmp_path):
    write_dicom(tmp_path / "7", [0, 2, 4, 6], tilt=0.25)
    volume = read_volume(tmp_path / "7")
    top = np.rint(volume.to_index([10, 20 - 1.5, 6])).astype(int)
    assert np.allclose(volume.to_world(top), [10, 20 - 1.5, 6], atol=1e-4)


def test_dicom_with_a_missing_slice_or_two_series_is_refused(tmp_path):
    write_dicom(tmp_path / "gap", [0, 2, 6, 8])
    refusal(lambda: read_volume(tmp_path / "gap"), "gap", "4.00 mm", "missing")
    write_dicom(tmp_path / "two", [0, 2])
    write_dicom(tmp_path / "two", [0, 2], series="1.2.9")
    refusal(lambda: read_volume(tmp_path / "two"), "two", "2 DICOM series")
    (tmp_path / "none").mkdir()
    refusal(lambda: read_volume(tmp_path / "none"), "none", "no DICOM")


def test_one_frame_of_four_axes_is_read_and_several_are_refused_by_name(tmp_path):
    single_frame = save(tmp_path / "one.nii.gz", numbers((*SHAPE, 1)))
    assert np.array_equal(read_volume(single_frame).array, numbers())
    two_frames = save(tmp_path / "two.nii.gz", numbers((*SHAPE, 2)))
    refusal(lambda: read_volume(two_frames), two_frames, "several frames")


def test_gz_without_the_ending_and_several_gzip_members_are_read(tmp_path):
    raw = save(tmp_path / "1.nii", numbers()).read_bytes()
    (tmp_path / "2.nii").write_bytes(gzip.compress(raw))
    (tmp_path / "3.nii.gz").write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    members = (gzip.compress(raw[at : at + 50]) for at in range(0, len(raw), 50))
    (tmp_path / "4.nii.gz").write_bytes(b"".join(members))
    for name in ("2.nii", "3.nii.gz", "4.nii.gz"):
        assert np.array_equal(read_volume(tmp_path / name).array, numbers())


def test_without_sform_the_qform_and_without_both_the_voxel_sizes_count(tmp_path):
    image = nib.Nifti1Image(numbers(), None)
    affine = centered_affine(SHAPE, [0.5, 0.6, 0.9])
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "q.nii")
    assert np.allclose(read_volume(tmp_path / "q.nii").affine, affine, atol=1e-6)
    image.set_qform(None, code=0)
    image.header["pixdim"][1:4] = 0.5, 0.6, 0.9
    nib.save(image, tmp_path / "n.nii")
    assert np.allclose(read_volume(tmp_path / "n.nii").spacing, [0.5, 0.6, 0.9], atol=1e-6)


def test_a_singular_sform_falls_back_to_the_qform_and_no_extent_at_all_is_refused(tmp_path):
    affine = centered_affine(SHAPE, [0.5, 0.6, 0.9])
    raw = bytearray(save(tmp_path / "1.nii", numbers(), affine).read_bytes())
    raw[280:328] = struct.pack("<12f", *[0.0] * 12)  # srow_x, srow_y, srow_z
    raw[252:256] = struct.pack("<2h", 1, 2)  # qform_code, sform_code
    (tmp_path / "1.nii").write_bytes(raw)
    expected = nib.Nifti1Header(bytes(raw[:348])).get_qform()
    assert np.allclose(read_volume(tmp_path / "1.nii").affine, expected, atol=1e-6)
    raw[252:256] = struct.pack("<2h", 0, 2)
    raw[80:92] = struct.pack("<3f", 0.5, float("nan"), 0.5)  # pixdim
    (tmp_path / "2.nii").write_bytes(raw)
    refusal(lambda: read_volume(tmp_path / "2.nii"), "2.nii", "geometry")


def two_forms(path, sform, qform, pixdim=None, codes=(1, 1), shape=SHAPE):
    """A file whose header has an sform, a qform and voxel sizes that may contradict each other."""
    image = nib.Nifti1Image(numbers(shape), None)
    image.set_qform(qform, code=codes[1])
    raw = bytearray(image.to_bytes())
    raw[280:328] = struct.pack("<12f", *np.asarray(sform, dtype=float)[:3].ravel())
    raw[252:256] = struct.pack("<2h", codes[1], codes[0])
    if pixdim is not None:
        raw[80:92] = struct.pack("<3f", *pixdim)
    path.write_bytes(raw)
    return path


HALF = np.diag([0.5, 0.5, 0.8, 1.0])
TILTED = HALF @ (np.eye(4) + 0.35 * np.eye(4)[:, [1]] * np.eye(4)[[2]])  # the z axis leans to y
MOVED = HALF + 40 * np.eye(4)[:, [0]] * np.eye(4)[[3]]
NO_NUMBERS = np.full((4, 4), np.nan)


@pytest.mark.parametrize(
    "sform, pixdim",
    [(np.eye(4), None), (HALF, (0.5, 0.5, 1.0)), (1.03 * HALF, None), (HALF, (1, 1, 1))],
    ids=["identity", "slices", "3 %", "no pixdim"],
)
def test_a_header_with_two_voxel_sizes_is_refused_with_both(tmp_path, sform, pixdim):
    path = two_forms(tmp_path / "1.nii", sform, HALF, pixdim)
    refusal(lambda: read_volume(path), path, "mm in its sform", "mm in its pixdim")
    refusal(lambda: read_labels(path), path, "mm in its sform")


@pytest.mark.parametrize(
    "sform, pixdim, shape",
    [
        (HALF, (0.5, 0.5, 0.805), SHAPE),
        (HALF, (0, 0, 0), SHAPE),
        (TILTED, np.linalg.norm(TILTED[:3, :3], axis=0), SHAPE),
        (TILTED, (0.5, 0.5, 0.8), SHAPE),
        (HALF, (0.5, 0.5, 1), (*SHAPE[:2], 1)),
    ],
    ids=["rounded", "pixdim not set", "tilt along z", "tilt across slices", "one slice"],
)
def test_a_header_with_one_voxel_size_is_read_by_its_sform(tmp_path, caplog, sform, pixdim, shape):
    path = two_forms(tmp_path / "1.nii", sform, HALF, pixdim, (1, 0), shape)
    assert np.allclose(read_volume(path).affine, sform, atol=1e-6)
    tilted = sform is TILTED
    assert [("gantry tilt" in line.getMessage()) for line in caplog.records] == [True] * tilted


@pytest.mark.parametrize(
    "sform, codes, word",
    [(MOVED, (1, 1), "40.0 mm apart"), (HALF * [-1, -1, 1, 1], (1, 1), "mm apart")]
    + [(NO_NUMBERS, (2, 1), "so that its qform counts"), (0 * HALF, (2, 0), "its pixdim counts")],
    ids=["moved", "mirrored", "sform of NaN", "sform of zeros"],
)
def test_a_header_of_two_places_is_read_with_one_warning(tmp_path, caplog, sform, codes, word):
    path = two_forms(tmp_path / "1.nii", sform, HALF, codes=codes)
    for _ in range(2):
        read_volume(path)
    (line,) = caplog.records
    assert str(path) in line.getMessage() and word in line.getMessage()


@pytest.mark.parametrize("shear", [0.0, 0.33])
def test_a_sheared_volume_is_written_without_a_qform(tmp_path, shear):
    affine = np.eye(4)
    affine[1, 2] = shear
    write_volume(tmp_path / "1.nii", Volume(numbers(), affine), np.int16)
    header = nib.load(tmp_path / "1.nii").header
    assert int(header["qform_code"]) == (0 if shear else 1)
    assert np.allclose(read_volume(tmp_path / "1.nii").affine, affine, atol=1e-6)


@pytest.mark.parametrize("dim, shape, word", [(3, (8, 9, 1), "a picture"), (2, SHAPE, "one slice")])
def test_a_volume_of_other_dimensions_than_the_job_is_refused(dim, shape, word):
    refusal(
        lambda: check_dimensions(Volume(numbers(shape), np.eye(4)), dim, "a.nii"), "a.nii", word
    )


def test_units_other_than_mm_are_converted(tmp_path):
    image = nib.Nifti1Image(numbers(), np.diag([500, 600, 900, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "1.nii")
    assert np.allclose(read_volume(tmp_path / "1.nii").spacing, [0.5, 0.6, 0.9])


def test_nifti_2_is_read(tmp_path):
    nib.save(nib.Nifti2Image(numbers(), np.eye(4)), tmp_path / "1.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "1.nii.gz").array, numbers())


def test_a_png_is_a_volume_of_one_slice_and_a_round_trip_keeps_it(tmp_path):
    pixels = numbers((8, 6, 1), np.uint8)
    write_volume(tmp_path / "1.png", Volume(pixels, np.eye(4)), np.uint8)
    volume = read_volume(tmp_path / "1.png")
    assert volume.shape == (8, 6, 1) and np.allclose(volume.affine, np.eye(4))
    assert np.array_equal(volume.array, pixels)
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "1.png"))
    assert picture.shape == (6, 8)
    assert picture[0, 3] == pixels[3, -1, 0]  # y up: the top row of the picture is the last


# ---- refusals


def test_a_file_that_may_not_be_read_is_refused_with_its_name(tmp_path, monkeypatch):
    path = save(tmp_path / "9.nii.gz", numbers())

    def forbidden(path, *flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", forbidden)
    refusal(lambda: read_volume(path), path, "Permission denied")


def test_a_folder_that_may_not_be_read_is_refused_with_its_name(tmp_path, monkeypatch):
    """The error is simulated: the tests may run as root, who may read all folders."""

    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    refusal(lambda: find_cases(tmp_path), tmp_path, "Permission denied", "give permission")


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_voxels_that_are_not_finite_are_not_written(tmp_path, dtype):
    array = numbers().astype(np.float32)
    array[1, 2, 3] = np.nan
    path = tmp_path / "1.nii.gz"
    refusal(lambda: write_volume(path, Volume(array, np.eye(4)), dtype), path, "1 of its voxels")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ""])
def test_a_file_that_takes_more_than_the_free_memory_is_refused_unread(
    tmp_path, monkeypatch, suffix
):
    path = tmp_path / f"9{suffix}"
    array = np.zeros((64, 64, 64), np.int16)  # 0.5 MiB, and its copy
    if suffix in (".nii", ".nii.gz"):
        save(path, array)
    elif suffix:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
    else:
        write_dicom(path, np.arange(9.0))
    read_volume(path)
    monkeypatch.setattr(memory, "available_bytes", lambda: 100)
    monkeypatch.setattr(sitk, "ReadImage", None)
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", None)
    refusal(lambda: read_volume(path), path, "GiB of memory", "are available")


def test_nan_in_an_image_is_refused_with_the_count(tmp_path):
    array = numbers(dtype=np.float32)
    array[0, 0, :2] = np.nan, np.inf
    path = save(tmp_path / "1.nii.gz", array)
    refusal(lambda: read_volume(path), path, "2 voxels")


def test_missing_file_and_unknown_format_are_refused(tmp_path):
    refusal(lambda: read_volume(tmp_path / "no.nii.gz"), "no.nii.gz")
    (tmp_path / "1.txt").write_text("x")
    refusal(lambda: read_volume(tmp_path / "1.txt"), "1.txt", "format")


# ---- labels


def test_labels_of_any_number_type_come_out_as_uint8(tmp_path):
    for dtype in (np.float64, np.int32, np.uint8):
        path = save(tmp_path / f"{np.dtype(dtype).name}.nii.gz", (numbers() % 9).astype(dtype))
        labels = read_labels(path)
        assert labels.array.dtype == np.uint8
        assert np.array_equal(labels.array, numbers() % 9)


def test_label_outside_the_class_range_is_refused_with_its_values():
    labels = np.array([0, 8, 9, 12], np.uint8)
    check_labels(labels[:2], 9, "a")
    refusal(
        lambda: check_labels(labels, 9, "a.nii.gz"), "a.nii.gz", "9, 12", "0 to 8", "data.label_map"
    )
    for highest, values in ((16, "9, 10, 11, 12, 13, 14, 15, 16 are"), (17, "15, 16, ... are")):
        refusal(lambda n=highest: check_labels(np.arange(n + 1), 9, "a.nii.gz"), values)


def test_label_on_another_grid_is_refused_with_both_names():
    image = Volume(np.zeros(SHAPE), centered_affine(SHAPE, [1, 1, 1]))
    near = image.affine.copy()
    near[0, 3] += 0.05
    check_same_grid(image, Volume(np.zeros(SHAPE), near), "i", "l")
    far = image.affine.copy()
    far[0, 3] += 1
    refusal(
        lambda: check_same_grid(image, Volume(np.zeros(SHAPE), far), "i.nii", "l.nii"),
        *("i.nii", "l.nii", "resample"),
    )


# ---- pairing of cases


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_cases_pair_by_id_up_to_the_first_dot_in_natural_order(tmp_path):
    images = touch(tmp_path / "images", "10.img.nii.gz", "2.img.nii.gz", "b.nrrd", ".hidden.nii")
    labels = touch(tmp_path / "labels", "b.seg.mha", "10.label.nii", "2.label.nii.gz", "notes.txt")
    cases = pair_cases(images, labels)
    assert [case.id for case in cases] == ["2", "10", "b"]
    assert all(case.label.name.startswith(case.id + ".") for case in cases)


def test_uids_and_names_of_nnu_net_are_paired_and_numbers_of_patients_kept(tmp_path):
    uids = ["1.2.840.113619.7", "1.2.840.113619.10"]
    images = touch(tmp_path / "uid", *(f"{uid}.nii.gz" for uid in uids))
    labels = touch(tmp_path / "uid_labels", *(f"{uid}.label.nii.gz" for uid in uids))
    assert [case.id for case in pair_cases(images, labels)] == uids
    assert list(find_cases(touch(tmp_path / "samples", f"{uids[0]}_s1.img.nii.gz"))) == [
        f"{uids[0]}_s1"
    ]
    images = touch(tmp_path / "imagesTr", "a_1_0000.nii.gz", "a_2_0000.nii.gz")
    labels = touch(tmp_path / "labelsTr", "a_1.nii.gz", "a_2.nii.gz")
    assert [case.id for case in pair_cases(images, labels)] == ["a_1", "a_2"]
    channels = touch(tmp_path / "channels", "a_1_0000.nii.gz", "a_1_0001.nii.gz", "a_2_0000.nii.gz")
    refusal(lambda: pair_cases(channels, labels), "a_1_0000.nii.gz", "without _0000 where all")
    patients = touch(tmp_path / "patients", "p_0000.nii.gz", "p_0001.nii.gz")
    assert [case.id for case in pair_cases(patients, patients)] == ["p_0000", "p_0001"]


def test_the_folders_of_nnu_net_are_found(tmp_path):
    touch(tmp_path / "imagesTr", "a_1_0000.nii.gz", "a_2_0000.nii.gz")
    touch(tmp_path / "labelsTr", "a_1.nii.gz", "a_2.nii.gz")
    (split,) = find_splits(tmp_path)
    assert [(case.id, case.label.name) for case in split.cases] == [
        ("a_1", "a_1.nii.gz"),
        ("a_2", "a_2.nii.gz"),
    ]
    assert not split.problems


def test_unpaired_and_repeated_cases_and_empty_folders_are_refused_by_name(tmp_path):
    images = touch(tmp_path / "images", "1.img.nii.gz", "2.img.nii.gz")
    labels = touch(tmp_path / "labels", "1.label.nii.gz", "3.label.nii.gz")
    missing = f"{labels}: no label map for 1 image (2.img.nii.gz)"
    refusal(lambda: pair_cases(images, labels), missing)
    missing = f"{images}: no image for 1 label map (3.label.nii.gz)"
    refusal(lambda: pair_cases(images, labels), missing, "have one name up to the first dot")
    twice = touch(tmp_path / "twice", "1.img.nii.gz", "1.nrrd")
    refusal(lambda: find_cases(twice), "case 1", "1.nrrd", "1.img.nii.gz")
    refusal(lambda: find_cases(tmp_path / "nowhere"), "nowhere")
    refusal(lambda: find_cases(touch(tmp_path / "empty", "a.txt")), "empty", "no volumes")


# ---- volumes by themselves


def test_a_volume_shows_its_grid_and_type_and_not_its_voxels():
    volume = Volume(np.zeros((30, 20, 10), np.int16), centered_affine((30, 20, 10), (1, 1, 2)))
    text = "Volume(30x20x10 voxels of 1x1x2 mm from (-14.5, -9.5, -9.0) mm, int16)"
    assert repr(volume) == text


def test_a_volume_is_saved_and_read_back_with_its_type_and_affine(tmp_path):
    volume = Volume(numbers(dtype=np.uint8) % 9, centered_affine(SHAPE, (0.7, 0.7, 1.05)))
    volume.save(tmp_path / "1.nii.gz")
    back = Volume.from_file(tmp_path / "1.nii.gz", labels=True)
    assert back.array.dtype == np.uint8 and np.array_equal(back.array, volume.array)
    assert np.allclose(back.affine, volume.affine, atol=1e-5)
    Volume(volume.array + 0.4, volume.affine).save(tmp_path / "2.nii", dtype=np.int16)
    back = Volume.from_file(str(tmp_path / "2.nii"))
    assert back.array.dtype == np.int16 and np.array_equal(back.array, volume.array)


# ---- writing


def test_written_nifti_reads_back_as_int16_hu_with_both_forms_and_equal_bytes(tmp_path):
    affine = centered_affine(SHAPE, [0.7, 0.7, 1.05])
    volume = Volume(numbers(dtype=np.float32) - 1000.4, affine)
    for name in ("1.img.nii.gz", "2.img.nii.gz"):
        write_volume(tmp_path / name, volume, np.int16)
    back = nib.load(tmp_path / "1.img.nii.gz")
    assert back.get_data_dtype() == np.int16
    assert back.header["sform_code"] > 0 and back.header["qform_code"] > 0
    assert back.header.get_xyzt_units()[0] == "mm"
    assert np.array_equal(np.asanyarray(back.dataobj), numbers() - 1000)
    assert np.allclose(back.affine, affine, atol=1e-6) and np.allclose(
        back.get_qform(), affine, atol=1e-4
    )
    assert same_grid(read_volume(tmp_path / "1.img.nii.gz"), volume)
    first, second = (tmp_path / f"{i}.img.nii.gz" for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_values_beyond_the_type_are_clipped_not_wrapped(tmp_path):
    volume = Volume(np.array([[[-1e6, 1e6]]]), np.eye(4))
    write_volume(tmp_path / "1.nii", volume, np.int16)
    assert read_volume(tmp_path / "1.nii").array.tolist() == [[[-32768, 32767]]]


def test_a_full_disk_is_an_input_error_and_leaves_no_file(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    volume = Volume(numbers(), np.eye(4))
    path = tmp_path / "out" / "1.nii.gz"
    refusal(lambda: write_volume(path, volume, np.int16), path, "No space left", "free space")
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="no real CT beside the repository")
@pytest.mark.parametrize("case", ["heart", "aorta", "abdomen", "lumbar"])
def test_real_ct_reads_as_nibabels_canonical(case):
    path = REAL / "images" / f"{case}.img.nii.gz"
    expected = nib.as_closest_canonical(nib.load(path))
    volume = read_volume(path)
    assert np.array_equal(volume.array, np.asanyarray(expected.dataobj))
    assert np.allclose(volume.affine, expected.affine)
