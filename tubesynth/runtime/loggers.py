"""Where scalars and pictures are shown besides metrics.jsonl and panels/: TensorBoard or W&B.

Both take the same names: <split>/<score> and the name of a panel. A class is made on rank 0 alone.
"""

import importlib.util
import os
import secrets
from pathlib import Path

import numpy as np
import yaml

from tubesynth.runtime.errors import InputError

LOGGERS = ("tensorboard", "wandb", "none")


def require_logger(name: str) -> None:
    """InputError where a logger's package is missing: at the start, before anything is done."""
    if name == "wandb":
        found = importlib.util.find_spec("wandb")
        if found is None or found.origin is None:  # a folder of that name is no package
            raise InputError(
                "--logger wandb: the package wandb is not installed: pip install 'tubesynth[wandb]'"
                " or pip install wandb, or take --logger tensorboard"
            )


class TensorBoard:
    """Events in the run folder; those after resume_step are hidden, as they will come again."""

    def __init__(self, run_dir: Path, resume_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run_dir), purge_step=resume_step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def panel(self, step: int, name: str, picture: np.ndarray) -> None:
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A W&B run, whose id stays in the run folder: a resumed run goes on in the same one.

    WANDB_MODE=offline works without network and account; WANDB_PROJECT names the project. Steps are
    a column of their own, since W&B refuses its own counter to go back: steps that a killed run
    does again are shown twice, at the same place and with the same values.
    """

    def __init__(self, run_dir: Path, config_text: str):
        import wandb

        id_file = run_dir / "wandb_run_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "tubesynth"),
                name=run_dir.resolve().name,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                dir=run_dir,
                config=yaml.safe_load(config_text),
            )
        except wandb.errors.Error as error:
            raise InputError(
                f"--logger wandb: {error}: wandb login, or set WANDB_MODE=offline"
            ) from error
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def panel(self, step: int, name: str, picture: np.ndarray) -> None:
        import wandb

        self.run.log({"step": step, name: wandb.Image(picture)})

    def close(self) -> None:
        self.run.finish()
