"""Radii of a vessel tree: an even taper along each vessel and Murray's law at every branching.

Every piece between two branchings is one Branch, so that r0^3 = r1^3 + r2^3 (Murray 1926,
doi:10.1073/pnas.12.3.207) holds between a branch's last radius and the first radii of its children.
"""

from dataclasses import dataclass, field

import numpy as np

from tubesynth.volume.centreline_file import Branch

STEP_MM = 0.5  # between the points of a vessel
SMALLEST_MM = 0.5  # radius at which a vessel ends


@dataclass
class Artery:
    """A named vessel without radii: points (N, 3) and the vessels that branch off."""

    name: str
    points: np.ndarray
    end_radius: float
    # for each child: the index of the point where it leaves, its share of the flow, the vessel
    children: list[tuple[int, float, "Artery"]] = field(default_factory=list)


def assign_radii(branches: list[Branch], vessel: Artery, radius: float, parent: int | None) -> None:
    """Cut a vessel at its children, give radii (mm), and append its pieces and its children.

    radius: of the first point; parent: index in `branches`. A vessel ends early where it gets
    thinner than SMALLEST_MM; a branching that would make either vessel thinner is left out.
    """
    last = len(vessel.points) - 1
    cuts, ends = _spaced(vessel.children, last)
    # Flow is proportional to r^3: a child with the share f leaves the factor (1 - f)^(1/3) of the
    # radius. The rest of the narrowing is an exponential taper r exp(-rate k) over the points k.
    remaining = np.prod([(1 - share) ** (1 / 3) for _, share, _ in cuts])
    rate = max(np.log(radius * remaining / vessel.end_radius), 0.02) / last
    start = 0
    for at, share, child in [*cuts, (last, 0.0, None)]:
        radii = radius * np.exp(-rate * np.arange(at - start + 1))
        size = len(radii)
        if radii[-1] < SMALLEST_MM:
            size = max(int((radii >= SMALLEST_MM).sum()), 2)
        points = np.c_[vessel.points[start : start + size], radii[:size].clip(SMALLEST_MM)]
        branches.append(Branch(vessel.name, parent, points))
        parent, radius, start = len(branches) - 1, points[-1, 3], at
        if size < len(radii):
            return
        if child is None:
            break
        # the child gets at least the smallest radius, if the vessel can spare it
        share = max(share, (1.04 * SMALLEST_MM / radius) ** 3)
        if radius * max(1 - share, 0) ** (1 / 3) >= 1.04 * SMALLEST_MM:
            assign_radii(branches, child, radius * share ** (1 / 3), parent)
            radius *= (1 - share) ** (1 / 3)
    for share, child in ends:
        assign_radii(branches, child, radius * share ** (1 / 3), parent)


def _spaced(children, last: int):
    """Branchings at least 4 mm apart, and (share of the flow, vessel) of those at the end."""
    cuts, gap = [], int(4 / STEP_MM)
    for at, share, child in sorted(children, key=lambda c: c[0]):
        if at < last - gap and (not cuts or at >= cuts[-1][0] + gap):
            cuts.append((max(at, 2), share, child))
    ends = [(share, child) for at, share, child in children if at == last]
    return cuts, ends
