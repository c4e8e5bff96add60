"""Planes of the frames in a DICOM file of several (enhanced CT), which SimpleITK does not read.

They lie in the functional groups (DICOM PS3.3, C.7.6.16), sequences of a data set whose elements
are read one after another: tag, type (in explicit transfer syntaxes), length, value.
"""

import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.runtime.errors import InputError

TRANSFER_SYNTAX = 0x00020010
POSITION, ORIENTATION, SPACING = 0x00200032, 0x00200037, 0x00280030
INTERCEPT, SLOPE = 0x00281052, 0x00281053
WANTED = {TRANSFER_SYNTAX, POSITION, ORIENTATION, SPACING, INTERCEPT, SLOPE}
# Shared and per-frame groups with their sequences of plane positions, orientations, pixel measures
# and value transformations: their items are read, other sequences are passed over.
GROUPS = {0x52009229, 0x52009230, 0x00209113, 0x00209116, 0x00289110, 0x00289145}
ITEM_MARKS = {0xFFFEE000, 0xFFFEE00D}  # begin and end of an item
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
LONG_TYPES = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV"}
IMPLICIT = b"1.2.840.10008.1.2"
UNREAD = {b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"}  # big-endian, deflated
UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Planes:
    """The planes of N slices in LPS. positions (N, 3) mm of the first pixels; orientations (N, 6):
    directions of rows and columns; spacings (N, 2) mm between rows and columns.
    """

    positions: np.ndarray
    orientations: np.ndarray
    spacings: np.ndarray


def frame_planes(path: Path, num_frames: int) -> Planes:
    """The planes of all frames; InputError where the file does not say them."""
    with open(path, "rb") as stream:
        raw = stream.read()
    try:
        values = _values(raw)
        numbers = {
            tag: np.array([text.split(b"\\") for text in texts], dtype=np.float64)
            for tag, texts in values.items()
        }
    except (ValueError, struct.error):
        numbers = {}
    for tag in (INTERCEPT, SLOPE):
        if tag in numbers and np.ptp(numbers[tag]) > 0:
            raise InputError(f"{path}: frames of several rescale values; export one file a slice")
    sizes = ((POSITION, 3), (ORIENTATION, 6), (SPACING, 2))
    for tag, size in sizes:
        rows = numbers.get(tag, np.zeros((0, size)))
        if tag != POSITION and len(rows) == 1:  # shared by all frames
            numbers[tag] = rows = np.repeat(rows, num_frames, axis=0)
        if rows.shape != (num_frames, size):
            name = {POSITION: "positions", ORIENTATION: "orientations", SPACING: "pixel spacings"}
            raise InputError(
                f"{path}: {num_frames} frames with {len(rows)} {name[tag]}: their geometry is not"
                " known; export one file a slice"
            )
    return Planes(*(numbers[tag] for tag, _ in sizes))


def _values(raw: bytes) -> dict[int, list[bytes]]:
    """{tag: its values in the order of the file}, of the top level and of GROUPS."""
    found: dict[int, list[bytes]] = defaultdict(list)
    place, is_explicit = 132, True
    passed_over = 0  # depth of sequences of undefined length that are not in GROUPS
    while place + 8 <= len(raw):
        group, element, length = struct.unpack_from("<HHI", raw, place)
        tag, header = group << 16 | element, 8
        if group > 2 and TRANSFER_SYNTAX in found:
            syntax = found.pop(TRANSFER_SYNTAX)[0].strip(b"\0 ")
            if syntax in UNREAD:
                return {}
            is_explicit = syntax != IMPLICIT
        if tag == PIXEL_DATA and not passed_over:
            break
        if tag in ITEM_MARKS or tag == SEQUENCE_END:
            passed_over -= passed_over > 0 and tag == SEQUENCE_END
            place += header
            continue
        if is_explicit and raw[place + 4 : place + 6] in LONG_TYPES:
            (length,), header = struct.unpack_from("<I", raw, place + 8), 12
        elif is_explicit:  # after two bytes of type
            length >>= 16
        place += header
        if length == UNDEFINED:
            passed_over += passed_over > 0 or tag not in GROUPS
            continue
        if tag in GROUPS and not passed_over:
            continue
        if tag in WANTED and not passed_over:
            found[tag].append(raw[place : place + length])
        place += length
    return found
