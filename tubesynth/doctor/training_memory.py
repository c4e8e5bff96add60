"""The memory of a training step, counted without the device and without its time.

The training loop's own step (training/random_step.py) runs on fake tensors, which have shapes and
types but no bytes, and the bytes of all live tensors are added up: weights, gradients, moments,
averages, activations, temporary results. A step of the published configs on an H200 took 0.97 to
1.01 times the count (docs/gpu.md). The fake tensors are on the CPU, since torch knows them
everywhere; what attention stores, and what autocast computes in 32 bits, is as on a GPU.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tubesynth.config.schema import AutoencoderConfig, Config, Stage1Config, half_lives
from tubesynth.models.quantizers import search
from tubesynth.training.random_step import random_step

PROGRAM = {"cuda": 500e6, "cpu": 300e6}  # Python, torch, the context of a GPU
WORKSPACES = 100e6  # of a GPU's kernels
CPU_SHARE = 1.5  # of activations and temporary results: convolutions copy them to another layout
BLOCK = 512  # a CUDA allocation is rounded up to a multiple of it


@dataclass(frozen=True)
class Estimate:
    """Bytes: all while training, of one checkpoint file, and of the gradients that ranks average
    once a step; FLOPs of one optimizer step.
    """

    training: int
    checkpoint: int
    gradients: int
    parameters: int
    flops: int


def estimate(
    config: Config, autoencoder: AutoencoderConfig | None = None, device_type: str = "cuda"
) -> Estimate:
    """The estimate for one process; autoencoder: of the latents, for stages 2 and 3."""
    changes: dict[str, Any] = {"compile": False}
    if config.train.precision == "16-mixed":  # the same bytes, without a gradient scaler
        changes["precision"] = "bf16-mixed"
    step_config = replace(config, train=replace(config.train, **changes))
    if isinstance(step_config, Stage1Config):  # files of weights have bytes; their maps are small
        step_config = replace(step_config, losses=replace(step_config.losses, perceptual=0.0))
    live = LiveBytes()
    with FakeTensors(), live, as_on_cuda(), warnings.catch_warnings():
        # torch compares the address of a tensor with 0 when it copies one, for averaged weights
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        step, stage = random_step(step_config, torch.device("cpu"), autoencoder=autoencoder)
        for phase in stage.phases:
            step_of_zeros(phase.optimizer)
        live.peak = live.total
        live.flops = 0
        step()
        resident, temporary = live.total, live.peak - live.total
    if device_type == "cpu":
        training = PROGRAM["cpu"] + resident + CPU_SHARE * temporary
    else:
        training = PROGRAM["cuda"] + WORKSPACES + resident + temporary

    parameters = [p for phase in stage.phases for p in phase.module.parameters()]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trainable
    averages = len(half_lives(config.train.ema_half_life)) + (config.train.swa is not None)
    checkpoint = (12 + 4 * averages) * trainable + 4 * frozen
    flops = config.train.accumulate * live.flops
    return Estimate(int(training), checkpoint, 4 * trainable, trainable + frozen, flops)


def step_of_zeros(optimizer: torch.optim.Optimizer) -> None:
    """Make the state of an optimizer, as its first step does."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


class FakeTensors(FakeTensorMode):
    """Tensors without bytes, of which modules can be copied."""

    def __deepcopy__(self, memo) -> "FakeTensors":
        return self


class LiveBytes(TorchDispatchMode):
    """Adds up the storages of all tensors that live, and the FLOPs of products and convolutions.

    Values that the host reads are made up.
    """

    def __init__(self):
        super().__init__()
        self.total = self.peak = self.flops = 0
        self.sizes: dict[int, int] = {}  # by the address of the storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return made_up(args[0])
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = -(-storage.nbytes() // BLOCK) * BLOCK
        self.total += self.sizes[key]
        self.peak = max(self.peak, self.total)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.total -= self.sizes.pop(key)


def made_up(scalar: Tensor) -> bool | int | float:
    """What the host reads of a tensor without bytes: finite gradients, no dead codes."""
    if scalar.dtype == torch.bool:
        return True
    return 1.0 if scalar.is_floating_point() else 0


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Fused attention, norms in 32 bits under autocast and a GPU's code search, on the CPU."""
    functions: dict[str, Any] = {
        "scaled_dot_product_attention": fused_attention,
        "group_norm": _in_float32(F.group_norm),
        "layer_norm": _in_float32(F.layer_norm),
    }
    pairs = search.PAIRS_AT_A_TIME
    with mock.patch.multiple(F, **functions), mock.patch.dict(pairs, cpu=pairs["cuda"]):
        yield


def _in_float32(function: Callable) -> Callable:
    def call(*args):
        with torch.autocast("cpu", enabled=False):
            return function(*[a.float() if isinstance(a, Tensor) else a for a in args])

    return call


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, scale: float | None = None
) -> Tensor:
    """The kernel that a GPU takes: flash, or memory-efficient in 32 bits and for other heads."""
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"attention of {query.dtype}, {key.dtype} and {value.dtype}")
    aten, width = torch.ops.aten, query.shape[-1]
    if query.dtype == torch.float32 or width > 256 or width != value.shape[-1]:
        efficient = aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, None, True, dropout_p, False, scale=scale)[0]
    flash = aten._scaled_dot_product_flash_attention
    return flash(query, key, value, dropout_p, False, False, scale=scale)[0]
