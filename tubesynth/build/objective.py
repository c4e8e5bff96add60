"""The training objective of stages 2 and 3 from a config: flow matching or diffusion."""

from dataclasses import fields

from tubesynth.config.schema import Stage2Config
from tubesynth.generative.diffusion import Diffusion
from tubesynth.generative.flow import FlowMatching
from tubesynth.generative.objective import Objective


def build_objective(config: Stage2Config) -> Objective:
    kind = FlowMatching if config.latent_mode == "flow" else Diffusion
    section = config.objective
    names = [field.name for field in fields(kind) if field.name != "norm"]
    return kind(norm=section.loss, **{name: getattr(section, name) for name in names})
