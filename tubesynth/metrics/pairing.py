"""The files of each case: real CT, label map, reconstruction, one or more syntheses.

The id of a case is the file name up to the first dot; samples of one case are <case>_s0, <case>_s1
and so on. A JSON sidecar beside a volume holds the cost of synthesizing it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from tubesynth.metrics.case import EvaluationCase
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import require_folder, stored_json
from tubesynth.volume.cases import case_id, find_cases
from tubesynth.volume.centreline_file import SUFFIX
from tubesynth.volume.digest import source_digest
from tubesynth.volume.files import file_suffix

MAX_CONTROLS = 10  # cases with a negative control: each takes as long to score as an image
COSTS = ("evaluations", "seconds")
SOURCES = {
    "label map": "their label maps as --labels",
    "CT": "their CTs as --real",
    "centreline": "their --centrelines",
    "translation of label values": "a --config with their data.label_map",
}
# Names of other columns and rows, which a run may not have.
RESERVED = ("real", "real CT", "reconstruction", "floor", "negative control", "label map")


@dataclass(frozen=True)
class SynthesisRun:
    """A folder of synthetic CTs; source: "synthesis NAME", or "synthesis" for one unnamed run."""

    name: str
    source: str
    folder: Path


def runs_of(options: list[str] | None) -> list[SynthesisRun]:
    """The runs of --synthesis DIR, or of several --synthesis NAME=DIR."""
    runs = []
    for option in options or []:
        name, equals, folder = option.partition("=")
        named = bool(equals) and not Path(option).is_dir()
        if named and not re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", name):
            raise InputError(f"--synthesis {option}: NAME must be letters and digits")
        if named and name in RESERVED:
            raise InputError(
                f"--synthesis {option}: {name} is the name of a column; choose another name"
            )
        run = SynthesisRun(name, f"synthesis {name}", Path(folder)) if named else None
        runs.append(run or SynthesisRun("synthesis", "synthesis", Path(option)))
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"--synthesis: two folders are named {name}; give each folder a name, as few=DIR"
            )
    return runs


def collect_cases(
    real: Path | None,
    labels: Path | None,
    reconstruction: Path | None,
    runs: Sequence[SynthesisRun],
    centrelines: Path | None = None,
    label_map: Mapping[int, int] | None = None,
) -> tuple[list[EvaluationCase], list[str]]:
    """The cases of all images, and notes on real CTs without an image and on missing images.

    Without label maps, syntheses of which none has the id of a real CT, as unconditional ones, are
    compared with the real CTs as a set: their cases have no real CT.
    """
    folders = [folder for folder in (reconstruction, *(run.folder for run in runs)) if folder]
    layouts = {folder: published_layout(folder) for folder in folders}
    reals, maps = (
        files_of(folder, option)
        or {c: p for each in layouts.values() for c, p in each[kind].items()}
        for folder, option, kind in ((real, "--real", "img"), (labels, "--labels", "label"))
    )
    if not reals and not runs:
        raise InputError("nothing to score: give --real and --reconstruction, or --synthesis")
    if reconstruction is not None and not reals:
        raise InputError("--reconstruction is scored against the real CT; give --real")
    if runs and not maps and not reals:
        raise InputError(
            "--synthesis is scored against its condition or real CTs; give --labels, --real or both"
        )
    if centrelines is not None and not maps:
        raise InputError("--centrelines replace the vessels of label maps; give --labels")
    images: dict[str, list[tuple[str, int, Path]]] = {}  # (source, sample, file) by case
    synthesized: set[str] = set()  # cases
    if reconstruction is not None:
        files = layouts[reconstruction]["img-rec"] or files_of(reconstruction, "--reconstruction")
        for case, path in files.items():
            images.setdefault(case, []).append(("reconstruction", 0, path))
    for run in runs:
        files = layouts[run.folder]["synth"] or files_of(run.folder, "--synthesis")
        for name, path in files.items():
            match = re.fullmatch(r"(.+)_s(\d+)", name)
            if match and name not in (maps or reals) and (maps or match[1] in reals):
                case, sample = match[1], int(match[2])
            else:
                case, sample = name, 0
            synthesized.add(case)
            case_images = images.setdefault(case, [])
            if (run.source, sample) in [image[:2] for image in case_images]:
                raise InputError(f"{path}: another file is sample {sample} of {case}; remove one")
            case_images.append((run.source, sample, path))
    as_set = bool(runs) and not maps and not synthesized & reals.keys()
    for folder, files in ((real, reals), (labels, maps)):
        found = files.keys() | (synthesized if as_set else set())
        missing = [
            p.name for c, case_images in images.items() if c not in found for *_, p in case_images
        ]
        if folder is not None and missing:
            raise InputError(
                f"{folder}: unpaired, no file for {listed(missing)}; ids are names up to the first "
                "dot, add the missing files or remove these"
            )
    chosen = list(images) or [case for case in reals if not maps or case in maps]
    if not chosen:
        raise InputError(f"{labels}: no label map has the id of a CT in {real}; rename the files")
    notes = []
    if as_set:
        notes.append(
            f"no synthesis has the id of a real CT: the {len(synthesized)} syntheses are compared"
            f" with the {len(reals)} real CTs as sets; scores of single images need equal ids,"
            " scores of vessels --labels"
        )
    elif unpaired := [case for case in reals if case not in chosen]:
        notes.append(f"{len(unpaired)} real CTs without an image are skipped: {listed(unpaired)}")
    sources = [("reconstruction", reconstruction), *((run.source, run.folder) for run in runs)]
    for source, folder in sources:
        missing_cases = [
            c for c in chosen if source not in [image[0] for image in images.get(c, [])]
        ]
        if folder is not None and missing_cases and not as_set:
            notes.append(f"{len(missing_cases)} cases have no {source}: {listed(missing_cases)}")
    cases, order, control_step = [], list(reals), -(-len(chosen) // MAX_CONTROLS)
    for case in chosen:
        real_image = [("real", 0, reals[case])] if case in reals else []
        control = None  # the CT of the next patient
        if real_image and case in images and len(order) > 1 and len(cases) % control_step == 0:
            control = reals[order[(order.index(case) + 1) % len(order)]]
        centreline = centrelines and centrelines / f"{case}{SUFFIX}"
        if centreline and not centreline.is_file():
            raise InputError(f"--centrelines {centrelines}: no centreline of case {case}: add it")
        case_images = real_image + images.get(case, [])
        label = maps.get(case)
        cases.append(EvaluationCase(case, label, case_images, control, centreline, label_map))
    return cases, notes


def published_layout(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of a result folder of the published code, by kind and by case.

    It has a folder for each case: ID/ID.img and ID.img-rec of a reconstruction, or ID-synth/ID.img,
    ID.label and 1-synth, 2-synth of a synthesis, whose names here are ID_s1, ID_s2. All kinds are
    empty where the folder has another layout.
    """
    files: dict[str, dict[str, Path]] = {kind: {} for kind in ("img", "label", "img-rec", "synth")}
    for path in sorted(folder.glob("*/*")) if folder.is_dir() else ():
        case = path.parent.name.removesuffix("-synth")
        name = re.escape(case) + r"\.(img|img-rec|label)|(\d+)-(synth)"
        found = re.fullmatch(name, path.name.removesuffix(file_suffix(path)))
        if found and file_suffix(path):
            files[found[1] or found[3]][f"{case}_s{found[2]}" if found[2] else case] = path
    return files


