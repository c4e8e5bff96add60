"""A phase of training: one trained module with its loss, optimizer, gradient scaler and averages.

The raw module is saved, averaged and sampled from. It is never compiled or wrapped, so the names of
its weights stay the same; only training steps run through the forward module.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from tubesynth.build.checkpoint import PhaseState, SwaState
from tubesynth.config.schema import TrainConfig, half_lives
from tubesynth.runtime.ema import Ema

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank of a weight


@dataclass
class Phase:
    """One trained module and its loss: loss(forward module, batch) -> named, weighted terms.

    The loss calls the forward module (the DDP wrapper, where there is one) exactly once. It returns
    no terms while the phase has not begun.
    """

    name: str
    module: nn.Module
    loss: Callable[[nn.Module, dict], dict[str, Tensor]]
    learning_rate: float
    ema_half_life: float | list[float] | None = None
    # Further values for the log, over the steps since the last call. Every rank calls it and gets
    # the same values.
    statistics: Callable[[], dict[str, float]] = dict
    counts: Tensor | None = None  # counted by `statistics`; saved, for the next line of the log

    forward: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    averages: list[Ema] = field(init=False)
    swa: AveragedModel | None = field(init=False)  # the loop updates it at the ends of epochs

    @property
    def sampled(self) -> nn.Module:
        """The module that is scored and sampled from, as of PhaseState.weights."""
        if self.swa is not None and self.swa.n_averaged > 0:
            return self.swa.module
        return self.averages[0].module if self.averages else self.module

    def place(self, device: torch.device, train: TrainConfig) -> None:
        """Move the module to the device; make its wrapper, optimizer, scaler and averages."""
        if any(p.device != device for p in self.module.parameters()):  # fake tensors cannot move
            self.module.to(device)
        self.module.train()
        if train.channels_last:  # convolutions follow the layout of their weights
            for parameter in self.module.parameters():
                if parameter.ndim in CHANNELS_LAST:
                    layout = CHANNELS_LAST[parameter.ndim]
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        self.forward = self.module
        if train.compile:
            self.forward = cast(nn.Module, torch.compile(self.module))
        if torch.distributed.is_initialized():
            # The modules themselves synchronize their buffers (codebook statistics).
            arguments = inspect.signature(DistributedDataParallel).parameters
            renamed = "forward_sync_buffers" in arguments  # since torch 2.13
            option: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
            devices = [device.index] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.forward, device_ids=devices, **option)
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(  # fused: one pass over the weights
            trainable, self.learning_rate, eps=train.adam_eps, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "16-mixed")
        self.averages = [Ema(self.module, steps) for steps in half_lives(self.ema_half_life)]
        self.swa = AveragedModel(self.module).eval().requires_grad_(False) if train.swa else None

    def state(self) -> PhaseState:
        epochs = int(self.swa.n_averaged) if self.swa else 0
        return PhaseState(
            self.module.state_dict(),
            self.optimizer.state_dict(),
            self.scaler.state_dict(),
            {ema.half_life: ema.module.state_dict() for ema in self.averages},
            SwaState(epochs, self.swa.module.state_dict()) if self.swa and epochs else None,
        )

    def load(self, state: PhaseState, restart: Collection[str] = ()) -> None:
        """Load weights and averages, and what is not in `restart` (RESTARTS of the schema): the
        mean of train.swa, which counts epochs, and the optimizer with the gradient scaler.

        An EMA copy with a half-life that the checkpoint lacks starts from the weights.
        """
        self.module.load_state_dict(state.module)
        for ema in self.averages:
            ema.module.load_state_dict(state.ema.get(ema.half_life, state.module))
        if self.swa and state.swa and "epochs" not in restart:
            self.swa.module.load_state_dict(state.swa.module)
            self.swa.n_averaged.fill_(state.swa.epochs)
        if "optimizers" not in restart:
            assert state.optimizer is not None
            # Checkpoints of version 0.1.0 and of other devices may name another kernel.
            config = {"fused": True, "eps": self.optimizer.defaults["eps"]}
            groups = [{**group, **config} for group in state.optimizer["param_groups"]]
            self.optimizer.load_state_dict({**state.optimizer, "param_groups": groups})
            for parameter, moments in self.optimizer.state.items():
                for name, moment in moments.items():  # the fused kernel needs the weights' layout
                    if moment.shape == parameter.shape:
                        moments[name] = torch.empty_like(parameter).copy_(moment)
            if state.scaler and self.scaler.is_enabled():
                self.scaler.load_state_dict(state.scaler)
