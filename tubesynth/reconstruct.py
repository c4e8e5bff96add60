r"""CT -> autoencoder -> CT: the upper limit of the image quality of all later stages.

    tubesynth reconstruct --input-dir CTS --output-dir OUT \
        --model runs/stage_1_3d_f4_full/checkpoints/last.ckpt

A result has the center of its CT and the model's grid (--resolution, --spacing). With
--original-grid it has the grid of the CT, with air outside of the model's field of view.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("reconstruct")  # imports this file as tubesynth.reconstruct

import argparse
from pathlib import Path

from tubesynth.data.volumes import TOKEN_FORMAT
from tubesynth.inference.arguments import arguments_as_flags
from tubesynth.inference.jobs import (
    Job,
    add_model_options,
    digest_of,
    output_format,
    run_jobs,
    tile_option,
)
from tubesynth.inference.label_maps import label_map_of
from tubesynth.pipeline import Pipeline
from tubesynth.runtime import dist
from tubesynth.runtime.errors import CommandParser, InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels
from tubesynth.volume.grid import Volume
from tubesynth.volume.hounsfield import read_ct
from tubesynth.volume.resample import resample_image


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth reconstruct",
        description="Pass CTs through a trained autoencoder.",
        example="tubesynth reconstruct --input-dir CTS --labels LABELS --output-dir OUT"
        " --model runs/heart_stage_1/checkpoints/last.ckpt",
    )
    add = parser.add_argument
    add("--input-dir", type=Path, required=True, metavar="DIR", help="folder of CT volumes")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="folder of the results")
    add(
        "--model",
        type=Path,
        required=True,
        metavar="CKPT|NAME",
        help="checkpoint of any stage, or the name of a packaged model",
    )
    add(
        "--labels",
        "--label-dir",
        type=Path,
        metavar="DIR",
        help="folder of the CTs' label maps, for a decoder conditioned on the anatomy",
    )
    add("--original-grid", action="store_true", help="write on the input's grid")
    add_model_options(parser)
    return parser.parse_args(argv)


def find_label_maps(
    args: argparse.Namespace, pipeline: Pipeline, cases: dict[str, Path]
) -> dict[str, Path]:
    """The label map of every case; {} without --labels."""
    if args.labels is None:
        return {}
    if pipeline.autoencoder.condition is None:
        raise InputError(
            f"--labels: the decoder of {args.model} is not conditioned on label maps"
            " (autoencoder.decoder_condition is none): leave it out"
        )
    labels = find_cases(args.labels)
    for case in cases:
        if case not in labels:
            raise InputError(f"--labels {args.labels}: no label map of case {case}: add it")
    return labels


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    cases = find_cases(args.input_dir)
    if args.output_dir.resolve() == args.input_dir.resolve():
        raise InputError(f"--output-dir {args.output_dir}: is the input folder: choose another")
    device = dist.start()
    try:
        tile = tile_option(args.tile)
        pipeline = Pipeline.load(args.model, device=device, precision=args.precision, tile=tile)
        data = pipeline.config.data
        labels = find_label_maps(args, pipeline, cases)
        label_map = label_map_of(pipeline.config, args.label_map)
        settings = {
            "model_digest": pipeline.digest,
            "resolution": list(args.resolution or data.resolution),
            "spacing": args.spacing or data.default_spacing,
            "original_grid": args.original_grid,
            "precision": args.precision,
        }
        jobs = []
        for case, path in cases.items():
            condition = {}
            if labels:
                condition = {"label_sha256": digest_of(labels[case]), "token_format": TOKEN_FORMAT}
            if labels and label_map is not None:
                condition["label_map"] = [[value, label_map[value]] for value in label_map]
            written = output_format(pipeline.config)
            jobs.append(Job(case, path, {**settings, **condition}, format=written))

        def reconstruct(batch: list[Job]) -> list[tuple[Volume, dict]]:
            (job,) = batch
            low, high = data.hu_window
            image = read_ct(cases[job.name], pipeline.config.dim, (low, high))
            with arguments_as_flags():
                result = pipeline.reconstruct(
                    image,
                    labels=read_labels(labels[job.name], label_map) if labels else None,
                    spacing=settings["spacing"],
                    resolution=settings["resolution"],
                )
            if args.original_grid:
                result = resample_image(result, image.shape, image.affine, low, (low, high))
            return [(result, {"model": str(args.model)})]

        run_jobs(jobs, args.output_dir, reconstruct, device, "reconstruct")
    finally:
        dist.stop()
