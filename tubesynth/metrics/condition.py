"""What a label map asks of the coronaries, worked out once for all images of a case on one grid.

`Condition` holds the masks, skeleton, Betti numbers and tokens of the label map's vessels in a box
around heart and vessels; `vessel_scores` finds the vessels of a CT by its intensities alone
(segmentation.py) and compares the two.
"""

from dataclasses import dataclass, replace

import numpy as np

from tubesynth.metrics.frangi import against_shell, shell_of, vesselness
from tubesynth.metrics.overlap import dice, line_scores, radius_errors, skeleton_of
from tubesynth.metrics.segmentation import Region, find_vessels, search_region
from tubesynth.metrics.topology import betti_errors, betti_numbers
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens, extract_tokens


@dataclass(frozen=True)
class Condition:
    """Of one label map with vessels; masks are of the box, indices count from its corner."""

    tokens: VesselTokens  # relative to the middle of the label map
    box: tuple[slice, slice, slice]
    vessel: np.ndarray  # bool
    shell: np.ndarray  # bool, see frangi.shell_of
    spacing: np.ndarray
    affine: np.ndarray
    # Of the skeleton: (N, 3) voxels and the radius in mm of the nearest token.
    line: np.ndarray
    line_radius_mm: np.ndarray
    box_tokens: VesselTokens  # relative to the middle of the box
    betti: tuple[int, int, int]
    region: Region | None  # None: no heart or no aorta, so vessels cannot be looked for


def tokens_of(label: Volume, classes: LabelScheme) -> VesselTokens:
    """The tokens of the label map's vessels, rooted at its aorta."""
    aorta = None if classes.aorta is None else label.array == classes.aorta
    return extract_tokens(label.array == classes.vessel, label.affine, root_mask=aorta)


def condition_of(label: Volume, classes: LabelScheme, tokens=None) -> Condition | None:
    """None where the label map holds no vessels; tokens: its own, where they are known."""
    from scipy.spatial import cKDTree

    spacing = label.spacing
    mask = label.array == classes.vessel
    aorta = np.zeros_like(mask) if classes.aorta is None else label.array == classes.aorta
    around, shell = shell_of(mask, spacing)
    if around is None:
        return None
    region = search_region(np.isin(label.array, classes.heart), aorta, spacing, include=around)
    box = around if region is None else region.box
    box = tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, label.shape, strict=True))
    vessel = mask[box]
    placed = np.zeros_like(vessel)
    inner = zip(around, box, shell.shape, strict=True)
    placed[tuple(slice(a.start - b.start, a.start - b.start + n) for a, b, n in inner)] = shell
    tokens = tokens_of(label, classes) if tokens is None else tokens
    middle = [
        (np.array(label.shape) - 1) / 2,
        np.array([b.start for b in box]) + (np.array(vessel.shape) - 1) / 2,
    ]
    moved = np.asarray(tokens.position_mm) + (middle[0] - middle[1]) * spacing
    line = skeleton_of(vessel, spacing)
    radius = np.full(len(line), spacing.min() / 2)
    if len(tokens) and len(line):
        at = (line - (np.array(vessel.shape) - 1) / 2) * spacing
        radius = np.asarray(tokens.radius_mm)[cKDTree(moved).query(at)[1]]
    return Condition(
        tokens=tokens,
        box=box,
        vessel=vessel,
        shell=placed,
        spacing=spacing,
        affine=label.affine,
        line=line,
        line_radius_mm=radius,
        box_tokens=replace(tokens, position_mm=moved),
        betti=betti_numbers(vessel),
        region=region,
    )


def vessel_scores(ct: np.ndarray, condition: Condition) -> dict[str, float]:
    """Scores of a CT (X, Y, Z) in HU on the label map's grid.

    Always vesselness (see frangi.against_shell); with heart and aorta in the label map also dice,
    cldice, centreline_recall and _precision, betti0_error and betti1_error, and radius_error_mm,
    radius_bias_mm and radius_ratio of the vessels found.
    """
    hu, vessel, shell = ct[condition.box], condition.vessel, condition.shell
    if condition.region is None:
        where = vessel | shell
        response = vesselness(hu, condition.spacing, where=where)
        return against_shell(response[vessel[where]], response[shell[where]])
    found, response = find_vessels(hu, condition.region, also=vessel | shell)
    return {**mask_scores(found, condition), **against_shell(response[vessel], response[shell])}


def mask_scores(found: np.ndarray, condition: Condition) -> dict[str, float]:
    """Scores of a mask (bool, of the condition's box) of the vessels that were found in a CT."""
    vessel, spacing = condition.vessel, condition.spacing
    line = skeleton_of(found, spacing)
    return {
        "dice": dice(found, vessel),
        **line_scores(found, line, vessel, condition.line, spacing, condition.line_radius_mm),
        **betti_errors(betti_numbers(found), condition.betti),
        **radius_errors(extract_tokens(found, condition.affine), condition.box_tokens),
    }
