"""Stage 3: a ControlNet on a frozen stage-2 model, trained on noised latents with its objective.

The checkpoint holds all that sampling needs: ControlNet, base model, autoencoder. Averaged and
trained weights share one copy of the base.
"""

from tubesynth.build.checkpoint import Checkpoint
from tubesynth.build.networks import build_network
from tubesynth.config.schema import Stage3Config
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.training.inputs import Volumes
from tubesynth.training.latent import LatentStage
from tubesynth.training.latents import EncodedSplits


class ControlStage(LatentStage):
    """Stage 3 for the training loop: stage 2 with a frozen U-Net and a trained ControlNet.

    base: the checkpoint of control.base; `latents` must have its latent scale.
    """

    def __init__(
        self, config: Stage3Config, volumes: Volumes, latents: EncodedSplits, base: Checkpoint
    ):
        autoencoder = latents.autoencoder
        network = build_network(config, autoencoder.embedding_dim, autoencoder.factor)
        assert isinstance(network, ControlledUNet)
        network.base.load_state_dict(base.weights())
        network.controlnet.copy_from(network.base)
        super().__init__(config, volumes, latents, network)
        if swa := self.phases[0].swa:
            swa.module.base = network.base  # as every Ema has it
