"""The precision of the networks: what auto stands for, and what 16 bits leave of a CT."""

from dataclasses import replace

import pytest
import torch
from networks import labelled_inputs, small_unet

from tubesynth import Pipeline
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.precision import resolved
from tubesynth.training.resume import find_checkpoint, with_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [(CPU, True, "32"), (GPU, True, "bf16-mixed"), (GPU, False, "32")],
)
def test_auto_is_bf16_on_a_gpu_that_has_it(device, has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert resolved("auto", device) == expected
    assert resolved("16-mixed", device) == "16-mixed"


def test_a_run_keeps_the_precision_that_it_began_with(stage_1, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    checkpoint = Checkpoint.load(stage_1)  # trained on a CPU
    assert checkpoint.config.train.precision == "32"
    config = replace(checkpoint.config, train=replace(checkpoint.config.train, precision="auto"))
    run_dir = checkpoint.path.parent.parent

    def trained(config, checkpoint, run_dir) -> str:
        return with_precision(config, checkpoint, run_dir, GPU).train.precision

    assert trained(config, checkpoint, run_dir) == "32"
    assert trained(config, None, run_dir) == "bf16-mixed"
    assert trained(config, checkpoint, tmp_path) == "bf16-mixed"  # a new run that starts from it
    asked = replace(config, train=replace(config.train, precision="16-mixed"))
    assert trained(asked, checkpoint, run_dir) == "16-mixed"
    assert find_checkpoint(None, run_dir, config)
    with pytest.raises(InputError, match="precision: 32 in its checkpoint, 16-mixed in this"):
        find_checkpoint(None, run_dir, asked)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_the_voxels_of_a_ct_are_not_rounded_to_16_bits(precision):
    """In bf16 the values of soft tissue, about 0.52 of a window of 2,000 HU, are 8 HU apart."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    pipeline = Pipeline.load("heart-phantom", device=CPU, precision=precision)
    latents = torch.randn(1, pipeline.autoencoder.embedding_dim, 4, 4, 4)
    with torch.no_grad(), pipeline.codec.autocast():
        image = pipeline.autoencoder.decode(latents)
    assert image.dtype == torch.float32
    assert (image != image.to(dtype)).float().mean() > 0.9


def test_the_velocity_is_not_rounded_to_16_bits():
    unet = small_unet()
    x, t, spacing, conditions = labelled_inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        velocity = unet(x, t, spacing, conditions)
    assert velocity.dtype == torch.float32
    assert (velocity != velocity.bfloat16()).float().mean() > 0.9
