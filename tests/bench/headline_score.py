"""The headline score (vessel_match) of right and wrong images of phantoms, as a Markdown table.

    python tests/bench/headline_score.py --cases 6

Each row is one kind of image, each column a metric and a voxel size: mean +- standard deviation
over patients. centreline_in_range was the headline before.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from tubesynth.data.pool import each
from tubesynth.metrics.condition import tokens_of
from tubesynth.metrics.damage import erase_vessels
from tubesynth.metrics.vessel import centreline_scores
from tubesynth.metrics.vessel_match import vessel_match
from tubesynth.phantom.anatomy import CORONARY, Anatomy, Phantom, sample_anatomy, scan
from tubesynth.phantom.scanner import ct_noise
from tubesynth.volume.centreline_file import Branch
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.grid import Volume
from tubesynth.volume.polyline import arc_length
from tubesynth.volume.vessels import VesselTokens

GRIDS = {0.7: (160, 160, 128), 1.25: (96, 96, 72), 2.1: (57, 57, 43)}  # mm: voxels, 120 x 120 x 90
METRICS = ("vessel_match", "centreline_in_range")
GAP_MM = 5.0
WRONG = ("another patient", "white noise", "smooth noise", "blur 4 mm and noise", "constant")
WRONG += ("blur 4 mm", "vessels erased")


@dataclass(frozen=True)
class Patient:
    """One phantom on one grid, and scans of it with other coronaries."""

    case: int
    spacing_mm: float
    anatomy: Anatomy
    phantom: Phantom
    tokens: VesselTokens

    @classmethod
    def of(cls, case: int, anatomy: Anatomy, spacing_mm: float, resolution) -> "Patient":
        phantom = scan(anatomy, 0, case, resolution, (spacing_mm,) * 3)
        tokens = tokens_of(phantom.labels, NINE_CLASSES)
        return cls(case, spacing_mm, anatomy, phantom, tokens)

    @property
    def hu(self) -> np.ndarray:
        """(X, Y, Z) float32 of the real CT."""
        return self.phantom.image.array.astype(np.float32)

    def with_branches(self, branches: list[Branch]) -> np.ndarray:
        """(X, Y, Z) float32: the same scan, noise included, of other coronaries."""
        anatomy = replace(self.anatomy, branches=branches)
        shape = self.phantom.image.shape
        scanned = scan(anatomy, 0, self.case, shape, (self.spacing_mm,) * 3)
        return scanned.image.array.astype(np.float32)

    def match(self, hu: np.ndarray) -> dict[str, float]:
        """The scores of vessel_match of an image (X, Y, Z) in HU."""
        ct = Volume(hu, self.phantom.image.affine)
        return vessel_match(ct, self.phantom.image, self.tokens, self.phantom.labels)


def wrong_images(patient: Patient, other: Patient) -> dict[str, np.ndarray]:
    """Images without the patient's vessels, by the names of WRONG."""
    random, hu = np.random.default_rng(patient.case), patient.hu
    white = random.standard_normal(hu.shape, dtype=np.float32)
    smooth = gaussian_filter(white, 1.5 / patient.spacing_mm)
    smooth *= 200 / smooth.std()
    blurred = gaussian_filter(hu, 4 / patient.spacing_mm)
    vessels = patient.phantom.labels.array == CORONARY
    images = (other.hu, 400 * white, smooth, blurred + smooth, np.full_like(hu, 300), blurred)
    return dict(zip(WRONG, (*images, erase_vessels(hu, vessels, 1.0)), strict=True))


def thinned(branches: list[Branch], factor: float) -> list[Branch]:
    """All radii times the factor."""
    return [replace(b, points=b.points * [1, 1, 1, factor]) for b in branches]


def broken(branches: list[Branch], count: int) -> list[Branch]:
    """Each branch with `count` gaps of GAP_MM at even distances."""
    result = []
    for branch in branches:
        along = arc_length(branch.points)
        middles = along[-1] * np.arange(1, count + 1)[:, None] / (count + 1)
        points = branch.points.copy()
        points[(np.abs(along - middles) < GAP_MM / 2).any(0), 3] = 1e-3
        result.append(replace(branch, points=points))
    return result


def shifted(branches: list[Branch], mm: float) -> list[Branch]:
    """All points moved by mm, obliquely in the coronal plane."""
    return [replace(b, points=b.points + np.array([0.6, 0, 0.8, 0]) * mm) for b in branches]


DAMAGES = {  # name: (function of branches and level, levels from light to heavy)
    "radii x": (thinned, (0.9, 0.7, 0.5)),
    "gaps of 5 mm in each branch:": (broken, (1, 3, 6)),
    "vessels moved, mm:": (shifted, (0.5, 1.0, 2.0, 3.0)),
}


def damaged_images(patient: Patient, kind: str) -> Iterator[tuple[float, np.ndarray]]:
    """(level, HU) of one kind of DAMAGES, from light to heavy."""
    function, levels = DAMAGES[kind]
    for level in levels:
        yield level, patient.with_branches(function(patient.anatomy.branches, level))


def rescanned(patient: Patient) -> np.ndarray:
    """The real CT with more noise, independent, of 25 HU in voxels of 0.7 mm."""
    random = np.random.default_rng([patient.case, 1])
    shape, spacing = patient.phantom.image.shape, (patient.spacing_mm,) * 3
    return patient.hu + ct_noise(shape, spacing, 25.0, random)


def all_images(patient: Patient, other: Patient) -> Iterator[tuple[str, np.ndarray]]:
    yield "the real CT", patient.hu
    yield "the real CT and noise of 25 HU", rescanned(patient)
    yield from wrong_images(patient, other).items()
    for factor in (0.5, 1.5):
        yield f"contrast x {factor}", patient.hu * factor
    for mm in (1, 2):
        yield f"blur {mm} mm", gaussian_filter(patient.hu, mm / patient.spacing_mm)
    for kind in DAMAGES:
        for level, hu in damaged_images(patient, kind):
            yield f"{kind} {level:g}", hu


def scores(case: int, other: int, spacing_mm: float) -> dict[str, dict[str, float]]:
    """{image: {METRIC: score}} of one patient at one voxel size."""
    patient, control = (
        Patient.of(c, sample_anatomy(0, c), spacing_mm, GRIDS[spacing_mm]) for c in (case, other)
    )
    labels, affine = patient.phantom.labels, patient.phantom.image.affine
    result = {}
    for name, hu in all_images(patient, control):
        old = centreline_scores(Volume(hu, affine), patient.tokens, labels)
        values = {**old, **patient.match(hu)}
        result[name] = {metric: values[metric] for metric in METRICS}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    jobs = [(c + 1, (c + 1) % args.cases + 1, mm) for mm in GRIDS for c in range(args.cases)]
    results = each(scores, jobs, args.workers, "patients")
    columns = [(metric, mm) for metric in METRICS for mm in GRIDS]
    print("| |" + "".join(f" {metric}, {mm:g} mm |" for metric, mm in columns))
    print("|---|" + "---|" * len(columns))
    for name in results[0]:
        cells = []
        for metric, mm in columns:
            values = [r[name][metric] for r, job in zip(results, jobs, strict=True) if job[2] == mm]
            cells.append(f" {np.mean(values):.2f} +- {np.std(values, ddof=1):.2f} |")
        print(f"| {name} |" + "".join(cells))


if __name__ == "__main__":
    main()
