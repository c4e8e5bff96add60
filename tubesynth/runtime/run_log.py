"""The files of a run: config, environment, metrics.jsonl, timing.jsonl, train.log and panels.

metrics.jsonl holds one JSON object a line: {"step", "epoch", "split", names...}; a value that is
not finite is null. It is the same for a run that was resumed and one that was not; seconds and
memory are in timing.jsonl. Scalars and panels also go to TensorBoard or W&B. Only rank 0 writes.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch

from tubesynth.runtime import dist
from tubesynth.runtime.atomic import save_png, write_text, writing
from tubesynth.runtime.environment import environment
from tubesynth.runtime.loggers import TensorBoard, WeightsAndBiases
from tubesynth.runtime.reading import fits, json_lines


class RunLog:
    """Writes the scalars and panels of a run on rank 0, and nothing on other ranks."""

    def __init__(
        self,
        run_dir: Path,
        config_text: str,
        logger: str,
        resume_step: int,
        device: torch.device | None = None,
        repeats_validation: bool = False,
    ):
        """resume_step: that of the run's own checkpoint; -1 for a new run, which keeps none.

        repeats_validation: whether the run begins with the validation of that step: a killed life
        may have written its line, but no checkpoint after it.
        """
        self.active = dist.is_main()
        self.logger = None
        if not self.active:
            return
        self.run_dir = run_dir
        with writing(run_dir):
            (run_dir / "panels").mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.yml", config_text)
        write_text(run_dir / "environment.json", json.dumps(environment(device), indent=2) + "\n")
        for path in (self._file("training"), self._file("timing")):
            _drop_lines_after(path, resume_step, repeats_validation)
        if logger == "tensorboard":
            self.logger = TensorBoard(run_dir, resume_step)
        elif logger == "wandb":
            self.logger = WeightsAndBiases(run_dir, config_text)

    def _file(self, split: str) -> Path:
        return self.run_dir / ("timing.jsonl" if split == "timing" else "metrics.jsonl")

    def scalars(self, step: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """split: training, validation or timing."""
        if not self.active:
            return
        path = self._file(split)
        with writing(path), open(path, "a", encoding="utf-8") as file:
            finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
            line = {"step": step, "epoch": epoch, "split": split, **finite}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self.logger:
            self.logger.scalars(step, {f"{split}/{name}": v for name, v in values.items()})

    def panel(self, step: int, name: str, picture: np.ndarray) -> None:
        """picture: (H, W, 3) uint8."""
        if not self.active:
            return
        save_png(self.run_dir / "panels" / f"{name}_step{step:07d}.png", picture)
        if self.logger:
            self.logger.panel(step, name, picture)

    def close(self) -> None:
        if self.logger:
            self.logger.close()


def _drop_lines_after(path: Path, step: int, repeats_validation: bool) -> None:
    """Drop the lines of steps after the checkpoint, and that of a validation which is repeated."""
    if not path.exists():
        return
    rows = json_lines(path, "move it away, or choose another run folder")
    retained = []
    for line, row in rows:
        if fits(row, {"step": int}) and row["step"] <= step:
            is_repeated = row["step"] == step and row.get("split") == "validation"
            if not (repeats_validation and is_repeated):
                retained.append(line + "\n")
    write_text(path, "".join(retained))
