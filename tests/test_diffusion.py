"""Diffusion against the formulas of its papers, and of Gaussian data in closed form."""

import math

import numpy as np
import pytest
import torch
from networks import make_diffusion

from tubesynth.config.schema import DIFFUSION_SAMPLERS, FLOW_SOLVERS, SamplingConfig
from tubesynth.generative.diffusion import Diffusion, spaced
from tubesynth.generative.ode import FIXED

MEAN, DEVIATION = 1.5, 0.4  # of the Gaussian data


def best_prediction(diffusion: Diffusion):
    """The best network for data N(MEAN, DEVIATION^2), whose E[x_0 | x_t] is linear in x_t."""

    def network(x, t):
        k = round((1 - t[0].item()) * diffusion.num_timesteps) - 1
        a = diffusion.alpha_bar[k].item()
        gain = math.sqrt(a) * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
        data = MEAN + gain * (x - math.sqrt(a) * MEAN)
        eps = (x - math.sqrt(a) * data) / math.sqrt(1 - a)
        if diffusion.prediction == "epsilon":
            return eps
        return math.sqrt(a) * eps - math.sqrt(1 - a) * data

    return network


def sample(diffusion, noise, solver="ddim", seed=0, network=None, **settings):
    sampling = SamplingConfig(solver=solver, **settings)
    random = torch.Generator().manual_seed(seed)
    return diffusion.sample(
        network or best_prediction(diffusion),
        noise,
        sampling,
        lambda: torch.randn(noise.shape, generator=random),
    )


def test_the_names_of_the_config_are_those_of_the_samplers():
    assert FLOW_SOLVERS == (*FIXED, "adams", "dopri5")
    assert DIFFUSION_SAMPLERS == ("ddpm", "ddim")


def test_scaled_linear_betas_are_the_published_ones():
    beta = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    np.testing.assert_allclose(make_diffusion().alpha_bar, np.cumprod(1 - beta), rtol=1e-12)
    assert beta[0] == pytest.approx(0.0015) and beta[-1] == pytest.approx(0.0195)


def test_cosine_follows_its_closed_form_until_betas_are_clipped():
    alpha_bar = make_diffusion(schedule="cosine", num_timesteps=500).alpha_bar.numpy()

    def f(step):
        return np.cos((step / 500 + 0.008) / 1.008 * np.pi / 2) ** 2

    np.testing.assert_allclose(alpha_bar[:-1], f(np.arange(1, 500)) / f(0), rtol=1e-9)
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.001)


@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine"])
def test_zero_terminal_snr_ends_in_noise_and_keeps_the_first_step(schedule):
    plain = make_diffusion(schedule=schedule).alpha_bar
    zero = make_diffusion(schedule=schedule, prediction="v", zero_terminal_snr=True).alpha_bar
    assert zero[-1] == 0 and plain[-1] > 0
    assert zero[0].item() == pytest.approx(plain[0].item(), rel=1e-12)
    assert (zero.diff() < 0).all()
    # affine in sqrt(alpha_bar)
    slope = zero.sqrt().diff() / plain.sqrt().diff()
    np.testing.assert_allclose(slope, slope[0].item(), rtol=1e-9)


def test_timesteps_and_times_are_one_to_one():
    diffusion = make_diffusion(num_timesteps=1000)
    k = torch.arange(1000)
    t = diffusion.time_of(k).float()
    assert torch.equal(diffusion.timestep_of(t), k)
    assert t[-1] == 0 and t[0].item() == pytest.approx(0.999)
    u = (torch.arange(4000) + 0.5) / 4000
    counts = diffusion.timestep_of(diffusion.times(u)).bincount(minlength=1000)
    assert (counts == 4).all()


