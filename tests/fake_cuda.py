"""Training steps at the published sizes and a synthesis on a CUDA device that is not there.

    python tests/fake_cuda.py LIBRARY [tiles]

The product's own code runs on tensors without bytes, in a build of torch without CUDA. LIBRARY is
fake_cuda.cpp, compiled. Operations on tensors of two devices fail as on a GPU. One line of JSON for
each case: the peak of live bytes, what the host has waited for, and the error, if any. With `tiles`
the cases are evaluations of a generator at 512 x 512 x 256 voxels.
"""

import ctypes
import json
import sys
import traceback
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # before torch asks for its devices
    sys.path[:0] = [str(Path(__file__).parent / "bench"), str(Path(__file__).parent.parent)]

import torch
import torch.nn.functional as F
from parts.synthesis import ball, random_pipeline, random_vessels
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map_only

from tubesynth.conditioning import request
from tubesynth.conditioning.model_grid import ModelGrid
from tubesynth.conditioning.request import SampleRequest
from tubesynth.config.loading import load_config
from tubesynth.data.dataset import collate
from tubesynth.doctor.training_memory import (
    FakeTensors,
    LiveBytes,
    fused_attention,
    step_of_zeros,
)
from tubesynth.generative.guidance import GuidanceTerm
from tubesynth.inference import sampling
from tubesynth.inference.synthesis import SampleOptions
from tubesynth.models import norm_silu
from tubesynth.models.conditions import Conditions
from tubesynth.training import autoencoder, latent
from tubesynth.training.random_step import random_step

CUDA = torch.device("cuda", 0)
PLAIN, CHECKPOINTING = "train.checkpointing=false", "train.checkpointing=true"
STEPS = [
    ("stage_1_3d_f4", "32", CHECKPOINTING),
    ("stage_1_3d_f4_full", "bf16-mixed", PLAIN),
    ("stage_2_3d_f4_lfm_base", "bf16-mixed", CHECKPOINTING),
    ("stage_2_3d_f4_lfm_base", "16-mixed", "unet.spade=shared"),
    ("stage_2_3d_f4_lfm_crossattn", "16-mixed", PLAIN),
    ("as_published/stage_1_3d_f4", "16-mixed", PLAIN),
    ("as_published/stage_2_3d_f4_lfm_crossattn", "16-mixed", PLAIN),
    ("stage_3_3d_f4_controlnet", "32", PLAIN),
    ("segment_vessels", "16-mixed", "seed=0"),
]
FINE = "data.resolution=[512,512,256]"
TILED = [("stage_2_3d_f4_lfm_base", FINE, *case) for case in ((None, 12e9), (64, 12e9), (64, 6e9))]
SYNTHESIS = ("stage_2_3d_f4_lfm_crossattn", "bf16-mixed", "data.resolution=[128,128,64]")


class Watch(LiveBytes):
    """Live bytes, and what a GPU waits for: values that are read, and blocking copies.

    Random numbers must be drawn by a generator of the device that they fill.
    """

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.devices: dict[int, str] = {}  # by the seed of a generator

    def generator(self, device, *key) -> torch.Generator:
        """That of runtime/seeding.py; a build without CUDA has generators for the CPU alone."""
        self.devices[len(self.devices)] = torch.device(device).type
        return torch.Generator().manual_seed(len(self.devices) - 1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        on_gpu = any(isinstance(a, Tensor) and a.device.type == "cuda" for a in args)
        if on_gpu and name in ("_local_scalar_dense", "nonzero", "bincount", "masked_select"):
            self.waits[name] += 1
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0].device if name == "copy_" else kwargs.get("device") or source.device
            blocking = not (kwargs.get("non_blocking") or True in args[2:])
            if {source.device.type, torch.device(target).type} == {"cpu", "cuda"} and blocking:
                self.waits[f"copy of {tuple(source.shape)} to {target}"] += 1
        generator = kwargs.get("generator")
        if generator is not None:
            device = torch.device(kwargs.get("device") or "cpu").type
            of_device = self.devices.get(generator.initial_seed(), "cpu")
            assert of_device == device, f"{name} on {device} by a generator on {of_device}"
        return super().__torch_dispatch__(func, types, args, kwargs)


def attention(query, *others, **options):
    assert query.dtype == torch.float32 or query.shape[-1] % 8 == 0, query.shape
    return fused_attention(query, *others, **options)


