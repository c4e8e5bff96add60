"""The precision of the networks: 32 bits, or autocast to a type of 16 bits."""

from contextlib import AbstractContextManager, nullcontext

import torch

AUTOCAST_DTYPE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolved(precision: str, device: torch.device) -> str:
    """The precision that auto stands for: bf16-mixed on a GPU that computes in bf16, else 32."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which networks compute in this precision."""
    dtype = AUTOCAST_DTYPE.get(resolved(precision, device))
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
