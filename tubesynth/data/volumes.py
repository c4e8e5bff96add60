"""A case on the grid that models see: image int16 HU, label uint8, tokens; made once, cached.

The same `lay_on_grid` serves all three ways of keeping data (on the fly, memory, disk), so their
tensors are identical. What the cache key holds is exactly what decides the result: the sources'
bytes, the preprocessing, and FORMAT below. Nothing here needs torch.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from tubesynth.data.pool import cores, each
from tubesynth.data.store import Entry, Store, entry_key
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case
from tubesynth.volume.files import (
    check_labels,
    check_one_slice,
    check_same_grid,
    read_labels,
    read_volume,
)
from tubesynth.volume.grid import Volume

FORMAT = 1  # raise it when prepare_case gives other voxels for the same input
VOLUMES, TOKENS, LATENTS = "volumes", "tokens", "latents"  # the kinds of entries


@dataclass(frozen=True)
class Preprocessing:
    """The grid, the HU window that images are clipped to, and the number of classes.

    resolution and spacing (mm) have two or three entries; two describe one slice, whose thickness
    is that of the file.
    """

    resolution: tuple[int, ...]
    spacing: tuple[float, ...]
    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    num_classes: int = 9

    def __post_init__(self):
        flat = (1,) * (3 - len(self.resolution))
        set_field = object.__setattr__  # frozen, and hashed as given: 256 and 256.0 are one key
        set_field(self, "resolution", (*(int(n) for n in self.resolution), *flat))
        set_field(self, "spacing", tuple(float(s) for s in self.spacing))
        set_field(self, "hu_window", tuple(float(v) for v in self.hu_window))


@dataclass(frozen=True)
class TokenSource:
    """How tokens are made: extract(label, shape, affine) -> {name: (N, ...)}, for the grid of
    that shape and affine, from a label map on its own grid.

    `settings` are all its parameters, for the key. `extract` must be picklable.
    """

    extract: Callable[[Volume, tuple[int, int, int], np.ndarray], dict[str, np.ndarray]]
    settings: dict = field(default_factory=dict)


@dataclass
class BuildReport:
    """What a build did: entries built, entries found, bytes of all, seconds."""

    built: int = 0
    found: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __str__(self):
        return (
            f"{self.built} built, {self.found} there already, "
            f"{self.bytes / 1e6:.0f} MB, {self.seconds:.1f} s"
        )


def read_case(case: Case, preprocessing: Preprocessing) -> tuple[Volume, Volume | None]:
    """Image and label map as their files have them, which must be on one grid."""
    image = read_volume(case.image)
    label = None if case.label is None else read_labels(case.label)
    if len(preprocessing.spacing) == 2:
        check_one_slice(image, case.image)
    if label is not None:
        check_same_grid(image, label, case.image, case.label)
        check_labels(label.array, preprocessing.num_classes, case.label)
    return image, label


def prepare_case(case: Case, preprocessing: Preprocessing):
    """A case on the target grid, as `lay_on_grid` gives it."""
    return lay_on_grid(*read_case(case, preprocessing), preprocessing)


def lay_on_grid(image: Volume, label: Volume | None, preprocessing: Preprocessing):
    """({"image": int16 HU (X, Y, Z), "label": uint8 (X, Y, Z)}, affine (4, 4)) on the target grid,
    which has the image's axes and centre.
    """
    from tubesynth.volume.resample import resample_image, resample_labels, target_grid

    shape, affine = target_grid(image, preprocessing.spacing, preprocessing.resolution)
    hu = resample_image(image, shape, affine, fill=preprocessing.hu_window[0]).array
    low, high = preprocessing.hu_window
    # clip and round in the order that the resampler left in memory, then lay out z fastest
    arrays = {"image": np.ascontiguousarray(np.rint(hu.clip(low, high)).astype(np.int16))}
    if label is not None:
        arrays["label"] = np.ascontiguousarray(resample_labels(label, shape, affine).array)
    return arrays, affine


def volume_key(store: Store, case: Case, preprocessing: Preprocessing, read=True) -> str | None:
    """The key of a case's volumes; with read=False, None where a source must be read for it."""
    sources = [case.image] if case.label is None else [case.image, case.label]
    digests = [store.digest(path, read) for path in sources]
    if None in digests:
        return None
    image, label = (*digests, None)[:2]
    return entry_key(format=FORMAT, image=image, label=label, preprocessing=asdict(preprocessing))