@contextmanager
def fake_cuda():
    """The Watch of a block in which all tensors are fake."""
    watch = Watch()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
        for module in (autoencoder, latent):
            stack.enter_context(mock.patch.object(module, "generator", watch.generator))
        fake = FakeTensors()
        stack.enter_context(mock.patch.object(request, "collate", faked_batch(fake)))
        stack.enter_context(mock.patch.object(nn.Module, "to", moved))
        # A build without CUDA takes it apart; on a GPU it is one kernel.
        one_kernel = dict(silu_backward=lambda gradient, x: torch.empty_like(x))
        stack.enter_context(mock.patch.multiple(norm_silu.aten, **one_kernel))
        never = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        stack.enter_context(never)
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_: True))
        stack.enter_context(fake)
        stack.enter_context(watch)
        yield watch


def faked_batch(fake: FakeTensors):
    """`collate` of arrays, which have bytes."""

    def call(samples: list[dict]) -> dict:
        with unset_fake_temporarily():
            batch = collate(samples)
        return tree_map_only(Tensor, fake.from_tensor, batch)

    return call


def moved(module: nn.Module, device) -> nn.Module:
    """nn.Module.to for fake tensors."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                data = parameter.detach().to(device)
                part._parameters[name] = nn.Parameter(data, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer if buffer is None else buffer.to(device)
    return module


def training_step(name: str, precision: str, setting: str) -> dict:
    config = load_config(name, [f"train.precision={precision}", setting])
    with fake_cuda() as watch:
        step, stage = random_step(config, CUDA)
        for phase in stage.phases:
            step_of_zeros(phase.optimizer)
        watch.waits.clear()
        watch.peak = watch.total
        step()
        for phase in stage.phases:
            for weight, parameter in phase.module.named_parameters():
                if parameter.requires_grad:  # DistributedDataParallel waits for all gradients
                    assert parameter.grad is not None and parameter.grad.device == CUDA, weight
    return {"peak": watch.peak, "waits": watch.waits}


def synthesis(name: str, precision: str, setting: str) -> dict:
    config = load_config(name, [setting])
    empty = mock.Mock(return_value=None)  # the volume of a decoded image
    with mock.patch.object(ModelGrid, "volume", empty), fake_cuda() as watch:
        with mock.patch.object(sampling, "free_bytes", lambda device: 70 * 2**30):
            model = random_pipeline(config, CUDA, precision)
            watch.waits.clear()
            case = SampleRequest(ball(config), torch.Generator(), random_vessels(config, 5))
            model.sample_batch([case, case], SampleOptions(solver="euler", steps=2))
    return {"peak": watch.peak, "waits": watch.waits}


def evaluation(name: str, setting: str, tile: int | None, gpu_bytes: float) -> dict:
    """The peaks of an evaluation of the generator, which also caches the features of conditions,
    and of a decoding, in 32 bits on a GPU with gpu_bytes.
    """
    config, peaks = load_config(name, [setting]), {}
    with fake_cuda() as watch:
        model = random_pipeline(config, CUDA, "32")
        codec, resolution = model.codec, config.data.resolution
        size = tuple(n // codec.net.factor for n in resolution)
        conditions = Conditions(torch.zeros((1, *resolution), dtype=torch.uint8, device=CUDA))
        spacing, t = torch.ones((1, 3), device=CUDA), torch.ones(1, device=CUDA)
        x = torch.zeros((1, codec.net.embedding_dim, *size), device=CUDA)
        patch = mock.patch.object(sampling, "free_bytes", lambda device: gpu_bytes - watch.total)
        with patch, torch.no_grad(), codec.autocast():
            terms = [GuidanceTerm(label=True, vessels=False, weight=1.0)]
            arguments = (model.unet, conditions, terms, size, spacing, (0.0, 1.0), tile)
            watch.peak = watch.total
            velocity = sampling.guided_velocity(*arguments)
            velocity(x, t)
            peaks["evaluation"] = watch.peak
            del velocity
            watch.peak = watch.total
            codec._decode(x, None)
            peaks["decoding"] = watch.peak
    return peaks


def main() -> None:
    for case in TILED if "tiles" in sys.argv else [*STEPS, SYNTHESIS]:
        try:
            if case in TILED:
                result = evaluation(*case)
            else:
                result = synthesis(*case) if case is SYNTHESIS else training_step(*case)
        except Exception:
            result = {"error": traceback.format_exc()[-3000:]}
        print(json.dumps({"case": case, **result}), flush=True)


if __name__ == "__main__":
    main()