def files_of(folder: Path | None, option: str) -> dict[str, Path]:
    """{case id: file} of the folder of an option; {} without a folder."""
    if folder is None:
        return {}
    require_folder(folder, f"check {option}")
    return find_cases(folder)


def sidecar_notes(cases: Sequence[EvaluationCase]) -> list[str]:
    """Notes on images that are not what they are scored as, by their sidecars: made of other files
    or with another translation of the label map, or with air outside of a field of view.
    """
    others: dict[str, list[str]] = {}  # by what differs
    airy = []
    for case in cases:
        real = case.images[0][2] if case.images[0][0] == "real" else None
        for source, _, path in case.images:
            record = {} if source == "real" else sidecar_of(path)
            settings = record.get("settings")
            settings = settings if isinstance(settings, dict) else {}
            is_synthesis = "case" in settings
            origin, kind = (case.label, "label map") if is_synthesis else (real, "CT")
            if origin and origin.parent == path.parent / "labels":
                origin = None  # synthesize wrote it with the image, on the model's grid
            if is_other(record.get("source_sha256"), origin):
                others.setdefault(kind, []).append(path.name)
            centreline = settings.get("centreline_sha256")
            if is_other(centreline, case.centreline) or centreline and case.centreline is None:
                others.setdefault("centreline", []).append(path.name)
            if is_synthesis and differs(settings.get("label_map"), case.label_map):
                others.setdefault("translation of label values", []).append(path.name)
            cut_off = record.get("cut_off")
            if settings.get("original_grid") is True and isinstance(cut_off, float) and cut_off > 0:
                airy.append(f"{path.name} ({100 * cut_off:.0f} %)")
    notes = [
        f"made of another {kind} than they are scored with, by their JSON files: {listed(names)}"
        f"; give {SOURCES[kind]}"
        for kind, names in others.items()
    ]
    if airy:
        notes.append(
            f"images that are air outside of the model's field of view: {listed(airy)}; it counts"
            " in their scores: make them without --original-grid"
        )
    return notes


def is_other(digest: Any, path: Path | None) -> bool:
    """Whether a sidecar has the SHA-256 of another file than the one at path, if both are there."""
    return isinstance(digest, str) and path is not None and digest != source_digest(path)


def differs(pairs: Any, label_map: Mapping[int, int] | None) -> bool:
    """Whether VALUE=CLASS pairs of a sidecar are another translation; values are their classes."""
    pairs = [] if pairs is None else pairs
    stored = {str(pair) for pair in pairs} if isinstance(pairs, list) else set()
    now = {f"{value}={label}" for value, label in (label_map or {}).items()}
    return stored != now


def sidecar_of(image: Path) -> dict[str, Any]:
    """The JSON file beside an image; {} for volumes of other programs, which have none."""
    return stored_json(image.with_name(f"{case_id(image)}.json"))


def cost_rows(cases: Sequence[EvaluationCase]) -> list[dict[str, Any]]:
    """A row for each image whose sidecar (<name>.json beside it) has evaluations or seconds."""
    rows = []
    for case in cases:
        for source, sample, path in case.images:
            record = sidecar_of(path)
            numbers = {k: record[k] for k in COSTS if type(record.get(k)) in (int, float)}
            costs = {key: float(number) for key, number in numbers.items() if isfinite(number)}
            if costs:
                rows.append({"case": case.id, "sample": sample, "source": source, **costs})
    return rows


def listed(names: Sequence[str]) -> str:
    """The first ten names, and the number of the others."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
