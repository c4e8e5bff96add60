"""Our DDPM and DDIM against MONAI's schedulers, step for step, on one network and one noise.

    PYTHONPATH=. monai_env/bin/python tests/bench/monai_diffusion.py

Prints a line per setting with the largest difference over the largest value, and ends with code 1
where one is above the tolerance. MONAI keeps its betas in 32 bits, we ours in 64. Its DDPM steps
between neighboring timesteps only, so it is compared on all of them. Its cosine schedule begins a
step early, with no noise at all, and divides by zero there; and it has no zero terminal SNR: for
both it uses our alpha_bar, so only the steps are compared.
"""

import sys
from functools import partial
from types import SimpleNamespace

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from tubesynth.build.objective import build_objective
from tubesynth.config.schema import DiffusionConfig, Stage2Config
from tubesynth.generative.diffusion import Diffusion, spaced

TIMESTEPS = 1000
TOLERANCE = 1e-3
PEER_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction"}
SCHEDULES = [  # schedule, prediction, zero terminal SNR
    ("scaled_linear", "epsilon", False),
    ("scaled_linear", "v", False),
    ("scaled_linear", "v", True),
    ("cosine", "epsilon", False),
    ("cosine", "v", False),
    ("cosine", "v", True),
]
WAYS = [  # solver, steps, eta, timesteps
    ("ddpm", 1000, 1.0, "trailing"),
    ("ddim", 1000, 0.0, "trailing"),
    ("ddim", 50, 0.0, "trailing"),
    ("ddim", 50, 0.0, "leading"),
    ("ddim", 50, 0.7, "leading"),
]


def network(x, t):
    """Any smooth function of state and time."""
    t = t.reshape(-1, 1).to(x.dtype)
    return torch.tanh(0.8 * x + torch.sin(3 * t)) - 0.2 * x.roll(1, dims=1)


def peer_sample(diffusion: Diffusion, sampling, noise):
    settings = dict(clip_sample=False, prediction_type=PEER_PREDICTION[diffusion.prediction])
    settings |= dict(schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195)
    peer = DDPMScheduler if sampling.solver == "ddpm" else DDIMScheduler
    scheduler = peer(num_train_timesteps=TIMESTEPS, **settings)
    if diffusion.schedule == "cosine" or diffusion.zero_terminal_snr:
        before = torch.cat([torch.ones(1), diffusion.alpha_bar[:-1]])
        scheduler.alphas_cumprod = diffusion.alpha_bar.float()
        scheduler.alphas = (diffusion.alpha_bar / before).float()
        scheduler.betas = 1 - scheduler.alphas
    scheduler.set_timesteps(sampling.steps)
    random, x = torch.Generator().manual_seed(0), noise
    options = {} if sampling.solver == "ddpm" else {"eta": sampling.eta}
    for k in spaced(TIMESTEPS, sampling.steps, sampling.timesteps):
        out = network(x, torch.full((len(x),), 1 - (k + 1) / TIMESTEPS))
        x, _ = scheduler.step(out, k, x, generator=random, **options)
    return x


def main() -> None:
    noise = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    good = True
    for schedule, prediction, zero in SCHEDULES:
        settings = DiffusionConfig(
            schedule=schedule,
            num_timesteps=TIMESTEPS,
            prediction=prediction,
            zero_terminal_snr=zero,
        )
        config = Stage2Config(stage=2, latent_mode="diffusion", diffusion=settings)
        diffusion = build_objective(config)
        for solver, steps, eta, timesteps in WAYS:
            if zero and timesteps == "leading":
                continue
            sampling = SimpleNamespace(solver=solver, steps=steps, eta=eta, timesteps=timesteps)
            random = torch.Generator().manual_seed(0)
            new_noise = partial(torch.randn, noise.shape, generator=random)
            ours, evaluations = diffusion.sample(network, noise, sampling, new_noise)
            assert evaluations == steps
            peer = peer_sample(diffusion, sampling, noise)
            difference = ((ours - peer).abs().max() / peer.abs().max()).item()
            good = good and difference < TOLERANCE  # false for nan
            setting = f"{schedule}{', zero SNR' if zero else ''}, {prediction}, {timesteps}"
            print(f"{setting:40}{solver} {steps:5} steps, eta {eta}: {difference:.1e}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
