"""A phase of training: a module, what it minimises, and what is kept to step it and to go on.

The raw module, which is saved, averaged and sampled from, is never compiled or wrapped: its names
and its evaluation stay what they are, and only steps run through the forward module.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tubesynth.config.schema import TrainConfig, half_lives
from tubesynth.runtime.ema import Ema

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank of a weight


@dataclass
class Phase:
    """One module and what it minimises: loss(forward module, batch) -> named, weighted terms.

    The loss calls the forward module (the DDP wrapper, where there is one) exactly once, or gives
    no terms where the phase has not begun.
    """

    name: str
    module: nn.Module
    loss: Callable[[nn.Module, dict], dict[str, Tensor]]
    learning_rate: float
    ema_half_life: float | list[float] | None = None
    # What is logged of it besides the losses, over the steps since it was asked last; called on
    # every rank, the same on all.
    statistics: Callable[[], dict[str, float]] = dict

    forward: nn.Module = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    averages: list[Ema] = field(init=False)

    @property
    def ema(self) -> Ema | None:
        """The average to score and to sample from."""
        return self.averages[0] if self.averages else None

    def place(self, device: torch.device, train: TrainConfig) -> None:
        """Move to the device; make what belongs to the module: wrapper, optimiser, scaler, EMAs."""
        self.module.to(device).train()
        if train.channels_last:  # convolutions follow the layout of their weights
            for parameter in self.module.parameters():
                if parameter.ndim in CHANNELS_LAST:
                    layout = CHANNELS_LAST[parameter.ndim]
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        self.forward = torch.compile(self.module) if train.compile else self.module
        if torch.distributed.is_initialized():
            # Buffers (codebook statistics) are kept equal by the modules themselves.
            known = inspect.signature(DistributedDataParallel).parameters
            name = "forward_sync_buffers"  # since torch 2.13
            name = name if name in known else "broadcast_buffers"
            devices = [device.index] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(
                self.forward, device_ids=devices, **{name: False}
            )
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trainable, lr=self.learning_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "16-mixed")
        self.averages = [Ema(self.module, steps) for steps in half_lives(self.ema_half_life)]

    def state(self) -> dict:
        return {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": {ema.half_life: ema.module.state_dict() for ema in self.averages},
        }

    def load(self, state: dict, with_optimiser: bool) -> None:
        self.module.load_state_dict(state["module"])
        for ema in self.averages:  # one that was not kept before starts from the weights
            ema.module.load_state_dict(state["ema"].get(ema.half_life, state["module"]))
        if with_optimiser:
            self.optimiser.load_state_dict(state["optimiser"])
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