def token_key(volume: str, source: TokenSource) -> str:
    return entry_key(volume=volume, tokens=source.settings)


def ensure_volume(store: Store, case: Case, preprocessing: Preprocessing, key=None):
    """(entry, whether it was built now) of a case's volumes."""
    key = key or volume_key(store, case, preprocessing)

    def build():
        arrays, affine = prepare_case(case, preprocessing)
        return arrays, {"affine": affine.tolist()}

    return store.ensure(VOLUMES, key, build, _meta(case, preprocessing=asdict(preprocessing)))


def ensure_tokens(store: Store, case: Case, volume: Entry, source: TokenSource):
    """(entry, whether it was built now) of a case's tokens on the grid of its cached volumes.

    They are traced in the file's own voxels: of a vessel thinner than the grid's, the cached label
    map holds dots or nothing.
    """
    shape, affine = volume.array("image").shape, np.array(volume.meta["affine"])

    def build():
        return source.extract(read_labels(case.label), shape, affine)

    meta = _meta(case, volume=volume.key, settings=source.settings)
    return store.ensure(TOKENS, token_key(volume.key, source), build, meta)


def build_volumes(
    store: Store,
    cases: list[Case],
    preprocessing: Preprocessing,
    tokens: TokenSource | None = None,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> BuildReport:
    """Every entry of this rank's share of the cases; all cores (of this machine's ranks) by
    default.

    A case that cannot be built stops nothing: the others are finished, then InputError names it.
    """
    start, report = time.perf_counter(), BuildReport()
    todo = []
    for case in cases[rank::world]:  # what is there needs no process
        entries = _there(store, case, preprocessing, tokens)
        if entries is None:
            todo.append(case)
        else:
            report.found += len(entries)
            report.bytes += sum(entry.size for entry in entries)
    if workers is None:
        workers = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    jobs = [(store, case, preprocessing, tokens) for case in todo]
    failures = []
    for built, found, size, failure in each(_build_case, jobs, workers, "cache"):
        report.built += built
        report.found += found
        report.bytes += size
        if failure:
            failures.append(failure)
    report.seconds = time.perf_counter() - start
    if failures:
        more = f" (and {len(failures) - 1} more like it)" if len(failures) > 1 else ""
        raise InputError(f"{failures[0]}{more}")
    return report


def _there(store, case, preprocessing, tokens) -> list[Entry] | None:
    """A case's entries where all exist and no source must be read to know it."""
    key = volume_key(store, case, preprocessing, read=False)
    if key is None:
        return None
    wanted = [(VOLUMES, key)]
    if tokens is not None and case.label is not None:
        wanted.append((TOKENS, token_key(key, tokens)))
    entries = [store.open(*one) for one in wanted]
    return None if None in entries else entries


def _build_case(store, case, preprocessing, tokens) -> tuple[int, int, int, str | None]:
    """Entries built and found, their bytes, and what is wrong with the case's files."""
    try:
        entry, new = ensure_volume(store, case, preprocessing)
        made = [(entry, new)]
        if tokens is not None and case.label is not None:
            made.append(ensure_tokens(store, case, entry, tokens))
    except InputError as error:
        return 0, 0, 0, str(error)
    built = sum(new for _, new in made)
    return built, len(made) - built, sum(entry.size for entry, _ in made), None


def _meta(case: Case, **settings) -> dict:
    sources = [str(path) for path in (case.image, case.label) if path is not None]
    return {"case": case.id, "sources": sources, **settings}
