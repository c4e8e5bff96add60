"""Numbers that describe a label map and its vessels, and their ranges over a training set.

A network makes a plausible CT of whatever it is given, so a label map unlike all of its training
looks as good as any other. `describe` measures one (volumes, places, vessels, grid), `Ranges` has
what occurred in training, and `Ranges.compare` names what lies outside.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.polyline import point_tree
from tubesynth.volume.vessels import VesselTokens

MAX_VOXELS = 200_000  # larger label maps are measured in every second voxel, or fewer
AXES = "xyz"  # of the array: right, anterior, superior
# Measured in logarithms: their deviation is a share of the value.
RELATIVE = ("ml", "radius_mm", "length_mm")
# Deviations below it are none, in the unit of the quantity (of a logarithm: a share).
SMALLEST_DEVIATION = {"ml": 0.05, "radius_mm": 0.1, "length_mm": 0.1, "place_mm": 1.0}
SMALLEST_DEVIATION |= {"spacing_mm": 1e-3, "extent_mm": 1.0, "share": 0.02, "distance_mm": 0.3}
WORDS = {
    "ml": "{name}: {value:.3g} ml",
    "place_mm": "{name}: {value:.0f} mm along {axis} from the middle of the heart",
    "radius_mm": "{name}: median radius {value:.2g} mm",
    "length_mm": "{name}: {value:.0f} mm long",
    "share": "{name}: {value:.2f} of the centreline inside the heart's classes",
    "distance_mm": "{name}: {value:.2g} mm from the heart in the mean",
    "spacing_mm": "{name}: {value:.3g} mm along {axis}",
    "extent_mm": "{name}: {value:.0f} mm along {axis}",
}

Description = dict[str, float]  # by "quantity/name" or "quantity/name/axis"


def describe(
    labels: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    tokens: VesselTokens | None,
    scheme: LabelScheme,
) -> Description:
    """A label map (X, Y, Z) or (X, Y) on a model's grid; tokens are relative to its center."""
    spacing = np.asarray(spacing, float)
    labels = labels.reshape((*labels.shape, 1)[:3])
    description: Description = {}
    for axis, name in enumerate(AXES[: 3 if labels.shape[2] > 1 else 2]):
        description[f"spacing_mm/voxels/{name}"] = float(spacing[axis])
        description[f"extent_mm/field of view/{name}"] = float(spacing[axis] * labels.shape[axis])
    center = (np.array(labels.shape) - 1) / 2
    step = 1
    while labels.size / step**3 > MAX_VOXELS:
        step += 1
    voxels = np.argwhere(labels[::step, ::step, ::step] != 0) * step  # (N, 3)
    values = labels[tuple(voxels.T)]
    position = (voxels - center) * spacing  # (N, 3) mm
    of_step = [step if n > 1 else 1 for n in labels.shape]
    voxel_ml = float(spacing.prod() * np.prod(of_step)) / 1000
    counts = np.bincount(values, minlength=scheme.num_classes)
    heart = np.isin(values, scheme.heart or np.setdiff1d(values, [scheme.vessel]))
    middle = position[heart].mean(axis=0) if heart.any() else None
    for value in np.flatnonzero(counts):
        name = scheme.name(int(value))
        description[f"ml/{name}"] = float(counts[value] * voxel_ml)
        if middle is not None and value != scheme.vessel:
            place = position[values == value].mean(axis=0) - middle
            description |= {
                f"place_mm/{name}/{a}": float(p) for a, p in zip(AXES, place, strict=True)
            }
    if tokens is not None and len(tokens):
        description |= _vessels(tokens, position[heart], float((spacing * of_step).max()))
    return description


def _vessels(tokens: VesselTokens, heart: np.ndarray, voxel_mm: float) -> Description:
    """Radius, length and place; heart: (N, 3) mm, its voxels."""
    same_branch = np.diff(tokens.branch) == 0
    steps = np.abs(np.diff(tokens.root_distance_mm))[same_branch]
    description = {
        "radius_mm/vessels": float(np.median(tokens.radius_mm)),
        "length_mm/vessels": max(float(steps.sum()), 1.0),
    }
    if len(heart):
        distance = point_tree(heart).query(np.asarray(tokens.position_mm, float))[0]
        description["share/vessels"] = float((distance <= voxel_mm / 2).mean())
        description["distance_mm/vessels"] = float(distance.mean())
    return description


def is_quantity(key: object) -> bool:
    """Whether it is a key of a Description."""
    if not isinstance(key, str):
        return False
    quantity, *names = key.split("/")
    has_axis = quantity in ("place_mm", "spacing_mm", "extent_mm")
    return quantity in WORDS and len(names) == 1 + has_axis


@dataclass(frozen=True)
class Comparison:
    """A label map beside those of a training. unusual: a line for each number far outside of its
    range; is_empty: it has none of their structures.
    """

    unusual: list[str]
    is_empty: bool


@dataclass
class Ranges:
    """What occurred in training. total: the number of label maps. keys: N keys of a Description.
    numbers: (N, 4), for each key how many label maps have it, minimum, maximum and standard
    deviation (of logarithms for the quantities in RELATIVE).
    """

    total: int
    keys: list[str]
    numbers: list[list[float]]

    @classmethod
    def of(cls, descriptions: Iterable[Description]) -> "Ranges":
        rows = list(descriptions)
        keys = list(dict.fromkeys(key for row in rows for key in row))
        numbers = []
        for key in keys:
            values = np.array([_scale(key, row[key]) for row in rows if key in row])
            of_key = len(values), values.min(), values.max(), values.std()
            numbers.append([float(number) for number in of_key])
        return cls(len(rows), keys, numbers)

    def compare(self, description: Description) -> "Comparison":
        """What is far outside of its range in training."""
        structures = [key for key in self.keys if key.startswith(("ml/", "length_mm/"))]
        is_empty = not any(key in description for key in structures)
        return Comparison(self._unusual(description), is_empty)

    def _unusual(self, description: Description) -> list[str]:
        lines, of_total = [], f"of {self.total} training label maps"
        for key, (count, low, high, deviation) in zip(self.keys, self.numbers, strict=True):
            quantity, name = key.split("/")[:2]
            if key not in description:
                # a class may be missing where it was missing in training
                if quantity == "ml" and count == self.total:
                    lines.append(f"no {name}, which all {of_total} have")
                continue
            value = _scale(key, description[key])
            # Beyond the extremes by three deviations, and more where few label maps were seen.
            deviation = max(deviation, SMALLEST_DEVIATION[quantity])
            margin = (3 + 10 / count) * deviation
            if not low - margin <= value <= high + margin:
                axis = key.rpartition("/")[2]
                text = WORDS[quantity].format(name=name, value=description[key], axis=axis)
                ends = np.exp((low, high)) if key.startswith(RELATIVE) else (low, high)
                first, last = (f"{end:.3g}" for end in ends)
                seen = f"always {first}" if first == last else f"{first} to {last}"
                lines.append(f"{text}; {seen} in training")
        trained_names = {key.split("/")[1] for key in self.keys if key.startswith("ml/")}
        for key in description:
            quantity, name = key.split("/")[:2]
            if quantity == "ml" and name not in trained_names:
                lines.append(f"{name}: in the label map, but 0 {of_total} have it")
        return lines


def _scale(key: str, value: float) -> float:
    return float(np.log(value)) if key.startswith(RELATIVE) else value
