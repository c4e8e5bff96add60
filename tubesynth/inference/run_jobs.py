"""Writes a folder of volumes case by case: shared by all ranks, resumable, each file atomic.

The files of the next batch are read, and those of the last one written, while the device computes
(overlap.py). A job that is finished is skipped; one whose files cannot be read is left out.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

import tubesynth
from tubesynth.inference.job import Job, other_volumes, replaced_volumes
from tubesynth.inference.overlap import overlapped
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import check_writable, write_text, writing
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.left_out import LeftOut
from tubesynth.runtime.log import Progress, logger
from tubesynth.runtime.memory import peak_mb
from tubesynth.runtime.reading import stored_json
from tubesynth.runtime.stop_signal import ask, kept
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume

Files = TypeVar("Files")
Inputs = TypeVar("Inputs")


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


@dataclass(frozen=True)
class ReadBatch:
    """The jobs of a batch whose files could be read, their inputs, and the seconds it took."""

    jobs: list[Job]
    inputs: Any
    seconds: float


@dataclass(frozen=True)
class ComputedBatch:
    """Jobs with their results; seconds: of reading and computing, per job."""

    results: list[tuple[Job, Result]]
    seconds: float


@dataclass(frozen=True)
class Execution:
    """Reads, computes and writes a batch: the callables of `overlapped`.

    records: the sidecars of the volumes that are replaced, as they were when the command began.
    warnings: on volumes in the folder, logged before the first is computed.
    """

    steps: Steps
    device: torch.device
    records: dict[Path, dict]
    warnings: list[str]
    left_out: LeftOut = field(default_factory=LeftOut)

    def read(self, batch: list[Job]) -> ReadBatch:
        start, jobs, files = time.perf_counter(), [], []
        for job in batch:
            with self.left_out.noting():
                files.append(self.steps.read(job))
                jobs.append(job)
        inputs = self.steps.place(jobs, files) if jobs else None
        return ReadBatch(jobs, inputs, time.perf_counter() - start)

    def compute(self, batch: list[Job], read: ReadBatch) -> ComputedBatch:
        if not read.jobs:
            return ComputedBatch([], 0.0)
        while self.warnings:  # no earlier: options that no volume can have are refused before
            logger.warning(self.warnings.pop(0))
        start = time.perf_counter()
        results = self.steps.compute(read.jobs, read.inputs)
        seconds = (read.seconds + time.perf_counter() - start) / len(read.jobs)
        return ComputedBatch(list(zip(read.jobs, results, strict=True)), seconds)

    def write(self, batch: list[Job], computed: ComputedBatch) -> list[str]:
        """Write the volumes of a batch; returns the lines to print."""
        lines: list[str] = []
        for index, (job, result) in enumerate(computed.results):
            if index:
                ask()  # a whole batch may take longer than a signal leaves
            record = stored_json(job.sidecar)
            is_changed = record and record != self.records[job.sidecar]
            if is_changed and record.get("settings") != job.settings:
                raise InputError(
                    f"{job.output_dir}: another command has written {job.name} with other settings"
                    " since this one began: give each its own --output-dir"
                )
            write_result(job, result, computed.seconds, self.device)
            lines += result.lines
        return lines


def run_jobs(
    jobs: list[Job],
    output_dir: Path,
    steps: Steps,
    device: torch.device,
    title: str,
    batch_size: int = 1,
    check: Callable[[list[Job]], None] = lambda jobs: None,
    summarize: Callable[[], None] = lambda: None,
) -> None:
    """Write the volumes of all jobs that are not finished, batch by batch; ranks share the jobs.

    check: called on every rank with its jobs before the first volume is made; summarize: on every
    rank when the volumes of all ranks are written. A job whose files cannot be read is left out,
    and an InputError when all others are written.
    """
    check_writable(output_dir)
    message = kept("the volumes that are finished", output_dir)

    def list_unfinished() -> tuple[list[Job], dict[Path, dict], list[str]]:
        unfinished = [job for job in jobs if not job.is_finished()]
        records = {job.sidecar: stored_json(job.sidecar) for job in unfinished}
        lines = [replaced_volumes(unfinished), other_volumes(jobs)] if dist.is_main() else []
        return unfinished, records, [line for line in lines if line]

    # Every rank has its list before the first rank writes.
    unfinished, records, warnings = dist.interruptible(list_unfinished, message)
    rank_jobs = unfinished[dist.rank() :: dist.world_size()]
    check(rank_jobs)
    start = time.perf_counter()
    batches = [rank_jobs[i : i + batch_size] for i in range(0, len(rank_jobs), batch_size)]
    execution = Execution(steps, device, records, warnings)

    def write_volumes() -> None:
        with Progress(title, len(rank_jobs), unit="volume") as progress:

            def report(batch: list[Job], lines: list[str]) -> None:
                for line in lines:
                    print(line)
                progress.update(len(batch))

            overlapped(batches, execution.read, execution.compute, execution.write, report)

    dist.interruptible(write_volumes, message)
    summarize()
    rows = dist.gather_rows([{"message": message} for message in execution.left_out.messages])
    left_out = LeftOut(row["message"] for row in rows)
    dist.together(lambda: left_out.refuse(output_dir, len(unfinished)))
    if dist.is_main():
        seconds = (time.perf_counter() - start) / max(1, len(unfinished))
        finished = len(jobs) - len(unfinished)
        skipped = f", {finished} finished before" if finished else ""
        print(
            f"{output_dir}: {len(unfinished)} volume{'s' * (len(unfinished) != 1)},"
            f" {seconds:.2f} s each{skipped}, peak memory {peak_mb(device):.0f} MB"
        )


def write_result(job: Job, result: Result, seconds: float, device: torch.device) -> None:
    """Write the outputs of a job, then its sidecar, so no sidecar describes an old volume.

    The old sidecar is removed before the first output is replaced, and not earlier: what is
    refused keeps it. seconds: of reading and computing.
    """
    start = time.perf_counter()
    with writing(job.sidecar):
        job.sidecar.unlink(missing_ok=True)
    write_volume(job.image_path, result.finish(), job.format[1])
    record = {
        "source": job.source_name,
        "source_sha256": job.source_digest(),
        "settings": job.settings,
        **result.values,
        "seconds": round(seconds + time.perf_counter() - start, 3),
        "peak_memory_mb": round(peak_mb(device)),
        "device": str(device),
        "tubesynth": tubesynth.__version__,
    }
    write_text(job.sidecar, json.dumps(record, indent=2) + "\n")
