"""Attention bias by distance, -d^2 / (2 (s r)^2), as a scalar product of a few channels.

d is the distance of a voxel at q from a token at p, r the radius of the token, s a scale per head.
With a = 1 / (2 (s r)^2) the bias is -a |q|^2 + 2 a q.p - a |p|^2: the query factors (|q|^2, q, 1)
times the key factors (-a, 2 a p, -a |p|^2). They are additional channels of query and key in fused
attention, so no array of size voxels x tokens is ever stored.

The sum cancels: 90 mm from the center, a radius of 0.5 mm has terms of 30,000 that add up to a bias
of a few, while 16 bits hold three digits. So each factor is split into channels of decreasing
magnitude, 14 channels in all: |q|^2 and -a |p|^2 in three, -a and 2 a p in two. Voxels lie on a
lattice, q = cell * index, and 16 bits hold the index exactly, so `cell` is multiplied into the key
and q needs one channel per axis. -a |p|^2 is computed from the other factors as they are rounded:
rounding then only moves the token, by a thousandth of a millimeter.
"""

import torch
from torch import Tensor

from tubesynth.models.window import Window
from tubesynth.runtime.errors import InputError

CONSTANT = 16.0  # the query stores 1 as 16 and |q|^2 as |q|^2 / 16: no overflow in 16 bits
MASKED = -4096.0  # times CONSTANT, the bias of a masked token: below any score, finite in 16 bits
EXTENT_MM = 256.0  # bound of the coordinates for which the high terms are exact
NARROWEST_MM = 0.25  # lower bound of s r, below which 16 bits overflow
LARGEST_SIDE = 256  # voxels; the indices of a larger lattice are not exact in bf16
# Bits of a high term. In 32 bits the products of two high terms and the sum over all five factors
# are exact, so their cancellation leaves no error; they are summed first.
BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 12, torch.float64: 12}


def bias_channels(dim: int) -> int:
    """14 in three dimensions, 12 in two."""
    return 2 * dim + 8


def lattice(size: tuple[int, ...] | Window, device=None) -> Tensor:
    """(N, dim) float64: the index of every voxel of a grid or of a window of it, counted from the
    center of the grid.
    """
    window = Window.of(size)
    axes = [
        torch.arange(axis.start, axis.stop, dtype=torch.float64, device=device) - (n - 1) / 2
        for n, axis in zip(window.size, window.box, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def query_channels(size: tuple[int, ...] | Window, cell_mm: Tensor, dtype: torch.dtype) -> Tensor:
    """The voxels of a grid with cells of cell_mm (B, dim) -> (B, N, channels)."""
    sides = Window.of(size).size
    if max(sides) > LARGEST_SIDE:
        raise InputError(
            f"the distance bias takes grids of at most {LARGEST_SIDE} cells a side, got"
            f" {'x'.join(map(str, sides))}: choose a smaller resolution"
        )
    index = lattice(size, cell_mm.device)
    square = (index * cell_mm.double()[:, None]).square().sum(-1, keepdim=True) / CONSTANT
    index = index.expand(len(square), -1, -1)
    constant = torch.full_like(square, CONSTANT)
    high, middle, low = _split(square, square.new_full((), EXTENT_MM**2 / CONSTANT), 3, dtype)
    leading = [high, index, constant]
    return torch.cat([*leading, *leading, middle, middle, low, constant], dim=-1).to(dtype)


def key_channels(
    position_mm: Tensor,
    radius_mm: Tensor,
    scale: Tensor,
    mask: Tensor,
    cell_mm: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Tokens -> (B, heads, T, channels); differentiable in the scale.

    position_mm: (B, T, dim) from the center of the grid. radius_mm: (B, T). scale: (heads,),
    positive. mask: (B, T), False for padding, which gets no attention. cell_mm: (B, dim), the same
    as for the queries.
    """
    cell = cell_mm.double()[:, None, None]  # (B, 1, 1, dim)
    width_mm = (scale.double()[:, None] * radius_mm.double()[:, None]).clamp_min(NARROWEST_MM)
    a = (0.5 / width_mm.square())[..., None]  # (B, heads, T, 1)
    power = torch.exp2(torch.frexp(a.detach()).exponent.double())  # the next power of two
    cell_power = torch.exp2(torch.frexp(cell).exponent.double())
    product = 2 * a * cell * position_mm.double()[:, None]
    a_terms = _split(-CONSTANT * a, CONSTANT * power, 2, dtype)
    product_terms = _split(product, 2 * EXTENT_MM * cell_power * power, 2, dtype)
    a = sum(a_terms) / -CONSTANT
    rounded_mm = sum(product_terms) / (2 * a * cell)  # the position after rounding
    square = (-a * rounded_mm.square().sum(-1, keepdim=True)) / CONSTANT
    square_terms = _split(square, EXTENT_MM**2 / CONSTANT * power, 3, dtype)
    channels = torch.cat(
        [
            *(a_terms[0], product_terms[0], square_terms[0]),
            *(a_terms[1], product_terms[1], square_terms[1]),
            *(a_terms[0], a_terms[1], a_terms[0], square_terms[2]),
        ],
        dim=-1,
    )
    masked = channels.new_full((1,), CONSTANT * MASKED)
    padding = constant_channels(masked, cell.shape[-1], dtype)[0]
    return torch.where(mask[:, None, :, None], channels.to(dtype), padding)


def constant_channels(bias: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """A key with the same bias (heads,) for every voxel -> (heads, channels)."""
    value = bias.double()[:, None] / CONSTANT
    high, middle, low = _split(value, torch.ones_like(value), 3, dtype)
    zeros = value.new_zeros(len(bias), dim + 1)
    channels = [zeros, high, zeros, middle, zeros[:, :3], low]
    return torch.cat(channels, dim=-1).to(dtype)


def _split(x: Tensor, bound: Tensor, count: int, dtype: torch.dtype) -> list[Tensor]:
    """float64 x -> `count` float64 terms that dtype represents exactly; their sum is x, rounded.

    bound: a power of two above |x|. All terms but the last are whole multiples of a power of two
    that follows from the bound. The gradient passes through the last term.
    """
    exact, terms = x.detach(), []
    unit, remainder = bound * 2.0 ** -BITS[dtype], exact
    for _ in range(count - 1):
        terms.append((torch.round(remainder / unit) * unit).to(dtype).double())
        remainder = remainder - terms[-1]
        unit = unit * 2.0 ** -(BITS[dtype] + 1)
    low = remainder.to(dtype).double()
    return [*terms, low + (x - exact) if x.requires_grad else low]
