"""DICOM series are one volume of known geometry, or refused: files of a slice, files of frames."""

import struct
from pathlib import Path

import numpy as np
import pytest

from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_volume

LONG = ("OB", "OW", "SQ", "UT")
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
FLAT = (1, 0, 0, 0, 1, 0)
SHAPE = (4, 5)  # rows, columns


class Writer:
    """Elements of a data set in an explicit or implicit transfer syntax."""

    def __init__(self, syntax: str, undefined_lengths: bool = False):
        self.syntax, self.undefined_lengths = syntax, undefined_lengths

    def element(self, tag: int, kind: str, value) -> bytes:
        if isinstance(value, tuple):
            value = "\\".join(f"{number:g}" for number in value)
        if isinstance(value, int):
            value = struct.pack("<H", value)
        raw = value.encode() if isinstance(value, str) else value
        raw += b"\0 "[kind in ("DS", "CS", "LO") :][:1] if len(raw) % 2 else b""
        return self._header(tag, kind, len(raw)) + raw

    def sequence(self, tag: int, *items: bytes) -> bytes:
        if self.undefined_lengths:
            end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
            content = b"".join(self._item(0xFFFFFFFF) + item + end for item in items)
            ending = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
            return self._header(tag, "SQ", 0xFFFFFFFF) + content + ending
        content = b"".join(self._item(len(item)) + item for item in items)
        return self._header(tag, "SQ", len(content)) + content

    def _item(self, length: int) -> bytes:
        return struct.pack("<HHI", 0xFFFE, 0xE000, length)

    def _header(self, tag: int, kind: str, length: int) -> bytes:
        start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if self.syntax == IMPLICIT and tag >> 16 > 2:
            return start + struct.pack("<I", length)
        if kind in LONG:
            return start + kind.encode() + struct.pack("<HI", 0, length)
        return start + kind.encode() + struct.pack("<H", length)

    def file(self, path: Path, uid: str, kind: str, voxels: np.ndarray, elements: dict) -> None:
        """elements: {tag: bytes} besides those of every image."""
        meta = self.element(0x00020002, "UI", kind) + self.element(0x00020003, "UI", uid)
        meta += self.element(0x00020010, "UI", self.syntax)
        every = {
            0x00080016: self.element(0x00080016, "UI", kind),
            0x00080018: self.element(0x00080018, "UI", uid),
            0x00080060: self.element(0x00080060, "CS", "CT"),
            0x0020000D: self.element(0x0020000D, "UI", "1.2"),
            0x0020000E: self.element(0x0020000E, "UI", "1.2.3"),
            0x00280002: self.element(0x00280002, "US", 1),
            0x00280004: self.element(0x00280004, "CS", "MONOCHROME2"),
            0x00280010: self.element(0x00280010, "US", voxels.shape[-2]),
            0x00280011: self.element(0x00280011, "US", voxels.shape[-1]),
            **{t: self.element(t, "US", n) for t, n in ((0x00280100, 16), (0x00280101, 16))},
            **{t: self.element(t, "US", n) for t, n in ((0x00280102, 15), (0x00280103, 0))},
            0x7FE00010: self.element(0x7FE00010, "OW", (voxels + 1024).astype("<u2").tobytes()),
        }
        content = b"".join(raw for _, raw in sorted((every | elements).items()))
        length = self.element(0x00020000, "UL", struct.pack("<I", len(meta)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM" + length + meta + content)


def hu(position) -> np.ndarray:
    """A slice whose HU say where it is."""
    return np.full(SHAPE, round(10 * position[2]))


def write_frames(path, positions, writer=None, orientations=(FLAT,), spacing=(0.6, 0.5)):
    """One file of a frame for each position, with a rescale of 1 and -1024."""
    writer = writer or Writer(EXPLICIT)

    def group(tag, *elements):
        return writer.sequence(tag, b"".join(elements))

    measures = [writer.element(0x00280030, "DS", spacing)] if spacing else []
    rescale = [writer.element(0x00281052, "DS", "-1024"), writer.element(0x00281053, "DS", "1")]
    shared = group(0x00289110, *measures) + group(0x00289145, *rescale)
    turns = [group(0x00209116, writer.element(0x00200037, "DS", turn)) for turn in orientations]
    shared = turns[0] + shared if len(turns) == 1 else shared
    frames = [
        group(0x00209113, writer.element(0x00200032, "DS", tuple(position)))
        + (turns[i] if len(turns) > 1 else b"")
        for i, position in enumerate(positions)
    ]
    elements = {
        0x00280008: writer.element(0x00280008, "IS", str(len(positions))),
        0x00400555: writer.sequence(0x00400555, writer.element(0x00200032, "DS", (9, 9, 9))),
        0x52009229: writer.sequence(0x52009229, shared),
        0x52009230: writer.sequence(0x52009230, *frames),
    }
    writer.file(path, "1.2.3.1", ENHANCED_CT, np.stack([hu(p) for p in positions]), elements)


def write_series(folder, slices, num_acquired=None):
    """A file a slice; slices: of (position, orientation, spacing, rows), None leaves a key out."""
    writer = Writer(EXPLICIT)
    for i, (position, orientation, spacing, rows) in enumerate(slices):
        keys = {0x00200032: position, 0x00200037: orientation, 0x00280030: spacing}
        elements = {t: writer.element(t, "DS", v) for t, v in keys.items() if v is not None}
        elements[0x00281052] = writer.element(0x00281052, "DS", "-1024")
        elements[0x00281053] = writer.element(0x00281053, "DS", "1")
        if num_acquired is not None:
            elements[0x00201002] = writer.element(0x00201002, "IS", str(num_acquired))
        voxels = np.resize(hu(position or (0, 0, i)), (rows, SHAPE[1]))
        writer.file(folder / f"s{i}.dcm", f"1.2.3.{i + 1}", CT, voxels, elements)


def in_frames(folder, positions, **changes):
    write_frames(folder / "e.dcm", positions, **changes)


def in_files(folder, positions, orientations=(FLAT,), spacing=(0.6, 0.5)):
    turns = orientations if len(orientations) > 1 else orientations * len(positions)
    write_series(
        folder, [(p, turn, spacing, SHAPE[0]) for p, turn in zip(positions, turns, strict=True)]
    )


EVEN = [(-10.0, -20.0, 2.0 * k) for k in range(4)]
BOTH = pytest.mark.parametrize("write", [in_frames, in_files])


@BOTH
@pytest.mark.parametrize("tilt", [0.0, 0.5])
def test_slices_lie_where_their_positions_say_in_any_order(tmp_path, write, tilt):
    positions = [(x, y + tilt * z, z) for x, y, z in (EVEN[i] for i in (2, 0, 3, 1))]
    write(tmp_path / "7", positions)
    volume = read_volume(tmp_path / "7")
    assert volume.shape == (5, 4, 4) and np.allclose(volume.spacing[:2], (0.5, 0.6))
    for x, y, z in positions:  # LPS: of the first pixel; the next column is 0.5 mm to the left
        index = volume.to_index((-x - 0.5, -y, z))
        assert np.allclose(index, np.rint(index), atol=1e-4)
        assert volume.array[tuple(np.rint(index).astype(int))] == 10 * z


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("undefined_lengths", [False, True])
def test_frames_are_read_in_every_encoding(tmp_path, syntax, undefined_lengths):
    write_frames(tmp_path / "7" / "e.dcm", EVEN, Writer(syntax, undefined_lengths))
    volume = read_volume(tmp_path / "7")
    assert np.allclose(volume.spacing, (0.5, 0.6, 2)) and volume.array[0, 0, 3] == 60


@BOTH
@pytest.mark.parametrize(
    ("positions", "changes", "message"),
    [
        (EVEN[:2] + [(-10, -20, 9), (-10, -20, 11)], {}, "7.00 mm between .* slices are missing"),
        (EVEN * 2, {}, "2 phases of 4 slices at the same positions"),
        (EVEN + EVEN[:1], {}, "slices of several phases at the same positions"),
        (EVEN, {"orientations": (FLAT,) * 3 + ((0, 1, 0, 1, 0, 0),)}, "of several orientations"),
        (EVEN, {"spacing": None}, "no pixel spacing|0 pixel spacings"),
    ],
)
def test_what_is_no_volume_is_refused_by_what_it_is(tmp_path, write, positions, changes, message):
    write(tmp_path / "7", positions, **changes)
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path / "7")


def test_a_series_of_several_sizes_or_spacings_is_refused(tmp_path):
    slices = [(position, FLAT, (0.6, 0.5), 4) for position in EVEN]
    for name, other, message in (
        ("size", (EVEN[3], FLAT, (0.6, 0.5), 8), "5 x 8 pixels in s3.dcm, 5 x 4 in s0.dcm: one is"),
        (
            "spacing",
            (EVEN[3], FLAT, (0.9, 0.5), 4),
            "several pixel spacings, such as s0.dcm and s3",
        ),
        ("place", (None, FLAT, (0.6, 0.5), 4), "no position in s3.dcm"),
    ):
        write_series(tmp_path / name, [*slices[:3], other])
        with pytest.raises(InputError, match=message):
            read_volume(tmp_path / name)


def test_the_folder_of_one_series_is_its_case(tmp_path):
    in_files(tmp_path / "patient.7", EVEN)
    assert find_cases(tmp_path / "patient.7") == {"patient": tmp_path / "patient.7"}


def test_slices_that_were_acquired_and_are_absent_are_a_warning(tmp_path, caplog):
    for number, folder in ((4, tmp_path / "whole"), (5, tmp_path / "one_less")):
        folder.mkdir()
        slices = [(position, FLAT, (0.6, 0.5), SHAPE[0]) for position in EVEN]
        write_series(folder, slices, number)
        assert read_volume(folder).shape[2] == 4
    (line,) = [record.getMessage() for record in caplog.records]
    assert "one_less: 4 of the 5 slices that were acquired" in line
