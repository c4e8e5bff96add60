"""The coronaries of a label map, precomputed once for all images of a case on one grid.

`Condition` holds the masks, skeleton, Betti numbers and tokens of the label map's vessels in a box
around heart and vessels. `vessel_scores` segments the vessels of a CT by its intensities alone
(segmentation.py) and compares the two.
"""

from dataclasses import dataclass, replace

import numpy as np

from tubesynth.metrics.frangi import against_shell, shell_of, vesselness
from tubesynth.metrics.overlap import dice, line_scores, radius_errors, skeleton_of
from tubesynth.metrics.segmentation import Region, find_vessels, search_region
from tubesynth.metrics.topology import betti_errors, betti_numbers
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.grid import Box, Volume
from tubesynth.volume.polyline import point_tree
from tubesynth.volume.vessels import VesselTokens, extract_tokens


@dataclass(frozen=True)
class Condition:
    """The vessels of one label map; masks are of the box, indices count from its corner."""

    tokens: VesselTokens  # relative to the center of the label map
    box: Box
    vessel: np.ndarray  # bool
    shell: np.ndarray  # bool, see frangi.shell_of
    spacing: np.ndarray
    affine: np.ndarray
    line: np.ndarray  # (N, 3) voxel indices of the skeleton
    line_radius_mm: np.ndarray  # (N,) of the nearest token
    box_tokens: VesselTokens  # relative to the center of the box
    betti: tuple[int, int, int]
    region: Region | None  # None without heart or aorta: vessels are not searched for in the CT


def tokens_of(label: Volume, classes: LabelScheme) -> VesselTokens:
    """The tokens of the label map's vessels, rooted at its aorta."""
    aorta = None if classes.aorta is None else label.array == classes.aorta
    return extract_tokens(label.array == classes.vessel, label.affine, root_mask=aorta)


def condition_of(
    label: Volume, classes: LabelScheme, tokens: VesselTokens | None = None
) -> Condition | None:
    """The condition of a label map, None where it has no vessels.

    tokens: those of the label map or its user centreline; by default they are extracted.
    """
    spacing = label.spacing
    mask = label.array == classes.vessel
    vessel_box, shell = shell_of(mask, spacing)
    if vessel_box is None or shell is None:
        return None
    region = region_of(label, classes, include=vessel_box)
    box = vessel_box if region is None else region.box
    vessel = mask[box]
    # the shell, of vessel_box, in the larger box
    starts = [inner.start - s.start for inner, s in zip(vessel_box, box, strict=True)]
    box_shell = np.zeros_like(vessel)
    box_shell[tuple(slice(i, i + n) for i, n in zip(starts, shell.shape, strict=True))] = shell
    # tokens in mm relative to the center of the box; centers in voxels are (n - 1) / 2
    tokens = tokens_of(label, classes) if tokens is None else tokens
    box_center = (np.array(vessel.shape) - 1) / 2
    corner = np.array([s.start for s in box])
    shift_mm = ((np.array(label.shape) - 1) / 2 - corner - box_center) * spacing
    box_position_mm = np.asarray(tokens.position_mm) + shift_mm
    line = skeleton_of(vessel, spacing)
    radius_mm = np.full(len(line), spacing.min() / 2)
    if len(tokens) and len(line):
        _, nearest = point_tree(box_position_mm).query((line - box_center) * spacing)
        radius_mm = np.asarray(tokens.radius_mm)[nearest]
    return Condition(
        tokens=tokens,
        box=box,
        vessel=vessel,
        shell=box_shell,
        spacing=spacing,
        affine=label.affine,
        line=line,
        line_radius_mm=radius_mm,
        box_tokens=replace(tokens, position_mm=box_position_mm),
        betti=betti_numbers(vessel),
        region=region,
    )


def region_of(label: Volume, classes: LabelScheme, include: Box | None = None) -> Region | None:
    """Where vessels are searched for in a CT of this label map; None without heart or aorta."""
    if classes.aorta is None:
        return None
    heart, aorta = np.isin(label.array, classes.heart), label.array == classes.aorta
    return search_region(heart, aorta, label.spacing, include)


def vessel_scores(ct: np.ndarray, condition: Condition) -> dict[str, float]:
    """Scores of a CT (X, Y, Z) in HU on the label map's grid.

    The scores of vesselness (frangi.against_shell) are always computed. With heart and aorta in the
    label map, the vessels are segmented in the CT and add dice, cldice, centreline_recall and
    _precision, betti0_error, betti1_error, radius_error_mm, radius_bias_mm and radius_ratio.
    """
    hu, vessel, shell = ct[condition.box], condition.vessel, condition.shell
    if condition.region is None:
        where = vessel | shell
        response = vesselness(hu, condition.spacing, where=where)
        return against_shell(response[vessel[where]], response[shell[where]])
    segmented, response = find_vessels(hu, condition.region, vessel | shell)
    return {**mask_scores(segmented, condition), **against_shell(response[vessel], response[shell])}


def mask_scores(segmented: np.ndarray, condition: Condition) -> dict[str, float]:
    """Scores of the vessels segmented in a CT: a bool mask of the condition's box."""
    vessel, spacing = condition.vessel, condition.spacing
    line = skeleton_of(segmented, spacing)
    return {
        "dice": dice(segmented, vessel),
        **line_scores(segmented, line, vessel, condition.line, spacing, condition.line_radius_mm),
        **betti_errors(betti_numbers(segmented), condition.betti),
        **radius_errors(extract_tokens(segmented, condition.affine), condition.box_tokens),
    }
