"""Writes a folder of volumes case by case: shared by all ranks, resumable, each file atomic.

The files of the next batch are read, and those of the last one written, while the device computes
(overlap.py).

Each volume has a JSON sidecar with its source, the SHA-256 of the source's bytes, the settings that
decide its voxels, and its cost. A job is skipped where source and settings of its sidecar are those
of the job, and written again where they differ.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

import torch

import tubesynth
from tubesynth.config.schema import Config, Precision
from tubesynth.config.strict import flatten
from tubesynth.inference.arguments import LEAST_TILE
from tubesynth.inference.overlap import overlapped
from tubesynth.inference.sampling import Tile
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import check_writable, write_text, writing
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.left_out import LeftOut
from tubesynth.runtime.log import Progress, logger
from tubesynth.runtime.memory import peak_mb
from tubesynth.runtime.reading import stored_json
from tubesynth.runtime.stop_signal import ask, kept
from tubesynth.volume.centreline_file import SUFFIX
from tubesynth.volume.digest import source_digest
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume

Files = TypeVar("Files")
Inputs = TypeVar("Inputs")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that reconstruct and synthesize share."""
    add = parser.add_argument
    add("--resolution", type=int, nargs="+", metavar="N", help="voxels x y z; default: trained")
    add("--spacing", type=float, nargs="+", metavar="MM", help="mm x y z; default: trained")
    add(
        "--label-map",
        nargs="*",
        metavar="VALUE=CLASS",
        help="classes of the label maps' values, e.g. 1=3 2=7, in place of data.label_map; none:"
        " the values are classes",
    )
    add(
        "--precision",
        default="auto",
        choices=get_args(Precision),
        help="of the networks; auto: bf16-mixed on a GPU that has bf16, else 32",
    )
    add(
        "--tile",
        default="auto",
        metavar="VOXELS",
        help="side of the autoencoder's tiles: voxels, auto (fits the memory) or none",
    )


def tile_option(text: str) -> Tile:
    """The value of --tile: auto, none (as None), or voxels per side."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < LEAST_TILE:
        raise InputError(
            f"--tile {text}: expected auto, none, or a number of voxels from {LEAST_TILE} on"
        )
    return int(text)


def output_format(config: Config) -> tuple[str, str]:
    """(suffix, type of the voxels) of written images.

    Pictures of gray values are PNG, of 8 bits where the window ends at 255; all others NIfTI in HU.
    """
    low, high = config.data.hu_window
    if config.dim == 3 or low < 0:
        return ".nii.gz", "int16"
    return ".png", "uint8" if high <= 255 else "uint16"


@dataclass(frozen=True)
class Job:
    """One volume to write: OUT/name.img.nii.gz or .png, with its sidecar OUT/name.json.

    content: "label" for a label map.
    """

    name: str
    source: Path | None  # None: synthesized from noise alone
    settings: dict  # plain values that decide the voxels
    other_outputs: tuple[Path, ...] = ()  # further paths that a finished job has
    format: tuple[str, str] = (".nii.gz", "int16")  # see output_format
    content: str = "img"


def sidecar(output_dir: Path, job: Job) -> Path:
    return output_dir / f"{job.name}.json"


def is_finished(output_dir: Path, job: Job) -> bool:
    """Whether all outputs of a job exist and its sidecar has its source and settings."""
    record = stored_json(sidecar(output_dir, job))
    if (record.get("source"), record.get("settings")) != (source_name(job), job.settings):
        return False
    if not image_path(output_dir, job).is_file():
        return False
    if not all(path.exists() for path in job.other_outputs):
        return False
    return record.get("source_sha256") == digest_of(job.source)


def replaced(output_dir: Path, jobs: list[Job]) -> str | None:
    """What a command says of finished volumes that it writes again, with the first difference."""
    others = []
    for job in jobs:
        record = stored_json(sidecar(output_dir, job))
        if record and image_path(output_dir, job).exists():
            others.append((job, record))
    if not others:
        return None
    job, record = others[0]
    stored, now = ({"settings": each} for each in (record.get("settings"), job.settings))
    then = {"source": record.get("source"), **flatten(stored)}
    now = {"source": source_name(job), **flatten(now)}
    changed = (
        f"{key.removeprefix('settings.')} {changed_text(then.get(key), now.get(key))}"
        for key in {**now, **then}
        if then.get(key) != now.get(key)
    )
    reason = next(changed, "its source or outputs have changed")
    return f"{output_dir}: finished volumes that are replaced: {len(others)} ({job.name}: {reason})"


def changed_text(then: Any, now: Any) -> str:
    """'was 10 and is 20'; of digests and absent values what a reader can use."""
    texts = [str(value)[:8] if is_digest(value) else value for value in (then, now)]
    if then is None or now is None:
        return "is new" if then is None else "is left out"
    return f"was {texts[0]} and is {texts[1]}"


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def digest_of(source: Path | None) -> str | None:
    """SHA-256 of a source's bytes; None without a source."""
    return None if source is None else source_digest(source)


def source_of(job: Job) -> Path:
    """The file that a job is made of."""
    assert job.source is not None
    return job.source


def source_name(job: Job) -> str | None:
    return None if job.source is None else str(job.source)


def image_path(output_dir: Path, job: Job) -> Path:
    return output_dir / f"{job.name}.{job.content}{job.format[0]}"


def label_path(output_dir: Path, name: str, suffix: str) -> Path:
    return output_dir / "labels" / f"{name}.label{suffix}"


def centreline_path(output_dir: Path, name: str) -> Path:
    return output_dir / "centrelines" / f"{name}{SUFFIX}"


