"""Builds the volumes and vessel tokens of cases as entries of the disk cache.

A key holds the values that decide the voxels: the digests of the source files, the preprocessing
(with the number of classes, which label maps are checked by), and FORMAT. This file needs no torch.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.data.entry import Entry
from tubesynth.data.pool import cores, each
from tubesynth.data.preprocessing import Preprocessing, preprocess_case, read_case
from tubesynth.data.store import Store, entry_key
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case
from tubesynth.volume.files import read_labels
from tubesynth.volume.grid import Volume
from tubesynth.volume.resample import right_angled
from tubesynth.volume.vessels import VesselTokens, extract_tokens, place_tokens

FORMAT = 3  # raise it when preprocess_case gives other voxels for the same input
TOKEN_FORMAT = 4  # raise it when TokenSource gives other tokens for the same label map
VOLUMES, TOKENS, LATENTS = "volumes", "tokens", "latents"  # the kinds of entries


@dataclass(frozen=True)
class TokenSource:
    """The vessel tokens of label maps: the centrelines of one class, points at most step_mm apart.

    They are traced in the voxels of the label file: on the model's grid a vessel that is thinner
    than a voxel is a row of dots, or missing.
    """

    vessel_class: int
    step_mm: float

    @property
    def settings(self) -> dict:
        """The values that decide the tokens of a label map, for the key."""
        step_mm = float(self.step_mm)
        return {"vessel_class": self.vessel_class, "step_mm": step_mm, "format": TOKEN_FORMAT}

    def trace(self, labels: Volume) -> VesselTokens:
        """The tokens of a label map on its own grid."""
        upright = right_angled(labels)
        mask = upright.array == self.vessel_class
        tokens = extract_tokens(mask, upright.affine, self.step_mm)
        if upright is labels:
            return tokens
        return place_tokens(tokens, upright, labels.shape, labels.affine)


class CaseFiles:
    """The volumes of a case's files and the tokens traced in them, each made once, on demand."""

    def __init__(self, case: Case):
        self.case = case
        self._read: tuple[Volume, Volume | None] | None = None
        self._labels: Volume | None = None
        self._traced: tuple[TokenSource, VesselTokens] | None = None

    def read(self, preprocessing: Preprocessing) -> tuple[Volume, Volume | None]:
        """Image and label map; see read_case."""
        if self._read is None:
            self._read = read_case(self.case, preprocessing)
            self._labels = self._read[1]
        return self._read

    def forget_image(self) -> None:
        """Free its memory, once the volumes of all spacings are made."""
        self._read = None

    def tokens(
        self, source: TokenSource, shape: tuple[int, ...], affine: np.ndarray
    ) -> VesselTokens:
        """The tokens of the label map on a grid."""
        if self._labels is None:
            self._labels = read_labels(self.case.label, self.case.label_map)
        if self._traced is None or self._traced[0] != source:
            self._traced = source, source.trace(self._labels)
        return place_tokens(self._traced[1], self._labels, shape, affine)


@dataclass
class BuildReport:
    """The numbers of a build: entries built, entries that existed, bytes of both, seconds."""

    built: int = 0
    existing: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __str__(self):
        return (
            f"{self.built} built, {self.existing} existed, "
            f"{self.bytes / 1e6:.0f} MB, {self.seconds:.1f} s"
        )


def volume_key(
    store: Store, case: Case, preprocessing: Preprocessing, spacing_index: int = 0
) -> str:
    """The key of a case's volumes; reads the source files whose digests are not stored yet.

    spacing_index: the number of the spacing, where a case has several.
    """
    return _volume_key(case, preprocessing.with_spacing(case.id, spacing_index), store.digest)


def stored_volume_key(
    store: Store, case: Case, preprocessing: Preprocessing, spacing_index: int = 0
) -> str | None:
    """The key of a case's volumes if the digests of its files are stored, else None."""
    digests = {path: store.stored_digest(path) for path in case_files(case)}
    if None in digests.values():
        return None
    return _volume_key(case, preprocessing.with_spacing(case.id, spacing_index), digests.get)


def _volume_key(case: Case, preprocessing: Preprocessing, digest: Callable) -> str:
    label = None if case.label is None else digest(case.label)
    return entry_key(
        format=FORMAT,
        image=digest(case.image),
        label=label,
        preprocessing=preprocessing.settings,
        **({} if case.label_map is None else {"label_map": sorted(case.label_map.items())}),
    )


