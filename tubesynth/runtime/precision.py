"""The autocast type of each mixed precision of train.precision; 32 has none."""

from contextlib import AbstractContextManager, nullcontext

import torch

AUTOCAST_DTYPE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which networks compute in this precision."""
    dtype = AUTOCAST_DTYPE.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
