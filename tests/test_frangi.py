"""Vesselness: eigenvalues, exact derivatives, and its response to tubes, plates and balls."""

import numpy as np
import pytest
import torch

from tubesynth.metrics.frangi import (
    _eigenvalues,
    _filters,
    _hessian,
    against_shell,
    shell_of,
    vesselness,
)

SPACING = (0.7, 0.7, 1.05)


def grid(shape=(47, 47, 31), spacing=SPACING):
    """x, y, z in mm from the center."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return np.meshgrid(*axes, indexing="ij")


def soft(inside_mm):
    """400 HU where inside_mm > 0, -80 outside, with an edge of about 1 mm."""
    return -80 + 480 / (1 + np.exp(-4 * inside_mm))


def mask_of(index, shape):
    mask = np.zeros(shape, dtype=bool)
    mask[index] = True
    return mask


def test_closed_form_eigenvalues_agree_with_lapack():
    matrices = torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(0))
    matrices = matrices + matrices.transpose(1, 2)
    hessian = [matrices[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    expected = torch.linalg.eigvalsh(matrices.double()).flip(1)
    assert torch.stack(_eigenvalues(*hessian), 1).double() == pytest.approx(expected, abs=2e-5)


def test_derivatives_of_a_parabola_are_exact_in_mm():
    x, y, z = grid((41, 41, 41))
    image = torch.from_numpy(3 * x * x - 2 * y * y + z * z + 4 * x * y - x * z + 2 * y * z).float()
    sigma = 1.5
    filters, around = _filters(image.shape, SPACING, sigma), (slice(18, 22),) * 3
    hessian = [h[2, 2, 2].item() / sigma**2 for h in _hessian(image, filters, around)]
    assert hessian == pytest.approx([6, -4, 2, 4, -1, 2], abs=0.02)


def test_a_tube_has_a_response_and_a_plate_a_ball_and_a_dark_tube_have_little():
    x, y, z = grid()
    line = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)  # a tube across the voxels' diagonal
    tube = soft(1.2 - np.hypot(line[1], z))
    plate, ball = soft(1.2 - np.abs(z)), soft(1.2 - np.sqrt(x * x + y * y + z * z))
    center = tuple(n // 2 for n in x.shape)
    responses = [vesselness(hu, SPACING)[center] for hu in (tube, plate, ball, 320 - tube)]
    assert responses[0] > 0.6
    assert vesselness(tube, SPACING, where=mask_of(center, x.shape)) == pytest.approx(responses[:1])
    assert max(responses[1:]) < 0.3 * responses[0]


def test_the_response_is_strongest_on_the_axis_and_at_the_scale_of_the_tube():
    x, y, z = grid()
    thin, thick = soft(0.7 - np.hypot(y, z)), soft(2.4 - np.hypot(y, z))
    response = vesselness(thick, SPACING)[23]
    peak = np.array(np.unravel_index(response.argmax(), response.shape))
    assert np.abs((peak - [23, 15]) * [0.7, 1.05]).max() < 1.2
    center = (23, 23, 15)
    assert vesselness(thin, SPACING, [0.8])[center] > vesselness(thin, SPACING, [3.0])[center]
    assert vesselness(thick, SPACING, [2.4])[center] > vesselness(thick, SPACING, [0.6])[center]


def scores_against_shell(hu, mask):
    """Vesselness inside a mask against its shell."""
    box, shell = shell_of(mask, SPACING)
    response = vesselness(hu[box], SPACING)
    return against_shell(response[mask[box]], response[shell])


def test_an_erased_vessel_has_no_contrast_to_its_shell():
    x, y, z = grid()
    noise = np.random.default_rng(0).normal(0, 15, x.shape)
    mask = np.hypot(y, z) < 1.2
    visible = scores_against_shell(soft(1.2 - np.hypot(y, z)) + noise, mask)
    erased = scores_against_shell(-80 + noise, mask)
    assert visible["vesselness_auc"] > 0.97
    assert visible["vesselness"] > 5 * visible["vesselness_shell"]
    assert erased["vesselness_auc"] == pytest.approx(0.5, abs=0.06)
    assert erased["vesselness"] < 0.1 * visible["vesselness"]
    assert shell_of(np.zeros_like(mask), SPACING) == (None, None)
