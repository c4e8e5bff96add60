"""The convolutions, matrix products and attention of some work, recorded and run again alone.

What is recorded are the calls of the kernels themselves, forward and backward, with the sizes,
strides and types of their tensors; between them is nothing of the work that called them. So it is
what a step would take if all else were free.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

KERNELS = ("convolution", "mm", "scaled_dot_product")  # parts of names: addmm, bmm too


class TensorLike(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def allocate(self) -> torch.Tensor:
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        values = torch.full((last + 1,), 0.01, dtype=torch.float32, device=self.device)
        return values.to(self.dtype).as_strided(self.shape, self.stride)


class Recorder(TorchDispatchMode):
    """Keeps (operator, arguments, keyword arguments) of every kernel, with TensorLike tensors."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(kernel in name for kernel in KERNELS):
            self.calls.append((func, *tree_map(_without_values, (args, kwargs or {}))))
        return func(*args, **kwargs or {})


def _is_tensor_like(x) -> bool:
    return isinstance(x, TensorLike)  # a tuple, which tree_map would go into


def _without_values(x):
    if not isinstance(x, torch.Tensor):
        return x
    return TensorLike(tuple(x.shape), x.stride(), x.dtype, x.device)


def kernels_alone(work: Callable[[], None]) -> Callable[[], None]:
    """Run work() once; a function of its kernels in their order, on tensors of the same sizes.

    Tensors of one size are one tensor, so it takes less memory than work() and no time for them.
    """
    with Recorder() as recorder:
        work()
    tensors: dict[TensorLike, torch.Tensor] = {}

    def with_values(x):
        if not isinstance(x, TensorLike):
            return x
        if x not in tensors:
            tensors[x] = x.allocate()
        return tensors[x]

    calls = [tree_map(with_values, call, is_leaf=_is_tensor_like) for call in recorder.calls]

    def run() -> None:
        with torch.no_grad():
            for operator, args, kwargs in calls:
                operator(*args, **kwargs)

    return run
