"""The classes of a label map: their names and roles in one scheme, which every command reads.

A label map is uint8: a voxel's value is the index of its class in LabelScheme.names, and class 0 is
the background. NINE_CLASSES is the default; a config names another scheme in its section `labels`.
The structures of TotalSegmentator have the names of its tasks heartchambers_highres and
coronary_arteries (Wasserthal et al. 2023).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class LabelScheme:
    """Names of the classes in the order of their indices, and the roles that some of them have."""

    names: tuple[str, ...]
    vessel: int  # the class that becomes vessel tokens, masks and vessel scores
    heart: tuple[int, ...] = ()  # myocardium and chambers: vessels are searched around them
    aorta: int | None = None  # vessels are rooted at it; null: the scheme has none
    plausible_ml: dict[str, tuple[float, ...]] = field(default_factory=dict)  # {name: (low, high)}
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)  # {name: TotalSegmentator's}

    @property
    def num_classes(self) -> int:
        """With the background."""
        return len(self.names)

    def describe(self, value: int) -> str:
        """'class 6 (aorta)', or 'class 6' where the scheme has no name for the class."""
        number, name = f"class {value}", self.name(value)
        return number if name == number else f"{number} ({name})"

    def name(self, value: int) -> str:
        """The name of a class; 'class 12' beyond the scheme."""
        return self.names[value] if value < self.num_classes else f"class {value}"

    def plausible_range_ml(self, value: int) -> tuple[float, float] | None:
        """The plausible volumes of a class in ml, None where the scheme has none."""
        limits = self.plausible_ml.get(self.name(value))
        return None if limits is None else (limits[0], limits[1])

    def class_of(self, structure: str) -> int:
        """The class that holds a structure of TotalSegmentator, 0 where none does.

        It is the class that lists the structure in `sources`, or has its name among the nine.
        """
        for name, structures in self.sources.items():
            if structure in structures:
                return self.names.index(name)
        names = (name for name, items in NINE_CLASSES.sources.items() if structure in items)
        name = next(names, structure)
        return self.names.index(name) if name in self.names else 0

    def from_nine_classes(self) -> dict[int, int]:
        """The class of this scheme for each of the nine, 0 for those that it lacks.

        The coronary arteries become the vessel class, the others follow `class_of`.
        """
        classes = {
            NINE_CLASSES.names.index(name): self.class_of(structure)
            for name, (structure,) in NINE_CLASSES.sources.items()
        }
        return classes | {NINE_CLASSES.vessel: self.vessel}

    def problems(self) -> Iterator[str]:
        """Values that do not fit each other, each as 'key: value, remedy'."""
        foreground = range(1, self.num_classes)
        if not 2 <= self.num_classes <= 256 or len(set(self.names)) < self.num_classes:
            yield f"names: expected 2 to 256 different names, got {list(self.names)}"
        if self.vessel not in foreground:
            yield f"vessel: {self.vessel}: expected a foreground class, 1 to {self.num_classes - 1}"
        if not set(self.heart) <= set(foreground) - {self.vessel}:
            yield f"heart: {list(self.heart)}: expected foreground classes without the vessel class"
        if self.aorta is not None and self.aorta not in set(foreground) - {self.vessel}:
            yield f"aorta: {self.aorta}: expected a foreground class other than the vessel class"
        for key in ("plausible_ml", "sources"):
            for name in getattr(self, key):
                if name not in self.names[1:]:
                    yield f"{key}: '{name}' is not in labels.names: correct the name"
        for name, limits in self.plausible_ml.items():
            if len(limits) != 2 or not 0 <= limits[0] < limits[1]:
                yield f"plausible_ml.{name}: expected [low, high] in ml, got {list(limits)}"


def translate(values: np.ndarray, label_map: Mapping[int, int]) -> np.ndarray:
    """The class (uint8) of each stored value, of unsigned type; 0 for values without a class."""
    table = np.zeros(np.iinfo(values.dtype).max + 1, np.uint8)
    for value, label in label_map.items():
        if value < len(table):
            table[value] = label
    return table[values]


def count_classes(array: np.ndarray) -> dict[int, int]:
    """{class: voxels} of a label map, slice by slice: bincount copies to int64."""
    counts = np.zeros(np.iinfo(array.dtype).max + 1, dtype=np.int64)
    for z in range(array.shape[2]):
        counts += np.bincount(array[:, :, z].ravel(order="K"), minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def numbered_classes(
    num_classes: int, vessel: int, heart: Iterable[int] = (), aorta: int | None = None
) -> LabelScheme:
    """A scheme whose classes have roles and no names of their own."""
    names = ("background", *(f"class {value}" for value in range(1, num_classes)))
    return LabelScheme(names, vessel, tuple(heart), aorta)


NINE_CLASSES = LabelScheme(
    names=(
        "background",
        "myocardium",
        "left atrium",
        "left ventricle",
        "right atrium",
        "right ventricle",
        "aorta",
        "pulmonary artery",
        "coronary arteries",
    ),
    vessel=8,
    heart=(1, 2, 3, 4, 5),
    aorta=6,
    # Of adults, with margins for disease (ventricles of 400 ml occur) and for short scans.
    plausible_ml={
        "myocardium": (30, 500),
        "left atrium": (10, 400),
        "left ventricle": (15, 500),
        "right atrium": (15, 500),
        "right ventricle": (20, 600),
        "aorta": (5, 900),
        "pulmonary artery": (5, 400),
        "coronary arteries": (0.5, 60),
    },
    sources={
        "myocardium": ("heart_myocardium",),
        "left atrium": ("heart_atrium_left",),
        "left ventricle": ("heart_ventricle_left",),
        "right atrium": ("heart_atrium_right",),
        "right ventricle": ("heart_ventricle_right",),
        "aorta": ("aorta",),
        "pulmonary artery": ("pulmonary_artery",),
        "coronary arteries": ("coronary_arteries",),
    },
)
