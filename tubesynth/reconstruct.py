r"""CT -> autoencoder -> CT: the upper limit of the image quality of all later stages.

    tubesynth reconstruct --input-dir CTS --output-dir OUT \
        --model runs/stage_1_3d_f4_full/checkpoints/last.ckpt

A result has the center of its CT and the model's grid (--resolution, --spacing). With
--original-grid it has the grid of the CT (of a NIfTI also the order of its axes), with air outside
of the model's field of view. Of each CT, cut_off in its JSON file is the share of its volume that
lies outside.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("reconstruct")  # imports this file as tubesynth.reconstruct

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from tubesynth.data.volumes import TOKEN_FORMAT
from tubesynth.inference.arguments import arguments_as_flags
from tubesynth.inference.comparison import warn_of
from tubesynth.inference.job import Job, output_format
from tubesynth.inference.label_maps import TRANSLATE_REMEDY, check_none_missing, label_map_of
from tubesynth.inference.options import add_model_options, tile_option
from tubesynth.inference.reconstruction import Codec, PlacedImage
from tubesynth.inference.run_jobs import Result, run_jobs
from tubesynth.pipeline import Pipeline
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import check_apart
from tubesynth.runtime.errors import CommandParser, InputError
from tubesynth.runtime.log import logger
from tubesynth.volume.cases import find_cases
from tubesynth.volume.digest import source_digest
from tubesynth.volume.files import check_labels, check_same_grid, read_labels
from tubesynth.volume.grid import Volume, uncovered
from tubesynth.volume.hounsfield import low_contrast, read_ct, vessel_contrast
from tubesynth.volume.nifti import with_axes_of
from tubesynth.volume.resample import resample_image

MAX_CUT_OFF = 0.1  # share of a CT's volume outside of the field of view that is not named
MAX_PADDED = 0.9  # the share of a model's field of view without an image that is named


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
    text = "write on the input's grid, with air outside of the model's field of view"
    add("--original-grid", action="store_true", help=text)
    add_model_options(parser)
    return parser.parse_args(argv)


def labels_of_cases(
    args: argparse.Namespace, pipeline: Pipeline, cases: dict[str, Path]
) -> dict[str, Path]:
    """The label map of every case; {} without --labels."""
    if args.labels is None:
        if args.label_map is not None:
            raise InputError("--label-map: has no effect without --labels: leave it out")
        return {}
    if pipeline.autoencoder.condition is None:
        raise InputError(
            f"--labels: the decoder of {args.model} is not conditioned on label maps"
            " (autoencoder.decoder_condition is none): leave it out"
        )
    labels = find_cases(args.labels)
    missing = [case for case in cases if case not in labels]
    check_none_missing(f"--labels {args.labels}", "label map", missing)
    return labels


@dataclass(frozen=True)
class Files:
    """What a job reads: a CT, its label map if any, and what is unusual about that."""

    image: Volume
    labels: Volume | None
    unusual: list[str]


@dataclass(frozen=True)
class ReconstructionSteps:
    """The steps of run_jobs, with batches of one. labels: the label map of each case, or {}."""

    args: argparse.Namespace
    pipeline: Pipeline
    labels: dict[str, Path]
    label_map: dict[int, int] | None
    cut_off: list[float] = field(default_factory=list)  # of the results: see uncovered
    unusual: dict[str, list[str]] = field(default_factory=dict)  # of label maps, by case

    @property
    def codec(self) -> Codec:
        return self.pipeline.codec

    def read(self, job: Job) -> Files:
        config, source = self.pipeline.config, job.source_file
        image = read_ct(source, config.dim, self.codec.window)
        if not self.labels:
            return Files(image, None, [])
        path, scheme = self.labels[job.name], config.labels
        labels = read_labels(path, self.label_map)
        check_labels(labels.array, scheme.num_classes, path, TRANSLATE_REMEDY)
        check_same_grid(image, labels, source, path)
        unusual = []
        vessel = labels.array == scheme.vessel
        if not vessel.any():
            name = scheme.describe(scheme.vessel)
            unusual.append(f"no {name} in the label map, so that the decoder renders none")
        elif text := low_contrast(vessel_contrast(image.array, vessel)):
            unusual.append(text)
        with arguments_as_flags():
            comparison = self.pipeline.compare_with_training(labels, **self._grid)
        unusual += comparison.unusual
        self.unusual[job.name] = unusual
        return Files(image, labels, unusual)

    def place(self, batch: list[Job], files: list[Files]) -> tuple[PlacedImage, Files]:
        with arguments_as_flags():
            placed = self.codec.place(files[0].image, files[0].labels, *self._grid.values())
        return placed, files[0]

    def compute(self, batch: list[Job], inputs: tuple[PlacedImage, Files]) -> list[Result]:
        (placed, files), window = inputs, self.codec.window
        (job,), image = batch, files.image
        source = job.source_file
        with arguments_as_flags():
            volume = self.codec.reconstruct(placed)
        padded, cut_off = uncovered(image, volume.shape, volume.affine)
        self.cut_off.append(cut_off)
        if padded > MAX_PADDED:
            voxel = "x".join(f"{s:.3g}" for s in image.spacing)
            files.unusual.append(
                f"{100 * padded:.3g} % of the model's field of view lie outside of the CT: check"
                f" its voxel size, {voxel} mm"
            )
            self.unusual[job.name] = files.unusual

        def finish() -> Volume:
            if not self.args.original_grid:
                return volume
            whole = resample_image(volume, image.shape, image.affine, window[0], window)
            return whole if job.format[0] == ".png" else with_axes_of(whole, source)

        values = {"model": str(self.args.model), "cut_off": round(cut_off, 4)}
        return [Result(finish, values | {"unlike_training": files.unusual})]

    def warn_of_all_ranks(self) -> None:
        rows = dist.gather_rows([{"unusual": self.unusual, "cut_off": self.cut_off}])
        warn_of({case: points for row in rows for case, points in row["unusual"].items()})
        shares = [share for row in rows for share in row["cut_off"]]
        warn_of_field_of_view(shares, self.args.original_grid)

    @property
    def _grid(self) -> dict:
        return {"spacing": self.args.spacing, "resolution": self.args.resolution}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    cases = find_cases(args.input_dir)
    check_apart(args.output_dir, {"input-dir": args.input_dir, "labels": args.labels})
    device = dist.start()
    try:
        tile = tile_option(args.tile)
        pipeline = Pipeline.load(args.model, device=device, precision=args.precision, tile=tile)
        data = pipeline.config.data
        with arguments_as_flags():
            pipeline.grid.preprocessing(args.spacing, args.resolution)
        labels = labels_of_cases(args, pipeline, cases)
        label_map = label_map_of(pipeline.config, args.label_map)
        settings = {
            "model_digest": pipeline.digest,
            "resolution": list(args.resolution or data.resolution),
            "spacing": args.spacing or data.default_spacing,
            "original_grid": args.original_grid,
            "precision": pipeline.precision,
        }
        jobs, written = [], output_format(pipeline.config)
        for case, path in cases.items():
            case_settings = settings.copy()
            if labels:
                case_settings["label_sha256"] = source_digest(labels[case])
                case_settings["token_format"] = TOKEN_FORMAT
                if label_map is not None:
                    case_settings["label_map"] = [[value, label_map[value]] for value in label_map]
            jobs.append(Job(args.output_dir, case, path, case_settings, format=written))

        steps = ReconstructionSteps(args, pipeline, labels, label_map)
        run_jobs(
            jobs, args.output_dir, steps, device, "reconstruct", summarize=steps.warn_of_all_ranks
        )
    finally:
        dist.stop()


def warn_of_field_of_view(shares: list[float], original_grid: bool) -> None:
    """A line if CTs are cut off; shares: of their volumes outside of the model's field of view."""
    low, high = 100 * min(shares, default=0.0), 100 * max(shares, default=0.0)
    if high > 100 * MAX_CUT_OFF:
        share = f"{high:.0f} %" if high - low < 1 else f"{low:.0f} to {high:.0f} %"
        air = ": that part of the results is air" if original_grid else ""
        logger.warning(
            f"the model's field of view cuts off {share} of the CTs{air}; cut_off in a result's"
            " JSON file is its share"
        )
