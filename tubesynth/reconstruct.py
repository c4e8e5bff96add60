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
from dataclasses import dataclass
from pathlib import Path

from tubesynth.data.volumes import TOKEN_FORMAT
from tubesynth.inference.arguments import arguments_as_flags
from tubesynth.inference.jobs import (
    Job,
    Result,
    add_model_options,
    digest_of,
    output_format,
    run_jobs,
    tile_option,
)
from tubesynth.inference.label_maps import label_map_of
from tubesynth.inference.reconstruction import Codec, PlacedImage
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


@dataclass(frozen=True)
class ReconstructionSteps:
    """The steps of run_jobs, with batches of one. labels: the label map of each case, or {}."""

    args: argparse.Namespace
    codec: Codec
    labels: dict[str, Path]
    label_map: dict[int, int] | None
    settings: dict

    def read(self, batch: list[Job]) -> tuple[PlacedImage, Volume]:
        (job,) = batch
        assert job.source is not None
        config, labels = self.codec.grid.config, None
        image = read_ct(job.source, config.dim, self.codec.window)
        if self.labels:
            labels = read_labels(self.labels[job.name], self.label_map)
        with arguments_as_flags():
            on_grid = (self.settings["spacing"], self.settings["resolution"])
            return self.codec.place(image, labels, *on_grid), image

    def compute(self, batch: list[Job], inputs: tuple[PlacedImage, Volume]) -> list[Result]:
        (placed, image), window = inputs, self.codec.window
        with arguments_as_flags():
            volume = self.codec.reconstruct(placed)

        def finish() -> Volume:
            if self.args.original_grid:
                return resample_image(volume, image.shape, image.affine, window[0], window)
            return volume

        return [Result(finish, {"model": str(self.args.model)})]


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

        steps = ReconstructionSteps(args, pipeline.codec, labels, label_map, settings)
        run_jobs(jobs, args.output_dir, steps, device, "reconstruct")
    finally:
        dist.stop()
