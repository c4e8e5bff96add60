"""A training step of any stage, on a random batch of its config's sizes.

Forward, losses, backward, clipping, optimizers and averages; the loader is not measured. flops are
those of the convolutions and matrix products of one step (torch.utils.flop_counter), and
tflops_per_second is their number over the time. --set takes the settings of a config, e.g.
train.precision=bf16-mixed train.checkpointing=false.
"""

from pathlib import Path
from types import SimpleNamespace

from parts.measure import result, significant
from parts.options import add_device, add_repeats, check_options

CASES = ("step",)
FACTOR, LATENT_CHANNELS = 4, 8  # of the published autoencoder


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--config", type=Path, required=True)
    text = "settings on top of the config's"
    add("--set", nargs="+", default=[], metavar="key=value", dest="overrides", help=text)
    add("--tokens", type=int, default=1000, help="vessel tokens of a case; default 1000")
    add_repeats(parser, 5, "steps")
    add_device(parser)


def check(args) -> None:
    check_options(args, "tokens", "repeats")
    config_of(args)


def config_of(args):
    from tubesynth.config.loading import load_config

    return load_config(args.config, args.overrides)


def run_case(case: str, args) -> dict:
    import torch
    from parts.turns import device_name, device_of, in_turns
    from torch.utils.flop_counter import FlopCounterMode

    config, device = config_of(args), device_of(args.device)
    step, _ = training_step(config, args.tokens, device)
    step()  # the optimizers' moments
    with FlopCounterMode(display=False) as counter:
        step()
    (measured,) = in_turns([step], args.repeats, device)
    shape, train = config.data.crop or config.data.resolution, config.train
    flops = counter.get_total_flops()
    return result(
        "step",
        case,
        measured,
        f"{config.data.batch_size} x {'x'.join(map(str, shape))}",
        device=device_name(device),
        threads=torch.get_num_threads(),
        config=str(args.config),
        settings=args.overrides,
        precision=train.precision,
        checkpointing=train.checkpointing,
        flops=flops,
        tflops_per_second=significant(flops / measured.seconds / 1e12),
    )


def training_step(config, tokens: int, device):
    """A function of one optimizer step of every phase on the same batch, and its stage."""
    import torch

    from tubesynth.training.loop import training_step

    torch.manual_seed(0)
    make = {1: autoencoder_stage, "segmenter": segmenter_stage}.get(config.stage, latent_stage)
    stage, batch = make(config, tokens, device)

    def step():  # a later phase reads what an earlier one stored in the batch
        micro_batch = dict(batch)
        for phase in stage.phases:
            training_step(phase, [micro_batch], 0, config.train)

    return step, stage


def random_case(config, tokens: int, device) -> dict:
    """What a batch of every stage has: labels, spacing, and tokens where the config has a step."""
    import torch

    data = config.data
    cases, shape = data.batch_size, tuple(data.crop or data.resolution)
    batch = {
        "label": torch.randint(config.labels.num_classes, (cases, *shape), dtype=torch.uint8),
        "spacing": torch.tensor(data.spacing).expand(cases, -1),
    }
    batch = {name: values.to(device) for name, values in batch.items()}
    if data.token_step_mm:
        extent = batch["spacing"][:, None] * torch.tensor(shape, device=device)
        position = extent * (torch.rand(cases, tokens, len(shape), device=device) - 0.5)
        ones = torch.ones(cases, tokens, device=device)
        batch["tokens"] = {
            "position_mm": position,
            "radius_mm": ones,
            "tangent": torch.zeros_like(position),
            "root_distance_mm": ones,
            "mask": ones.bool(),
        }
    return batch | {"sample_index": list(range(cases))}


def autoencoder_stage(config, tokens: int, device):
    import torch

    from tubesynth.build.checkpoint import Position
    from tubesynth.training.autoencoder import AutoencoderStage

    batch = random_case(config, tokens, device)
    shape = batch["label"].shape
    batch["image"] = torch.rand(shape, device=device)[:, None]
    if config.data.token_step_mm:
        batch["image_fields"] = torch.rand((shape[0], 2, *shape[1:]), device=device)
    return AutoencoderStage(config, None, Position(step=10**9), device), batch


def segmenter_stage(config, tokens: int, device):
    import torch

    from tubesynth.training.segmentation import SegmentationStage

    batch = random_case(config, tokens, device)
    batch["image"] = torch.rand(batch["label"].shape, device=device)[:, None]
    return SegmentationStage(config, None, device), batch


def latent_stage(config, tokens: int, device):
    import torch

    from tubesynth.build.networks import build_network
    from tubesynth.models.controlnet import ControlledUNet
    from tubesynth.training.latent import LatentStage

    batch = random_case(config, tokens, device)
    cases, *shape = batch["label"].shape
    size = [n // FACTOR for n in shape]
    batch["latent"] = torch.randn(cases, LATENT_CHANNELS, *size, device=device)
    if config.data.token_step_mm:
        batch["fields"] = torch.rand(cases, 2, *size, device=device)
    network = build_network(config, LATENT_CHANNELS, FACTOR)
    sizes = SimpleNamespace(embedding_dim=LATENT_CHANNELS, factor=FACTOR)
    stage = LatentStage(config, None, SimpleNamespace(autoencoder=sizes, device=device), network)
    if isinstance(network, ControlledUNet):
        network.controlnet.copy_from(network.base)
        for ema in stage.phases[0].averages:
            ema.module.base = network.base
    return stage, batch
