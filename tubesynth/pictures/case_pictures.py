"""The two pictures of an evaluated case: its panel of planes and its straightened coronary.

`volumes` is the result of read_case (metrics/case.py), in the order of the case's images.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tubesynth.metrics.case import EvaluationCase
from tubesynth.metrics.vessel import sample_hu
from tubesynth.pictures.panel import render_panel
from tubesynth.pictures.straightened_panel import render_straightened
from tubesynth.runtime.atomic import save_png
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.grid import Volume
from tubesynth.volume.resample import image_on_grid, labels_on_grid
from tubesynth.volume.straighten import longest_path
from tubesynth.volume.vessels import VesselTokens

SAMPLES_IN_PANEL = 3
HALF_WIDTH_MM, PIXEL_MM = 9.0, 0.25
SECTIONS = 8


def panel_path(output_dir: Path, case: str) -> Path:
    """The file of a case's panel."""
    return output_dir / "panels" / f"{case}.png"


def straightened_path(output_dir: Path, case: str) -> Path:
    """The file of a case's straightened coronary."""
    return output_dir / "panels" / f"{case}_coronary.png"


def save_case_pictures(
    case: EvaluationCase,
    volumes: Sequence[Volume],
    label: Volume | None,
    tokens: VesselTokens | None,
    scheme: LabelScheme,
    output_dir: Path,
) -> None:
    """Writes panel_path, and straightened_path where the label map has a vessel."""
    save_png(panel_path(output_dir, case.id), case_panel(case, volumes, label, scheme))
    if label is None or tokens is None:
        return
    picture = straightened_coronary(case, volumes, label, tokens)
    if picture is not None:
        save_png(straightened_path(output_dir, case.id), picture)


def case_panel(
    case: EvaluationCase, volumes: Sequence[Volume], label: Volume | None, scheme: LabelScheme
) -> np.ndarray:
    """uint8 (H, W, 3): all images of a case, on the grid of the last one, which is the model's."""
    grid = volumes[-1]
    rows = {}
    for source, sample, volume in first_samples(case, volumes, SAMPLES_IN_PANEL):
        rows[row_name(case, source, sample)] = image_on_grid(volume, grid).array
    classes = None if label is None else labels_on_grid(label, grid).array
    return render_panel(rows, grid.spacing, classes, scheme=scheme, title=f"case {case.id}")


def straightened_coronary(
    case: EvaluationCase, volumes: Sequence[Volume], label: Volume, tokens: VesselTokens
) -> np.ndarray | None:
    """uint8 (H, W, 3): the label map's longest coronary in the first sample of each source.

    None where the tokens have no path.
    """
    path = longest_path(tokens)
    if path is None:
        return None
    length_mm = float(path.along_mm[-1])
    rows = np.linspace(0, len(path.along_mm) - 1, SECTIONS + 2).round().astype(int)[1:-1]
    images = {}
    for source, sample, volume in first_samples(case, volumes, 1):
        strip = read_at(volume, path.strip(HALF_WIDTH_MM, PIXEL_MM), label)
        planes = [read_at(volume, path.section(r, HALF_WIDTH_MM, PIXEL_MM), label) for r in rows]
        images[row_name(case, source, sample, number_samples=False)] = strip, planes
    title = f"case {case.id}: the longest coronary, {length_mm:.0f} mm from its root"
    return render_straightened(
        images, length_mm, HALF_WIDTH_MM, path.radius_mm, path.along_mm[rows], title
    )


def first_samples(
    case: EvaluationCase, volumes: Sequence[Volume], max_samples: int
) -> Iterator[tuple[str, int, Volume]]:
    """(source, sample number, volume) of the first max_samples of each source."""
    counts: Counter[str] = Counter()
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        counts[source] += 1
        if counts[source] <= max_samples:
            yield source, sample, volume


def read_at(volume: Volume, position_mm: np.ndarray, label: Volume) -> np.ndarray:
    """(...) HU of a volume at positions (..., 3) in mm relative to the label map's center."""
    index = position_mm / label.spacing + (np.array(label.shape) - 1) / 2
    return sample_hu(volume, label.to_world(index))


def row_name(case: EvaluationCase, source: str, sample: int, number_samples: bool = True) -> str:
    """A row's name: the source, with its sample number where it has several."""
    count = sum(name == source for name, *_ in case.images)
    name = source.removeprefix("synthesis ")
    return f"{name} s{sample}" if number_samples and count > 1 else name