def process_folder(output_dir: Path, name: str) -> Path:
    return output_dir / "process" / name


@dataclass(frozen=True)
class Result:
    """What the device has made of a job.

    finish: the rest of the work, in the thread that writes: it writes the outputs besides the
    volume and returns the volume (HU). values: further ones of the sidecar. lines: are printed when
    all is written.
    """

    finish: Callable[[], Volume]
    values: dict
    lines: tuple[str, ...] = ()


class Steps(Protocol[Files, Inputs]):
    """The work of a batch before its files are written."""

    def read(self, job: Job) -> Files:
        """The files of a job; in a thread, while the device works. An InputError leaves it out."""
        ...

    def place(self, batch: list[Job], files: list[Files]) -> Inputs:
        """The files of a batch on the model's grid; in the thread of read."""
        ...

    def compute(self, batch: list[Job], inputs: Inputs) -> list[Result]:
        """The device's work: a result for each job."""
        ...


def run_jobs(
    jobs: list[Job],
    output_dir: Path,
    steps: Steps,
    device: torch.device,
    title: str,
    batch_size: int = 1,
    check: Callable[[list[Job]], None] = lambda jobs: None,
) -> None:
    """Write the volumes of all jobs that are not finished, batch by batch; ranks share the jobs.

    check: called on every rank with its jobs before the first volume is made. A job whose files
    cannot be read is left out, and an InputError when all others are written.
    """
    check_writable(output_dir)
    message = kept("the volumes that are finished", output_dir)

    records: dict[Path, dict] = {}  # by sidecar, of the volumes that are replaced

    def list_unfinished() -> tuple[list[Job], str | None]:
        unfinished = [job for job in jobs if not is_finished(output_dir, job)]
        paths = [sidecar(output_dir, job) for job in unfinished]
        records.update((path, stored_json(path)) for path in paths)
        return unfinished, replaced(output_dir, unfinished) if dist.is_main() else None

    # Every rank has its list before the first rank writes.
    unfinished, warning = dist.interruptible(list_unfinished, message)
    rank_jobs = unfinished[dist.rank() :: dist.world_size()]
    check(rank_jobs)
    if warning:
        logger.warning(warning)
    start = time.perf_counter()
    batches = [rank_jobs[i : i + batch_size] for i in range(0, len(rank_jobs), batch_size)]

    left_out = LeftOut()

    def read(batch: list[Job]) -> tuple[list[Job], Any, float]:
        """The jobs whose files could be read, their inputs, and the seconds it took."""
        start, readable, files = time.perf_counter(), [], []
        for job in batch:
            with left_out.noting():
                files.append(steps.read(job))
                readable.append(job)
        inputs = steps.place(readable, files) if readable else None
        return readable, inputs, time.perf_counter() - start

    def compute(
        batch: list[Job], read: tuple[list[Job], Any, float]
    ) -> tuple[list[tuple[Job, Result]], float]:
        readable, inputs, seconds = read
        if not readable:
            return [], 0.0
        start = time.perf_counter()
        results = steps.compute(readable, inputs)
        seconds = (seconds + time.perf_counter() - start) / len(readable)
        return list(zip(readable, results, strict=True)), seconds

    def write(batch: list[Job], computed: tuple[list[tuple[Job, Result]], float]) -> list[str]:
        lines: list[str] = []
        for index, (job, result) in enumerate(computed[0]):
            if index:
                ask()  # a whole batch may take longer than a signal leaves
            path = sidecar(output_dir, job)
            now = stored_json(path)
            if now != records[path] and now.get("settings") != job.settings:
                raise InputError(
                    f"{output_dir}: another command has written {job.name} with other settings"
                    " since this one began: give each its own --output-dir"
                )
            write_result(job, result, output_dir, computed[1], device)
            lines += result.lines
        return lines

    def write_volumes() -> None:
        with Progress(title, len(rank_jobs), unit="volume") as progress:

            def report(batch: list[Job], lines: list[str]) -> None:
                for line in lines:
                    print(line)
                progress.update(len(batch))

            overlapped(batches, read, compute, write, report)

    dist.interruptible(write_volumes, message)
    dist.together(lambda: left_out.refuse(output_dir, len(rank_jobs)))
    if dist.is_main():
        seconds = (time.perf_counter() - start) / max(1, len(unfinished))
        finished = len(jobs) - len(unfinished)
        skipped = f", {finished} finished before" if finished else ""
        print(
            f"{output_dir}: {len(unfinished)} volume{'s' * (len(unfinished) != 1)},"
            f" {seconds:.2f} s each{skipped}, peak memory {peak_mb(device):.0f} MB"
        )


def write_result(
    job: Job, result: Result, output_dir: Path, seconds: float, device: torch.device
) -> None:
    """Write the outputs of a job, then its sidecar, so no sidecar describes an old volume.

    The old sidecar is removed before the first output is replaced, and not earlier: what is
    refused keeps it. seconds: of reading and computing.
    """
    start, record_path = time.perf_counter(), sidecar(output_dir, job)
    with writing(record_path):
        record_path.unlink(missing_ok=True)
    write_volume(image_path(output_dir, job), result.finish(), job.format[1])
    record = {
        "source": source_name(job),
        "source_sha256": digest_of(job.source),
        "settings": job.settings,
        **result.values,
        "seconds": round(seconds + time.perf_counter() - start, 3),
        "peak_memory_mb": round(peak_mb(device)),
        "device": str(device),
        "tubesynth": tubesynth.__version__,
    }
    write_text(record_path, json.dumps(record, indent=2) + "\n")
