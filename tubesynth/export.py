"""Write the weights of a checkpoint as one file for inference: .safetensors, without pickle.

    tubesynth export runs/stage_2/checkpoints/last.ckpt --output my_model.safetensors

The file has the averaged weights, the autoencoder of the latents, the base model of stage 3, the
latent scale and the config, and is read wherever a .ckpt is: --model, --segmenter, --resume,
latents.autoencoder, control.base. It has no optimizer and no discriminator: training that starts
from it restarts them.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("export")  # imports this file as tubesynth.export

import argparse
from pathlib import Path

import torch

from tubesynth.build.base_models import with_decoder_of
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.build.checkpoint_file import SAFETENSORS
from tubesynth.runtime.errors import CommandParser, InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth export",
        description="Write the weights of a checkpoint as one .safetensors file for inference.",
        example="tubesynth export runs/stage_2_3d_f4_lfm_base/checkpoints/last.ckpt"
        " --output my_model.safetensors",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint of any stage or of segment train")
    add("--output", type=Path, required=True, metavar="FILE", help="the .safetensors file")
    add(
        "--ema",
        type=float,
        metavar="STEPS",
        help="half-life of the averaged weights; default: those of train.swa, or else the first of"
        " train.ema_half_life",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="float16 halves the file and rounds the weights of layers to 11 bits",
    )
    add(
        "--autoencoder",
        metavar="CKPT",
        help="of stages 2 and 3: with the decoder of this stage 1, which was trained on with"
        " train.frozen_encoder",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.output.suffix != SAFETENSORS:
        raise InputError(f"--output {args.output}: give a name that ends with {SAFETENSORS}")
    checkpoint, replaces = Checkpoint.load(args.checkpoint), args.output.exists()
    for source in (args.checkpoint, args.autoencoder):
        if replaces and source and Path(source).exists() and args.output.samefile(source):
            raise InputError(f"--output {args.output}: is the file that is read: choose another")
    if args.autoencoder is not None:
        checkpoint = with_decoder_of(Checkpoint.load(args.autoencoder, stage=1), checkpoint)
    checkpoint.weights_alone(args.ema, DTYPES[args.dtype]).save(args.output)
    size_mb = args.output.stat().st_size / 1e6
    text = "replaced, " if replaces else ""
    print(f"{args.output}: {text}stage {checkpoint.config.stage}, {args.dtype}, {size_mb:.1f} MB")
