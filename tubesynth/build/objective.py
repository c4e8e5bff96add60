"""The training objective of stages 2 and 3 from a config: flow matching or diffusion."""

from tubesynth.config.schema import Stage2Config
from tubesynth.generative.diffusion import Diffusion
from tubesynth.generative.flow import FlowMatching
from tubesynth.generative.objective import Objective


def build_objective(config: Stage2Config) -> Objective:
    if config.latent_mode == "flow":
        flow = config.flow
        return FlowMatching(
            sigma_min=flow.sigma_min,
            norm=flow.loss,
            time_sampling=flow.time_sampling,
            time_mean=flow.time_mean,
            time_std=flow.time_std,
            time_shift=flow.time_shift,
            coupling=flow.coupling,
            offset_noise=flow.offset_noise,
        )
    diffusion = config.diffusion
    return Diffusion(
        schedule=diffusion.schedule,
        num_timesteps=diffusion.num_timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        prediction=diffusion.prediction,
        zero_terminal_snr=diffusion.zero_terminal_snr,
        norm=diffusion.loss,
    )
