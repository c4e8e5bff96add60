"""Writes a folder of volumes case by case: shared by all ranks, resumable, each file atomic.

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
from typing import get_args

import torch

import tubesynth
from tubesynth.config.schema import Config, Precision
from tubesynth.data.digest import source_digest
from tubesynth.inference.sampling import Tile
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import write_text, writing
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import Progress
from tubesynth.runtime.memory import peak_mb
from tubesynth.runtime.reading import stored_json
from tubesynth.runtime.stop_signal import kept
from tubesynth.volume.centreline_file import SUFFIX
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that reconstruct and synthesize share."""
    add = parser.add_argument
    add("--resolution", type=int, nargs="+", metavar="N", help="voxels x y z; default: trained")
    add("--spacing", type=float, nargs="+", metavar="MM", help="mm x y z; default: trained")
    choices = get_args(Precision)
    add(
        "--label-map",
        nargs="*",
        metavar="VALUE=CLASS",
        help="classes of the label maps' values, e.g. 1=3 2=7, in place of data.label_map; none:"
        " the values are classes",
    )
    add("--precision", default="32", choices=choices, help="precision of the networks")
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
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--tile {text}: expected auto, none, or a number of voxels")
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
    """One volume to write: OUT/name.img.nii.gz or .png, with its sidecar OUT/name.json."""

    name: str
    source: Path | None  # None: synthesized from noise alone
    settings: dict  # plain values that decide the voxels
    other_outputs: tuple[Path, ...] = ()  # further paths that a finished job has
    format: tuple[str, str] = (".nii.gz", "int16")  # see output_format


def sidecar(output_dir: Path, job: Job) -> Path:
    return output_dir / f"{job.name}.json"


def is_finished(output_dir: Path, job: Job) -> bool:
    """Whether all outputs of a job exist and its sidecar has its source and settings."""
    record = stored_json(sidecar(output_dir, job))
    if (record.get("source"), record.get("settings")) != (source_name(job), job.settings):
        return False
    outputs = (image_path(output_dir, job), *job.other_outputs)
    if not all(path.exists() for path in outputs):
        return False
    return record.get("source_sha256") == digest_of(job.source)


def digest_of(source: Path | None) -> str | None:
    """SHA-256 of a source's bytes; None without a source."""
    return None if source is None else source_digest(source)


def source_name(job: Job) -> str | None:
    return None if job.source is None else str(job.source)


def image_path(output_dir: Path, job: Job) -> Path:
    return output_dir / f"{job.name}.img{job.format[0]}"


def label_path(output_dir: Path, name: str, suffix: str) -> Path:
    return output_dir / "labels" / f"{name}.label{suffix}"


def centreline_path(output_dir: Path, name: str) -> Path:
    return output_dir / "centrelines" / f"{name}{SUFFIX}"


def process_folder(output_dir: Path, name: str) -> Path:
    return output_dir / "process" / name


def run_jobs(
    jobs: list[Job],
    output_dir: Path,
    process: Callable[[list[Job]], list[tuple[Volume, dict]]],
    device: torch.device,
    title: str,
    batch_size: int = 1,
    check: Callable[[list[Job]], None] = lambda jobs: None,
) -> None:
    """Write the volumes of all jobs that are not finished, batch by batch; ranks share the jobs.

    process: returns, for each job of a batch, the volume (HU) and further values for its sidecar.
    check: called on every rank with its jobs before the first volume is made.
    """
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    message = kept("the volumes that are finished", output_dir)
    # Every rank has its list before the first rank writes.
    unfinished = dist.interruptible(
        lambda: [job for job in jobs if not is_finished(output_dir, job)], message
    )
    rank_jobs = unfinished[dist.rank() :: dist.world_size()]
    check(rank_jobs)
    start = time.perf_counter()

    def write_volumes() -> None:
        with Progress(title, len(rank_jobs), unit="volume") as progress:
            for first in range(0, len(rank_jobs), batch_size):
                batch = rank_jobs[first : first + batch_size]
                process_batch(batch, output_dir, process, device)
                progress.update(len(batch))

    dist.interruptible(write_volumes, message)
    if dist.is_main():
        seconds = (time.perf_counter() - start) / max(1, len(unfinished))
        finished = len(jobs) - len(unfinished)
        skipped = f", {finished} finished before" if finished else ""
        print(
            f"{output_dir}: {len(unfinished)} volumes, {seconds:.2f} s each{skipped}, peak memory"
            f" {peak_mb(device):.0f} MB"
        )


def remove_sidecars(batch: list[Job], output_dir: Path) -> None:
    """Before the first output of a batch is replaced, and not earlier: what is refused keeps them.

    `process` calls it where it writes outputs besides the volume.
    """
    for job in batch:
        with writing(output_dir):
            sidecar(output_dir, job).unlink(missing_ok=True)


def process_batch(
    batch: list[Job],
    output_dir: Path,
    process: Callable[[list[Job]], list[tuple[Volume, dict]]],
    device: torch.device,
) -> None:
    """Write the volumes of a batch, then their sidecars, so no sidecar describes an old volume."""
    start = time.perf_counter()
    results = process(batch)
    remove_sidecars(batch, output_dir)
    for job, (volume, _) in zip(batch, results, strict=True):
        write_volume(image_path(output_dir, job), volume, job.format[1])
    seconds = round((time.perf_counter() - start) / len(batch), 3)
    for job, (_, values) in zip(batch, results, strict=True):
        record = {
            "source": source_name(job),
            "source_sha256": digest_of(job.source),
            "settings": job.settings,
            **values,
            "seconds": seconds,
            "peak_memory_mb": round(peak_mb(device)),
            "device": str(device),
            "tubesynth": tubesynth.__version__,
        }
        write_text(sidecar(output_dir, job), json.dumps(record, indent=2) + "\n")
