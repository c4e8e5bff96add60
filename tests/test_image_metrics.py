"""Image metrics against scikit-image, a reference written from the papers, and known scores."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from tubesynth.metrics.image import (
    PSNR_CAP_DB,
    image_scores,
    mae_hu,
    ms_ssim,
    num_scales,
    psnr,
    ssim,
    ssim_and_ms_ssim,
)


def smooth_pair(shape, seed=0, noise=0.1):
    """Two similar images in [0, 1], (1, 1, ...) tensors."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*[np.linspace(0, 3, n) for n in shape], indexing="ij")
    a = 0.5 + 0.3 * np.prod([np.sin(2 * g + i) for i, g in enumerate(grids)], axis=0)
    a += 0.05 * rng.standard_normal(shape)
    b = a + noise * rng.standard_normal(shape)
    return tuple(torch.from_numpy(np.clip(x, 0, 1)).float()[None, None] for x in (a, b))


def reference_terms(a, b, data_range):
    """SSIM and contrast-structure maps by equations 12 to 16 of Wang et al. 2004, in float64 with
    five moments."""
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def moment(x):
        for axis in range(x.ndim):
            x = correlate1d(x, kernel, axis=axis, mode="constant")
        return x[(slice(5, -5),) * x.ndim]

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = moment(a), moment(b)
    variance_a, variance_b = moment(a * a) - mean_a**2, moment(b * b) - mean_b**2
    covariance = moment(a * b) - mean_a * mean_b
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return structure * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), structure


def reference_ms_ssim(a, b, data_range, weights):
    product = 1.0
    for scale, weight in enumerate(weights):
        similarity, structure = reference_terms(a, b, data_range)
        last = scale == len(weights) - 1
        product *= (similarity if last else structure).mean() ** weight
        a, b = (halve(x) for x in (a, b))
    return product


def halve(x):
    for axis in range(x.ndim):
        if x.shape[axis] % 2:
            x = np.concatenate([x, np.take(x, [-1], axis)], axis)
        even, odd = (np.take(x, np.arange(k, x.shape[axis], 2), axis) for k in (0, 1))
        x = (even + odd) / 2
    return x


def arrays(*tensors):
    return [t[0, 0].double().numpy() for t in tensors]


@pytest.mark.parametrize("shape", [(65, 48), (40, 33, 30), (11, 12, 45)])
@pytest.mark.parametrize("data_range", [1.0, 2000.0])
def test_ssim_and_psnr_agree_with_scikit_image(shape, data_range):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = (x * data_range for x in smooth_pair(shape))
    gaussian = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    expected = structural_similarity(*arrays(a, b), data_range=data_range, **gaussian)
    assert 0.1 < expected < 0.95
    assert ssim(a, b, data_range)[0] == pytest.approx(expected, abs=1e-5)
    decibels = peak_signal_noise_ratio(*arrays(a, b), data_range=data_range)
    assert psnr(a, b, data_range)[0] == pytest.approx(decibels, abs=1e-4)


@pytest.mark.parametrize(("shape", "scales"), [((170, 163), 5), ((97, 101), 4), ((45, 42, 41), 3)])
def test_ms_ssim_agrees_with_the_papers_formula_also_with_fewer_scales(shape, scales):
    a, b = smooth_pair(shape)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    expected = reference_ms_ssim(*arrays(a, b), 1.0, weights / weights.sum())
    assert num_scales(shape) == scales
    assert ms_ssim(a, b, 1.0)[0] == pytest.approx(expected, abs=1e-5)


def test_five_scales_need_more_than_160_voxels():
    assert [num_scales((n, 300, 300)) for n in (161, 160, 81, 21, 20, 11)] == [5, 4, 4, 2, 1, 1]
    assert num_scales((10, 64, 64)) == 0


