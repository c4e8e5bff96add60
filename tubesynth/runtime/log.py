"""What a run leaves behind: config.yml, environment.json, metrics.jsonl, panels, and what a logger
shows of it.

metrics.jsonl holds one JSON object a line, {"step", "epoch", "split", names...}, null for what is
not finite; rank 0 alone writes.
"""

import json
import math
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import tubesynth
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import write_text, writing
from tubesynth.runtime.loggers import TensorBoard, WeightsAndBiases

HERE = Path(__file__).resolve().parent


def git_commit(folder: Path = HERE) -> str | None:
    """The commit of this checkout, with + where files differ from it; None outside a checkout.

    A program installed below somebody else's repository, as in its .venv, is no checkout.
    """

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        return None if done.returncode else done.stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
            return None
        commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "-s", "-uno")
    except FileNotFoundError:
        return None
    return commit and commit + ("+" if changed else "")


def environment() -> dict:
    """What a result depends on besides the config."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "tubesynth": tubesynth.__version__,
        "git_commit": git_commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": gpu or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "world_size": dist.world_size(),
    }


class RunLog:
    """Scalars and pictures of a run; silent on every rank but 0."""

    def __init__(self, run_dir: Path, config_text: str, logger: str, resume_step: int):
        self.active = dist.is_main()
        self.logger = None
        if not self.active:
            return
        self.run_dir = run_dir
        with writing(run_dir):
            (run_dir / "panels").mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.yml", config_text)
        write_text(run_dir / "environment.json", json.dumps(environment(), indent=2) + "\n")
        self.metrics = run_dir / "metrics.jsonl"
        self._forget_after(resume_step)
        if logger == "tensorboard":
            self.logger = TensorBoard(run_dir, resume_step)
        elif logger == "wandb":
            self.logger = WeightsAndBiases(run_dir, config_text)

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that the run, resumed from an earlier checkpoint, will do again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue  # half a line, left by a process that was killed while it wrote
        write_text(self.metrics, "".join(kept))

    def scalars(self, step: int, epoch: int, split: str, values: dict[str, float]) -> None:
        if not self.active:
            return
        with writing(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            known = {name: v if math.isfinite(v) else None for name, v in values.items()}
            line = {"step": step, "epoch": epoch, "split": split, **known}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self.logger:
            self.logger.scalars(step, {f"{split}/{name}": v for name, v in values.items()})

    def panel(self, step: int, name: str, picture: np.ndarray) -> None:
        """picture: (H, W, 3) uint8."""
        if not self.active:
            return
        from tubesynth.runtime.atomic import save_png

        save_png(self.run_dir / "panels" / f"{name}_step{step:07d}.png", picture)
        if self.logger:
            self.logger.panel(step, name, picture)

    def close(self) -> None:
        if self.logger:
            self.logger.close()
