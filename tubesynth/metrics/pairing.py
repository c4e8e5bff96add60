"""Which files belong to which case: real CTs, label maps, reconstructions, one or more syntheses.

A case is known by its file name up to the first dot; samples of one case are <case>_s0, <case>_s1,
... Beside a volume may lie the JSON sidecar that says what it cost to make.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tubesynth.metrics.case import EvaluationCase
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.centreline_file import SUFFIX, read_centreline

MOST_FLOORS = 10  # cases with a stranger: an image that has nothing to do with them costs as much
COSTS = ("evaluations", "seconds")
TAKEN = ("real", "reconstruction", "floor", "label map")  # columns and rows that are there anyway


@dataclass(frozen=True)
class Run:
    """A folder of synthetic CTs; `source` is what its rows are called."""

    name: str
    source: str
    folder: Path


def runs_of(options: list[str] | None) -> list[Run]:
    """--synthesis DIR, or several times NAME=DIR."""
    runs = []
    for option in options or []:
        name, equals, folder = option.partition("=")
        named = bool(equals) and not Path(option).is_dir()
        if named and not re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", name):
            raise InputError(f"--synthesis {option}: expected NAME=DIR, a name of plain letters")
        if named and name in TAKEN:
            raise InputError(
                f"--synthesis {option}: {name} is the name of something else; change it"
            )
        run = Run(name, f"synthesis {name}", Path(folder)) if named else None
        runs.append(run or Run("synthesis", "synthesis", Path(option)))
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"--synthesis is given twice as {name}: give each folder a name, as few=DIR"
            )
    return runs


def collect_cases(
    real, labels, reconstruction, runs, centrelines=None
) -> tuple[list[EvaluationCase], list[str]]:
    """Every image with its partners, and notes on real CTs that nothing was made from."""
    if real is None and not runs:
        raise InputError("nothing to score: give --real and --reconstruction, or --synthesis")
    if reconstruction is not None and real is None:
        raise InputError("--reconstruction is scored against the real CT; give --real")
    if runs and labels is None:
        raise InputError("--synthesis is scored against its condition; give --labels")
    if centrelines is not None and labels is None:
        raise InputError("--centrelines: drawn into label maps; give --labels")
    reals, maps = files_of(real, "--real"), files_of(labels, "--labels")
    made: dict[str, list[tuple[str, int, Path]]] = {}
    for case, path in files_of(reconstruction, "--reconstruction").items():
        made.setdefault(case, []).append(("reconstruction", 0, path))
    for run in runs:
        for name, path in files_of(run.folder, "--synthesis").items():
            found = None if name in maps else re.fullmatch(r"(.+)_s(\d+)", name)
            case, sample = (found[1], int(found[2])) if found else (name, 0)
            images = made.setdefault(case, [])
            if (run.source, sample) in [image[:2] for image in images]:
                raise InputError(f"{path}: sample {sample} of case {case} is there twice; keep one")
            images.append((run.source, sample, path))
    for folder, there in ((real, reals), (labels, maps)):
        missing = [p.name for c, images in made.items() if c not in there for *_, p in images]
        if folder is not None and missing:
            raise InputError(
                f"{folder}: unpaired, no file for {listed(missing)}; ids are names up to the first "
                "dot, add the missing files or remove these"
            )
    chosen = list(made) or [case for case in reals if labels is None or case in maps]
    if not chosen:
        raise InputError(f"{labels}: no label map has the id of a CT in {real}; rename the files")
    notes = []
    if left := [case for case in reals if case not in chosen]:
        notes.append(f"{len(left)} real CTs without a partner were left out: {listed(left)}")
    sources = [("reconstruction", reconstruction), *((run.source, run.folder) for run in runs)]
    for source, folder in sources:
        lacking = [c for c in chosen if source not in [image[0] for image in made.get(c, [])]]
        if folder is not None and lacking:
            notes.append(f"{len(lacking)} cases have no {source}: {listed(lacking)}")
    cases, order, every = [], list(reals), -(-len(chosen) // MOST_FLOORS)
    for case in chosen:
        own = [("real", 0, reals[case])] if case in reals else []
        stranger = None
        if own and case in made and len(order) > 1 and len(cases) % every == 0:
            stranger = reals[order[(order.index(case) + 1) % len(order)]]
        images = own + made.get(case, [])
        drawn = centrelines and centrelines / f"{case}{SUFFIX}"
        if drawn:
            read_centreline(drawn)  # refused here, before any case is scored
        cases.append(EvaluationCase(case, maps.get(case), images, stranger, drawn))
    return cases, notes


def files_of(folder: Path | None, option: str) -> dict[str, Path]:
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check {option}")
    return {} if folder is None else find_cases(folder)


def cost_rows(cases: list[EvaluationCase]) -> list[dict]:
    """A row for each image whose sidecar (<name>.json beside it) tells its evaluations, seconds."""
    rows = []
    for case in cases:
        for source, sample, path in case.images:
            try:
                beside = path.with_name(f"{path.name.split('.')[0]}.json")
                record = json.loads(beside.read_text(encoding="utf-8"))
                costs = {k: float(record[k]) for k in COSTS if record.get(k) is not None}
            except (OSError, ValueError, TypeError, AttributeError):
                continue  # made by another program: nothing is known
            if costs:
                rows.append({"case": case.id, "sample": sample, "source": source, **costs})
    return rows


def listed(names) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