def test_identical_images_are_perfect_and_shuffled_ones_are_not():
    a, _ = smooth_pair((32, 32, 32))
    shuffled = a.flatten()[torch.randperm(a.numel(), generator=torch.Generator().manual_seed(0))]
    shuffled = shuffled.reshape(a.shape)
    assert ssim_and_ms_ssim(a, a, 1.0) == ([pytest.approx(1.0)], [pytest.approx(1.0)], None)
    assert (psnr(a, a, 1.0), mae_hu(a, a)) == ([PSNR_CAP_DB], [0.0])
    assert ssim(a, shuffled, 1.0)[0] < 0.1
    assert ms_ssim(a, shuffled, 1.0)[0] < 0.3
    assert psnr(a, shuffled, 1.0)[0] < 20


def test_each_batch_element_is_scored_alone():
    first, second = smooth_pair((20, 20, 20), 0, 0.05), smooth_pair((20, 20, 20), 1, 0.2)
    a, b = (torch.cat(pair) for pair in zip(first, second, strict=True))
    for metric in (psnr, ssim, ms_ssim):
        together = metric(a, b, 1.0)
        alone = [metric(*first, 1.0)[0], metric(*second, 1.0)[0]]
        assert together == pytest.approx(alone, abs=1e-6)


def test_scores_by_class_are_means_over_the_voxels_of_each_class():
    a, b = smooth_pair((24, 26, 40))
    labels = torch.zeros(24, 26, 40, dtype=torch.uint8)
    labels[:, 6:15, 6:30], labels[8:, 15:22, 5:33] = 1, 3
    scores = image_scores(a[0, 0], b[0, 0], (0.0, 1.0), labels, 5)
    similarity, _ = reference_terms(*arrays(a, b), 1.0)
    for k in (1, 3):
        inner = (labels == k)[5:-5, 5:-5, 5:-5].numpy()
        difference = (a - b)[0, 0][labels == k].double()
        decibels = -10 * math.log10(difference.square().mean().item())
        assert scores[f"ssim_class{k}"] == pytest.approx(similarity[inner].mean(), abs=1e-5)
        assert scores[f"psnr_class{k}"] == pytest.approx(decibels, abs=1e-4)
        assert scores[f"mae_hu_class{k}"] == pytest.approx(difference.abs().mean().item(), rel=1e-6)
    assert scores["psnr"] == pytest.approx(psnr(a, b, 1.0)[0], abs=1e-4)
    assert not {name for name in scores if name.endswith(("class0", "class2", "class4"))}


def test_image_scores_are_of_images_clipped_to_the_window_and_mae_is_in_hu():
    real = torch.full((16, 16, 16), 3000.0)
    other = torch.full((16, 16, 16), 800.0)
    labels = torch.zeros(16, 16, 16, dtype=torch.uint8)
    labels[4:12, 4:12, 4:12] = 8
    other[labels == 8] = 600.0
    scores = image_scores(real, other, (-1000, 1000), labels, 9)
    share = 512 / 4096
    assert scores["mae_hu"] == pytest.approx(200 * (1 - share) + 400 * share, rel=1e-5)
    assert scores["mae_hu_class8"] == pytest.approx(400, rel=1e-5)
    assert scores["psnr_class8"] == pytest.approx(20 * math.log10(2000 / 400), rel=1e-5)
    assert "mae_hu_class1" not in scores


def test_a_slice_thinner_than_the_window_has_no_ssim_but_has_psnr():
    thin = torch.zeros(1, 1, 32, 32, 5)
    assert math.isnan(ssim(thin, thin, 1.0)[0]) and math.isnan(ms_ssim(thin, thin, 1.0)[0])
    scores = image_scores(torch.zeros(32, 32, 5), torch.full((32, 32, 5), 20.0), (-1000, 1000))
    assert set(scores) == {"psnr", "mae_hu"}
    assert scores["psnr"] == pytest.approx(40, abs=1e-3)


def test_scores_do_not_change_under_autocast():
    a, b = smooth_pair((24, 24, 24))
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(a, b, 1.0)
    assert inside == ssim(a, b, 1.0)
