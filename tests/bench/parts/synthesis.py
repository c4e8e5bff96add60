"""Synthesis of CTs by the networks of a config, with random weights: sampling and decoding.

One line for each size, number of evaluations and precision: the product's own Pipeline, Euler's
method, a label map of one ball and vessels of one token each. seconds are those of a whole batch,
decode_seconds of one CT.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path

from parts.measure import significant
from parts.options import add_device, add_repeats, add_settings, check_options

CASES = ("synthesis",)
FACTOR, LATENT_CHANNELS = 4, 8  # of the published autoencoder


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--config", type=Path, required=True, help="stage 2, flow matching")
    add_settings(parser, "the config's")
    add("--sizes", type=voxels, nargs="+", metavar="XxYxZ", help="default: the config's")
    add("--evaluations", type=int, nargs="+", default=[1, 2, 4, 10, 30])
    add("--tokens", type=int, default=1000)
    add("--batch-size", type=int, default=1, help="CTs that are sampled together")
    add("--precision", nargs="+", choices=("32", "bf16-mixed", "16-mixed"), default=["32"])
    add_repeats(parser, 3, "batches")
    add_device(parser)


def check(args) -> None:
    check_options(args, "evaluations", "tokens", "batch_size", "repeats")


def voxels(text: str) -> list[int]:
    return [int(side) for side in text.split("x")]


def lines(case: str, args) -> list[tuple]:
    return list(product(args.sizes or [None], args.evaluations, args.precision))


def run_case(
    case: str, args, resolution: list[int] | None, evaluations: int, precision: str
) -> dict:
    import torch
    from parts.turns import device_of, in_turns, result_on

    from tubesynth.conditioning.request import SampleRequest
    from tubesynth.config.loading import load_config
    from tubesynth.pipeline import SampleOptions

    config, device = load_config(args.config, args.overrides), device_of(args.device)
    if resolution:
        config = replace(config, data=replace(config.data, resolution=resolution))
    pipeline = random_pipeline(config, device, precision)
    labels, vessels = ball(config), random_vessels(config, args.tokens)
    requests = [
        SampleRequest(labels, torch.Generator().manual_seed(i), vessels)
        for i in range(args.batch_size)
    ]
    size = [n // FACTOR for n in config.data.resolution]
    latents = torch.randn(1, LATENT_CHANNELS, *size, device=device)

    def sample():
        pipeline.sample_batch(requests, options)

    @torch.no_grad()
    def decode():
        with pipeline.codec.autocast():
            pipeline.autoencoder.decode(latents)

    options = SampleOptions(solver="euler", steps=evaluations)
    measured, decoded = in_turns([sample, decode], args.repeats, device)
    return result_on(
        device,
        measured,
        f"{args.batch_size} x {'x'.join(map(str, config.data.resolution))}, {precision}",
        config=str(args.config),
        settings=args.overrides,
        precision=precision,
        evaluations=evaluations,
        decode_seconds=significant(decoded.seconds),
        seconds_per_case=significant(measured.seconds / args.batch_size),
    )


def random_pipeline(config, device, precision):
    """The networks of a stage-2 config, and the published autoencoder, without any training."""
    import torch

    from tubesynth.build.networks import build_autoencoder, build_network
    from tubesynth.config.schema import Stage1Config
    from tubesynth.models.scale import LatentScale
    from tubesynth.pipeline import Pipeline

    torch.manual_seed(0)
    autoencoder = build_autoencoder(Stage1Config(stage=1, data=config.data))
    unet = build_network(config, LATENT_CHANNELS, FACTOR)
    scale = LatentScale(torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS))
    return Pipeline(config, autoencoder, unet, scale, "random", device, precision)


def ball(config):
    """A label map whose middle is of class 1."""
    import numpy as np

    from tubesynth.volume.grid import Volume, centered_affine

    shape = config.data.resolution
    axes = np.ogrid[tuple(slice(-1, 1, complex(n)) for n in shape)]
    array = (sum(axis**2 for axis in axes) < 0.25).astype(np.uint8)
    return Volume(array, centered_affine(shape, config.data.spacing))


def random_vessels(config, num_tokens: int):
    """Balls anywhere in the field of view; None where the config has no tokens."""
    import numpy as np

    from tubesynth.volume.vessels import COLUMNS, VesselTokens

    if config.data.token_step_mm is None:
        return None
    sides_mm = np.multiply(config.data.resolution, config.data.spacing)
    table = np.zeros((num_tokens, len(COLUMNS)))
    table[:, :3] = sides_mm * (np.random.default_rng(0).random((num_tokens, 3)) - 0.5)
    table[:, 3:5] = 1.0  # radius in mm, tangent along x
    table[:, COLUMNS.index("branch")] = np.arange(num_tokens)  # tubes would cross the whole volume
    return VesselTokens.from_array(table)
