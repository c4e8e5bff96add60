"""SiLU of a group norm whose output is scaled and shifted: all of a residual block but its
convolutions.

The backward pass computes the maps between input and output again. Autograd would store up to six
of them, each as large as the input, and in 32 bits even where the convolutions have 16.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tubesynth.models.blocks import computing_type

aten: Any = torch.ops.aten


def norm_silu(norm: nn.GroupNorm, x: Tensor, *modulations: Tensor) -> Tensor:
    """silu(m_n(... m_1(norm(x)))) of x (R, C, X, ...), with m(h) = h (1 + scale) + shift.

    modulations: scale and shift of each m, (R, 2 C, X, ...) or the same everywhere (R, 2 C, 1,
    ...). Computed in 32 bits; the output has the type of a convolution's input.
    """
    sizes = (computing_type(x), norm.num_groups, norm.eps)
    return _NormSilu.apply(*sizes, x, norm.weight, norm.bias, *modulations)


def _wide(x: Tensor) -> Tensor:
    """x in at least 32 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _NormSilu(torch.autograd.Function):
    """norm_silu, which stores its arguments alone."""

    @staticmethod
    def forward(ctx, dtype, groups, eps, x, weight, bias, *modulations):
        ctx.groups, ctx.eps = groups, eps
        ctx.save_for_backward(x, weight, bias, *modulations)
        h = F.group_norm(_wide(x), groups, weight, bias, eps)
        for modulation in modulations:
            scale, shift = modulation.chunk(2, dim=1)
            h.addcmul_(h, scale).add_(shift)
        return F.silu(h, inplace=True).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, bias, *modulations = ctx.saved_tensors
        needed = ctx.needs_input_grad
        wide = _wide(x).contiguous()
        sizes = (*x.shape[:2], x[0, 0].numel(), ctx.groups)
        *maps, mean, inverse_std = aten.native_group_norm(wide, weight, bias, *sizes, ctx.eps)
        for modulation in modulations:
            scale, shift = modulation.chunk(2, dim=1)
            maps.append(torch.addcmul(maps[-1], maps[-1], scale).add_(shift))

        gradient = aten.silu_backward(gradient.to(wide.dtype), maps.pop())
        gradients = []  # of the modulations, the last one first
        for modulation, is_needed in zip(reversed(modulations), reversed(needed[6:]), strict=True):
            before = maps.pop()
            gradients.append(_of_modulation(gradient, before, modulation) if is_needed else None)
            del before
            gradient.addcmul_(gradient, modulation.chunk(2, dim=1)[0])
        of_norm = aten.native_group_norm_backward(
            gradient.contiguous(), wide, mean, inverse_std, weight, *sizes, list(needed[3:6])
        )
        of_x = None if of_norm[0] is None else of_norm[0].to(x.dtype)
        return (None, None, None, of_x, *of_norm[1:], *reversed(gradients))


def _of_modulation(gradient: Tensor, before: Tensor, modulation: Tensor) -> Tensor:
    """The gradient of scale and shift, by that of before (1 + scale) + shift."""
    size = (*before.shape[:2], *modulation.shape[2:])
    parts = ((gradient * before).sum_to_size(size), gradient.sum_to_size(size))
    return torch.cat([part.to(modulation.dtype) for part in parts], dim=1)
