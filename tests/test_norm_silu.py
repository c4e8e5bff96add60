"""norm_silu is SiLU of a scaled and shifted group norm, and stores nothing but its arguments."""

import pytest
import torch
from networks import autograd_norm_silu
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from tubesynth.models.norm_silu import norm_silu

GRID = (5, 6, 7)


def arguments(modulated: tuple[str, ...], affine: bool, dtype=torch.float64):
    """A norm, its input, and modulations: of every voxel ("map") or everywhere the same ("row")."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8, eps=1e-6, affine=affine).to(dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    sizes = {"map": GRID, "row": (1, 1, 1)}
    x = 3 + 2 * torch.randn(2, 8, *GRID, dtype=dtype)
    modulations = [torch.randn(2, 16, *sizes[kind], dtype=dtype) for kind in modulated]
    return norm, [tensor.requires_grad_() for tensor in (x, *modulations)]


ARGUMENTS = [((), True), (("row",), True), (("map",), False), (("map", "row"), False)]


@pytest.mark.parametrize(("modulated", "affine"), ARGUMENTS)
def test_values_and_gradients_are_those_of_autograd(modulated, affine):
    norm, inputs = arguments(modulated, affine)
    leaves = [*inputs, *norm.parameters()]
    weight = torch.randn(2, 8, *GRID, dtype=torch.float64)
    results = []
    for function in (norm_silu, autograd_norm_silu):
        out = function(norm, *inputs)
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for found, wanted in zip(*results, strict=True):
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def stored_bytes(work) -> int:
    """The bytes of the tensors that a forward pass stores for the backward pass, each once."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = work()  # alive, so that no address is used again
    assert out.requires_grad
    return sum(sizes.values())


def test_only_the_arguments_are_stored():
    norm, inputs = arguments(("map", "row"), False)
    own = stored_bytes(lambda: norm_silu(norm, *inputs))
    assert own == sum(tensor.nbytes for tensor in inputs)
    assert stored_bytes(lambda: autograd_norm_silu(norm, *inputs)) > 1.6 * own


def test_a_frozen_modulation_gets_no_gradient_and_the_others_theirs():
    norm, (x, maps, film) = arguments(("map", "row"), False)
    expected = torch.autograd.grad(norm_silu(norm, x, maps, film).sum(), film)
    norm_silu(norm, x.detach(), maps.detach(), film).sum().backward()
    assert maps.grad is None and x.grad is None
    torch.testing.assert_close(film.grad, expected[0])


def test_in_16_bits_it_computes_in_32_and_returns_the_type_of_a_convolution():
    norm, inputs = arguments(("map", "row"), False, torch.float32)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
    exact = autograd_norm_silu(norm, *(tensor.detach().float() for tensor in half))
    with torch.autocast("cpu", torch.bfloat16):
        out = norm_silu(norm, *half)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16()) or (out.float() - exact).abs().max() < 2**-6
    out.float().sum().backward()
    assert [tensor.grad.dtype for tensor in half] == [torch.bfloat16] * 3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_any_memory_layout_gives_the_same(memory_format):
    norm, (x, maps) = arguments(("map",), False)
    other = x.detach().to(memory_format=memory_format).requires_grad_()
    for each in (x, other):
        norm_silu(norm, each, maps).square().sum().backward()
    torch.testing.assert_close(other.grad, x.grad)