def token_key(volume: str, source: TokenSource) -> str:
    """The key of a case's tokens on the grid of its volumes; volume: the key of the volumes."""
    return entry_key(volume=volume, tokens=source.settings)


def ensure_volume(
    store: Store,
    case: Case,
    preprocessing: Preprocessing,
    key: str | None = None,
    spacing_index: int = 0,
    files: CaseFiles | None = None,
) -> tuple[Entry, bool]:
    """(entry of a case's volumes, whether this call built it)."""
    preprocessing = preprocessing.with_spacing(case.id, spacing_index)
    files = files or CaseFiles(case)

    def build():
        arrays, affine = preprocess_case(*files.read(preprocessing), preprocessing)
        return arrays, {"affine": affine.tolist()}

    key = key or volume_key(store, case, preprocessing)
    return store.ensure(VOLUMES, key, build, entry_meta(case, preprocessing=preprocessing.settings))


def ensure_tokens(
    store: Store, case: Case, volume: Entry, source: TokenSource, files: CaseFiles | None = None
) -> tuple[Entry, bool]:
    """(entry of a case's tokens on the grid of its cached volumes, whether this call built it)."""
    shape, affine = volume.meta["arrays"]["image"]["shape"], np.array(volume.meta["affine"])
    files = files or CaseFiles(case)

    def build():
        return dict(vars(files.tokens(source, tuple(shape), affine))), {}

    meta = entry_meta(case, volume=volume.key, settings=source.settings)
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
    """Build every missing entry of this rank's cases, by default with an equal share of the cores.

    A case that cannot be built does not stop the others; InputError names it at the end.
    """
    start, report = time.perf_counter(), BuildReport()
    missing: list[tuple[Case, list[int]]] = []  # only missing entries are sent to processes
    for case in cases[rank::world]:
        spacing_indices = []
        for spacing_index in range(preprocessing.num_spacings):
            concrete = preprocessing.with_spacing(case.id, spacing_index)
            entries = _existing_entries(store, case, concrete, tokens)
            if entries is None:
                spacing_indices.append(spacing_index)
            else:
                report.existing += len(entries)
                report.bytes += sum(entry.size for entry in entries)
        if spacing_indices:
            missing.append((case, spacing_indices))
    if workers is None:
        workers = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    jobs = [(store, case, preprocessing, indices, tokens) for case, indices in missing]
    failures = []
    for built, existing, size, failure in each(_build_case, jobs, workers, "cache"):
        report.built += built
        report.existing += existing
        report.bytes += size
        if failure:
            failures.append(failure)
    report.seconds = time.perf_counter() - start
    if failures:
        others = f"; {len(failures) - 1} other cases fail too: tubesynth doctor names all"
        raise InputError(f"{failures[0]}{others if failures[1:] else ''}")
    return report


def _existing_entries(
    store: Store, case: Case, preprocessing: Preprocessing, tokens: TokenSource | None
) -> list[Entry] | None:
    """A case's entries if all exist and the digests of its files are stored, else None."""
    key = stored_volume_key(store, case, preprocessing)
    if key is None:
        return None
    keys = [(VOLUMES, key)]
    if tokens is not None and case.label is not None:
        keys.append((TOKENS, token_key(key, tokens)))
    entries = [entry for entry in (store.open(*kind_and_key) for kind_and_key in keys) if entry]
    return entries if len(entries) == len(keys) else None


def _build_case(
    store: Store,
    case: Case,
    preprocessing: Preprocessing,
    spacing_indices: list[int],
    tokens: TokenSource | None,
) -> tuple[int, int, int, str | None]:
    """(entries built, entries that existed, their bytes, the error in the case's files)."""
    files = CaseFiles(case)
    try:
        volumes = [
            ensure_volume(store, case, preprocessing, spacing_index=spacing_index, files=files)
            for spacing_index in spacing_indices
        ]
        files.forget_image()
        results = list(volumes)
        if tokens is not None and case.label is not None:
            results += [ensure_tokens(store, case, entry, tokens, files) for entry, _ in volumes]
    except InputError as error:
        return 0, 0, 0, str(error)
    built = sum(is_new for _, is_new in results)
    return built, len(results) - built, sum(entry.size for entry, _ in results), None


def case_files(case: Case) -> list[Path]:
    """The files of a case: its image, and its label map if it has one."""
    return [path for path in (case.image, case.label) if path is not None]


def entry_meta(case: Case, **settings) -> dict:
    """The metadata of an entry: the case, its files, and the settings."""
    return {"case": case.id, "sources": [str(path) for path in case_files(case)], **settings}
