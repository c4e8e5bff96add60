"""The training objective of stages 2 and 3 from a config: flow matching or diffusion."""

from tubesynth.config.schema import Stage2Config
from tubesynth.generative.diffusion import Diffusion
from tubesynth.generative.flow import FlowMatching
from tubesynth.generative.objective import Objective


def build_objective(config: Stage2Config) -> Objective:
    if config.latent_mode == "flow":
        flow = config.flow
        return FlowMatching(
            flow.sigma_min,
            flow.loss,
            flow.time_sampling,
            flow.time_mean,
            flow.time_std,
            flow.time_shift,
            flow.coupling,
        )
    diffusion = config.diffusion
    return Diffusion(
        diffusion.schedule,
        diffusion.num_timesteps,
        diffusion.beta_start,
        diffusion.beta_end,
        diffusion.prediction,
        diffusion.zero_terminal_snr,
        diffusion.loss,
    )
