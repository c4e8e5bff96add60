"""A training step waits for the device once, where it reads the norms of its gradients.

On a GPU each such wait leaves it idle until the host has queued the next operations. What waits
there is counted on the CPU: values that are read, and results whose shape depends on values.
"""

from contextlib import contextmanager

import pytest
import torch
from networks import make_ema_quantizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tubesynth.config.loading import load_config
from tubesynth.training.random_step import random_step

STAGE_1 = "data.crop=[16,16,16] autoencoder.channels=[4,4] autoencoder.residual_channels=[4,4]"
STAGE_1 += " autoencoder.codebook_size=16 discriminator.channels=4 discriminator.num_layers=1"
STAGE_2 = "data.resolution=[16,16,16] unet.channels=[16,32] unet.attention_levels=[1]"
STAGE_2 += " unet.head_channels=16 unet.label_channels=[8,8,8] unet.spade_hidden=8"
VESSELS = f"{STAGE_2} unet.vessel_levels=[1] unet.dropout=0.1 flow.vessel_weight=3"
PUBLISHED = "data.resolution=[16,16,16] unet.channels=[32,96] unet.attention_levels=[1]"
PUBLISHED += " unet.head_channels=96 unet.label_channels=[8,8,8] unet.vessel_channels=97"
STAGES = [
    ("stage_1_3d_f4", f"{STAGE_1} losses.adversarial_weighting=adaptive"),
    ("stage_1_3d_f4", f"{STAGE_1} autoencoder.decoder_condition=labels data.token_step_mm=1"),
    ("stage_2_3d_f4_lfm_crossattn", VESSELS),
    ("as_published/stage_1_3d_f4", STAGE_1),
    ("as_published/stage_2_3d_f4_lfm_crossattn", PUBLISHED),
    ("stage_2_3d_f4_ddpm_base", STAGE_2),
    ("stage_3_3d_f4_controlnet", f"{STAGE_2} train.checkpointing=true"),
    ("segment_vessels", "data.crop=[8,8,8] segmenter.channels=[4,8] train.precision=16-mixed"),
]
SHAPED_BY_VALUES = {"nonzero", "bincount", "masked_select", "_unique2"}


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1:2])
        )
        if name in SHAPED_BY_VALUES | {"_local_scalar_dense"} or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paused(self):
        """Adam's numbers of steps are on the host, or in one kernel with the rest."""
        found = list(self.found)
        yield
        self.found = found


def counted(waits: Waits, monkeypatch) -> None:
    """Count Tensor.tolist too, once and not by its elements."""
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda x: waits.found.append("tolist") or tolist(x))


def test_a_revival_waits_for_the_numbers_of_codes_and_of_finite_vectors_alone(monkeypatch):
    torch.manual_seed(0)
    quantizer, waits = make_ema_quantizer(8, 2, revive_after=1), Waits()
    quantizer(torch.randn(1, 2, 2, 1, 1))  # the codes start from the first batch
    counted(waits, monkeypatch)
    before = quantizer.codebook.clone()
    with waits:
        quantizer(torch.randn(1, 2, 2, 1, 1))
    assert (quantizer.codebook != before).any(1).sum() >= 6  # two vectors use two codes at most
    assert waits.found == ["tolist", "index", "tolist"]  # of codes, of vectors, of all ranks'


@pytest.mark.parametrize(("config", "overrides"), STAGES)
def test_ten_steps_wait_ten_times_at_most(config, overrides, monkeypatch):
    config = load_config(config, [*overrides.split(), "data.batch_size=2"])
    step, stage = random_step(config, torch.device("cpu"), tokens=40)
    step()  # the codes of a codebook start from its first batch
    waits = Waits()
    for phase in stage.phases:

        def unwatched(*args, inner=phase.optimizer.step):
            with waits.paused():
                inner(*args)

        monkeypatch.setattr(phase.optimizer, "step", unwatched)
    counted(waits, monkeypatch)
    with waits:
        for _ in range(10):
            step()
    assert waits.found == ["tolist"] * 10
