"""Working through a folder case by case: shared by all ranks, resumable, nothing half-written.

Beside every volume lies a JSON sidecar with the file, its bytes' SHA-256 and the settings that it
was made from, and what it cost. A case whose sidecar has those asked for is finished and skipped;
one made from others is made again.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import tubesynth
from tubesynth.data.digest import source_digest
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import write_text, writing
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.memory import peak_mb
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that reconstruct and synthesize share."""
    add = parser.add_argument
    add("--resolution", type=int, nargs="+", metavar="N", help="voxels x y z; default: trained")
    add("--spacing", type=float, nargs="+", metavar="MM", help="mm x y z; default: trained")
    precisions = ["32", "bf16-mixed", "16-mixed"]
    add("--precision", default="32", choices=precisions, help="of the networks")
    add(
        "--tile",
        default="auto",
        metavar="VOXELS",
        help="side of the autoencoder's tiles: voxels, auto (fits the memory) or none",
    )


def tile_option(text: str) -> int | str | None:
    """The value of --tile: auto, none, or voxels a side."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--tile {text}: expected auto, none, or a number of voxels")
    return int(text)


@dataclass(frozen=True)
class Job:
    """One volume to be written: OUT/name.img.nii.gz, with OUT/name.json beside it."""

    name: str
    source: Path | None  # None: made from noise alone
    settings: dict  # plain values that decide the voxels
    beside: tuple[Path, ...] = ()  # what `make` writes too: without these it is not finished


def sidecar(output_dir: Path, job: Job) -> Path:
    return output_dir / f"{job.name}.json"


def is_finished(output_dir: Path, job: Job) -> bool:
    try:
        record = json.loads(sidecar(output_dir, job).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict):
        return False
    same = (record.get("source"), record.get("settings")) == (source_name(job), job.settings)
    written = (image_path(output_dir, job), *job.beside)
    if not same or not all(path.exists() for path in written):
        return False
    return record.get("source_sha256") == digest_of(job.source)


def digest_of(source: Path | None) -> str | None:
    """SHA-256 of a volume's bytes; None for none."""
    return None if source is None else source_digest(source)


def source_name(job: Job) -> str | None:
    return None if job.source is None else str(job.source)


def image_path(output_dir: Path, job: Job) -> Path:
    return output_dir / f"{job.name}.img.nii.gz"


def run_jobs(
    jobs: list[Job],
    output_dir: Path,
    make: Callable[[list[Job]], list[tuple[Volume, dict]]],
    device: torch.device,
    title: str,
    batch_size: int = 1,
) -> None:
    """Make what is missing, batch by batch; `make` returns the volume (HU) of each job and what to
    add to its sidecar.
    """
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not is_finished(output_dir, job)]
    dist.barrier()  # all ranks have looked before the first one writes
    mine = missing[dist.rank() :: dist.world_size()]
    started = time.perf_counter()
    quiet = None if dist.is_main() else True
    with tqdm(total=len(mine), desc=title, unit="volume", disable=quiet) as bar:
        for batch in (mine[i : i + batch_size] for i in range(0, len(mine), batch_size)):
            began = time.perf_counter()
            for job in batch:
                with writing(output_dir):  # what it told of is about to go
                    sidecar(output_dir, job).unlink(missing_ok=True)
            made = make(batch)
            for job, (volume, _) in zip(batch, made, strict=True):
                write_volume(image_path(output_dir, job), volume, "int16")
            seconds = round((time.perf_counter() - began) / len(batch), 3)
            for job, (_, extra) in zip(batch, made, strict=True):
                record = {
                    "source": source_name(job),
                    "source_sha256": digest_of(job.source),
                    "settings": job.settings,
                    **extra,
                    "seconds": seconds,
                    "peak_memory_mb": round(peak_mb(device)),
                    "device": str(device),
                    "tubesynth": tubesynth.__version__,
                }
                write_text(sidecar(output_dir, job), json.dumps(record, indent=2) + "\n")
                bar.update()
    dist.barrier()
    if dist.is_main():
        spent = time.perf_counter() - started
        made = f"{len(missing)} volumes, {spent / max(1, len(missing)):.2f} s each"
        skipped = (
            f", {len(jobs) - len(missing)} were there already" if len(jobs) > len(missing) else ""
        )
        print(f"{output_dir}: {made}{skipped}, peak memory {peak_mb(device):.0f} MB")
