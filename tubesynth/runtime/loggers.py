"""Writers of scalars and pictures besides metrics.jsonl and panels/: TensorBoard and W&B.

Both use the same names: <split>/<score> for a scalar, and the panel's name for a picture. Only rank
0 has a writer.
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
    """InputError if the package of a logger is missing; called before a run starts."""
    if name == "wandb":
        package = importlib.util.find_spec("wandb")
        if package is None or package.origin is None:  # a folder named wandb has no origin
            raise InputError(
                "--logger wandb: the package wandb is not installed: pip install 'tubesynth[wandb]'"
                " or pip install wandb, or use --logger tensorboard"
            )


class TensorBoard:
    """Event files in the run folder; events after resume_step are hidden: the run repeats them."""

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
    """A W&B run; its id is stored in the run folder, so that a resumed run continues the W&B run.

    WANDB_MODE=offline works without network and account; WANDB_PROJECT names the project. The step
    is logged as a separate value, because W&B's counter cannot decrease: steps that a killed run
    repeats appear twice, with equal values.
    """

    def __init__(self, run_dir: Path, config_text: str):
        import wandb  # pyright: ignore[reportMissingImports]: an optional package

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
        import wandb  # pyright: ignore[reportMissingImports]: an optional package

        self.run.log({"step": step, name: wandb.Image(picture)})

    def close(self) -> None:
        self.run.finish()