def test_spaced_timesteps_are_those_of_the_paper():
    """Lin et al. 2024, table 1 of section 3.3, with their 1 .. T counted from zero."""
    assert spaced(1000, 5, "trailing") == [999, 799, 599, 399, 199]
    assert spaced(1000, 5, "leading") == [800, 600, 400, 200, 0]
    assert spaced(1000, 7, "leading") == [857, 714, 571, 428, 285, 142, 0]
    assert spaced(1000, 999, "leading")[0] == 998
    assert spaced(1000, 1000, "trailing") == spaced(1000, 1000, "leading") == [*range(999, -1, -1)]
    assert spaced(1000, 7, "trailing")[0] == 999 and len(set(spaced(1000, 7, "trailing"))) == 7


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_true_prediction_has_no_loss_and_splits_into_data_and_noise(prediction):
    diffusion = make_diffusion(prediction=prediction)
    data, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t = diffusion.times(torch.tensor([0.1, 0.5, 0.9]))
    seen = {}

    def network(x, time):
        k = np.array([100, 500, 900])
        a = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)[k].reshape(3, 1, 1, 1)
        expected = np.sqrt(a) * data.numpy() + np.sqrt(1 - a) * noise.numpy()
        np.testing.assert_allclose(x, expected, atol=1e-5)
        torch.testing.assert_close(time, torch.tensor([0.899, 0.499, 0.099]))
        v = np.sqrt(a) * noise.numpy() - np.sqrt(1 - a) * data.numpy()
        seen["x"], seen["a"] = x, a
        seen["out"] = noise if prediction == "epsilon" else torch.from_numpy(v).float()
        return seen["out"]

    assert diffusion.loss(network, data, noise, t).max() < 1e-10
    for i in range(3):
        sample, eps = diffusion.split(seen["x"][i], seen["out"][i], seen["a"][i].item())
        torch.testing.assert_close(sample, data[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(eps, noise[i], atol=1e-4, rtol=1e-4)
    zero = diffusion.loss(lambda x, t: torch.zeros_like(x), data, noise, t)
    torch.testing.assert_close(zero, seen["out"].square().flatten(1).mean(1))


def posterior_steps(diffusion, noise, timesteps, seed):
    """Ancestral sampling by Ho et al. 2020, eq. 6 and 7, with the betas of the visited steps."""
    alpha_bar = diffusion.alpha_bar.numpy()
    random = torch.Generator().manual_seed(seed)
    network, x = best_prediction(diffusion), noise.numpy()
    for i, k in enumerate(timesteps):
        now = alpha_bar[k]
        after = alpha_bar[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
        alpha = now / after
        beta = 1 - alpha
        t = torch.tensor([1 - (k + 1) / diffusion.num_timesteps])
        out = network(torch.from_numpy(x), t).numpy()
        if diffusion.prediction == "epsilon":
            data = (x - np.sqrt(1 - now) * out) / np.sqrt(now)
        else:
            data = np.sqrt(now) * x - np.sqrt(1 - now) * out
        mean = np.sqrt(after) * beta / (1 - now) * data
        mean = mean + np.sqrt(alpha) * (1 - after) / (1 - now) * x
        variance = (1 - after) / (1 - now) * beta
        x = mean
        if variance > 0:
            x = mean + np.sqrt(variance) * torch.randn(noise.shape, generator=random).numpy()
    return x


@pytest.mark.parametrize(
    ("schedule", "prediction", "zero"),
    [("scaled_linear", "epsilon", False), ("cosine", "v", False), ("scaled_linear", "v", True)],
)
@pytest.mark.parametrize("steps", [10, 200])
def test_ddpm_is_ho_et_als_posterior_on_the_visited_steps(schedule, prediction, zero, steps):
    diffusion = make_diffusion(
        schedule=schedule, num_timesteps=200, prediction=prediction, zero_terminal_snr=zero
    )
    noise = torch.randn(4, 2, dtype=torch.float64)
    result, evaluations = sample(diffusion, noise, "ddpm", seed=3, steps=steps)
    expected = posterior_steps(diffusion, noise, spaced(200, steps, "trailing"), seed=3)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert evaluations == steps


def test_ddim_of_gaussian_data_reaches_the_closed_form():
    """The ODE of DDIM maps the standard normal onto the data's: noise z to MEAN + DEVIATION z."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    settings = dict(schedule="cosine", prediction="v", zero_terminal_snr=True)
    errors = []
    for steps in (50, 100, 200):
        result, evaluations = sample(
            make_diffusion(num_timesteps=200, **settings), noise, steps=steps
        )
        assert evaluations == steps
        errors.append((result - (MEAN + DEVIATION * noise)).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize(("solver", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5)])
def test_samples_have_the_mean_and_deviation_of_the_data(solver, eta):
    diffusion = make_diffusion(
        schedule="cosine", num_timesteps=250, prediction="v", zero_terminal_snr=True
    )
    noise = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(1))
    result, _ = sample(diffusion, noise, solver, steps=250, eta=eta)
    assert result.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert result.std().item() == pytest.approx(DEVIATION, rel=0.03)


def test_eta_of_one_is_ddpm_and_noise_comes_from_the_generator():
    diffusion, noise = make_diffusion(num_timesteps=50), torch.randn(2, 3)
    ddpm, _ = sample(diffusion, noise, "ddpm", seed=1, steps=10)
    assert torch.equal(ddpm, sample(diffusion, noise, "ddim", seed=1, steps=10, eta=1.0)[0])
    assert not torch.equal(ddpm, sample(diffusion, noise, "ddpm", seed=2, steps=10)[0])
    ddim, _ = sample(diffusion, noise, seed=1, steps=10)
    assert torch.equal(ddim, sample(diffusion, noise, seed=2, steps=10)[0])


def test_the_callback_gets_every_step_up_to_the_data():
    diffusion, seen = make_diffusion(num_timesteps=100), []
    sampling = SamplingConfig(solver="ddim", steps=4)
    end, _ = diffusion.sample(
        best_prediction(diffusion),
        torch.randn(1, 2),
        sampling,
        None,
        lambda t, x: seen.append((t.item(), x)),
    )
    assert [t for t, _ in seen] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert torch.equal(seen[-1][1], end)
