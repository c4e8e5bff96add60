"""A volume that a command writes: its paths, and the JSON sidecar that identifies it.

The sidecar has the volume's source, the SHA-256 of the source's bytes, the settings that decide its
voxels, and its cost. A volume is finished where source and settings of its sidecar are the job's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubesynth.config.schema import Config
from tubesynth.config.strict import flatten
from tubesynth.runtime.reading import stored_json
from tubesynth.volume.centreline_file import SUFFIX
from tubesynth.volume.digest import source_digest


def output_format(config: Config) -> tuple[str, str]:
    """(suffix, type of the voxels) of written images.

    Pictures of gray values are PNG, of 8 bits where the window ends at 255; all others NIfTI in HU.
    """
    low, high = config.data.hu_window
    if config.dim == 3 or low < 0:
        return ".nii.gz", "int16"
    return ".png", "uint8" if high <= 255 else "uint16"


# Settings in which the volumes of one command may differ.
OF_ONE_VOLUME = ("case", "sample", "centreline_sha256", "label_sha256")


@dataclass(frozen=True)
class Job:
    """One volume to write: OUT/name.img.nii.gz or .png, with its sidecar OUT/name.json.

    content: "label" for a label map.
    """

    output_dir: Path
    name: str
    source: Path | None  # the file it is made of; None: synthesized from noise alone
    settings: dict  # plain values that decide the voxels
    other_outputs: tuple[Path, ...] = ()  # further paths that a finished job has
    format: tuple[str, str] = (".nii.gz", "int16")  # see output_format
    content: str = "img"

    @property
    def image_path(self) -> Path:
        return self.output_dir / f"{self.name}.{self.content}{self.format[0]}"

    @property
    def sidecar(self) -> Path:
        return self.output_dir / f"{self.name}.json"

    @property
    def source_file(self) -> Path:
        """The file that the job is made of, where every job of the command has one."""
        assert self.source is not None
        return self.source

    @property
    def source_name(self) -> str | None:
        return None if self.source is None else str(self.source)

    def source_digest(self) -> str | None:
        """SHA-256 of the source's bytes; None without a source."""
        return None if self.source is None else source_digest(self.source)

    def is_finished(self) -> bool:
        """Whether all outputs exist and the sidecar has the job's source and settings."""
        record = stored_json(self.sidecar)
        if (record.get("source"), record.get("settings")) != (self.source_name, self.settings):
            return False
        if not (self.image_path.is_file() and all(path.exists() for path in self.other_outputs)):
            return False
        return record.get("source_sha256") == self.source_digest()


def label_path(output_dir: Path, name: str, suffix: str) -> Path:
    return output_dir / "labels" / f"{name}.label{suffix}"


def centreline_path(output_dir: Path, name: str) -> Path:
    return output_dir / "centrelines" / f"{name}{SUFFIX}"


def process_folder(output_dir: Path, name: str) -> Path:
    return output_dir / "process" / name


def replaced_volumes(jobs: list[Job]) -> str | None:
    """What a command says of finished volumes that it writes again, with the first difference."""
    others = []
    for job in jobs:
        record = stored_json(job.sidecar)
        if record and job.image_path.exists():
            others.append((job, record))
    if not others:
        return None
    job, record = others[0]
    stored, now = ({"settings": each} for each in (record.get("settings"), job.settings))
    then = {"source": record.get("source"), **flatten(stored)}
    now = {"source": job.source_name, **flatten(now)}
    changed = (
        f"{key.removeprefix('settings.')} {changed_text(then.get(key), now.get(key))}"
        for key in {**now, **then}
        if then.get(key) != now.get(key)
    )
    reason = next(changed, "its source or outputs have changed")
    return (
        f"{job.output_dir}: finished volumes that are replaced: {len(others)} ({job.name}:"
        f" {reason})"
    )


def other_volumes(jobs: list[Job]) -> str | None:
    """What a command says of volumes in its folder that others made with other settings."""
    if not jobs:
        return None
    output_dir, sidecars = jobs[0].output_dir, {job.sidecar for job in jobs}
    settings, others = flatten(jobs[0].settings), []
    for path in sorted(output_dir.glob("*.json")) if output_dir.is_dir() else ():
        stored = None if path in sidecars else stored_json(path).get("settings")
        if isinstance(stored, dict):
            then = flatten(stored)
            changed = [k for k in {**settings, **then} if settings.get(k) != then.get(k)]
            if key := next((k for k in changed if k not in OF_ONE_VOLUME), None):
                text = f"{key} {changed_text(then.get(key), settings.get(key))}"
                others.append(f"{path.stem}: {text}")
    if not others:
        return None
    return (
        f"{output_dir}: also holds volumes of another command: {len(others)} ({others[0]});"
        " evaluate reads them too"
    )


def changed_text(then: Any, now: Any) -> str:
    """'was 10 and is 20'; of digests and absent values what a reader can use."""
    texts = [str(value)[:8] if is_digest(value) else value for value in (then, now)]
    if then is None or now is None:
        return "is new" if then is None else "is left out"
    return f"was {texts[0]} and is {texts[1]}"


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
