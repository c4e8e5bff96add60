r"""Synthesize new CTs from label maps with a trained model.

    tubesynth synthesize --model runs/stage_2/checkpoints/last.ckpt --output-dir OUT
    tubesynth synthesize --model last.ckpt --output-dir OUT \
        --input-dir LABELS --num-samples 4 --seed 0

Sample k of case C is C_s<k>.img.nii.gz. It depends on (seed, C, k) alone, so any sample can be
repeated without the others. Its label map, on the same grid, is labels/C_s<k>.label.nii.gz: both
together are a new labeled case. --label-map translates other label values, e.g. 1=3 2=7 3=6; all
values that it does not name become 0. --centrelines is a folder with C.centreline.json of each case
(volume/centreline_file.py): user centrelines, which replace the vessels of the label map.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tubesynth.conditioning.request import SampleRequest
from tubesynth.config.loading import config_from_plain, load_config
from tubesynth.config.schema import (
    DIFFUSION_SAMPLERS,
    FLOW_SOLVERS,
    Config,
    Stage2Config,
    uses_vessels,
)
from tubesynth.config.strict import apply_overrides, to_plain
from tubesynth.data.digest import file_digest
from tubesynth.data.volumes import TOKEN_FORMAT
from tubesynth.inference.arguments import arguments_as_flags
from tubesynth.inference.jobs import Job, add_model_options, run_jobs, tile_option
from tubesynth.pipeline import Pipeline
from tubesynth.runtime import dist
from tubesynth.runtime.errors import CommandParser, InputError, add_overrides, run_command
from tubesynth.runtime.seeding import generator
from tubesynth.volume.cases import find_cases
from tubesynth.volume.centreline_file import SUFFIX, read_centreline, user_centreline_tokens
from tubesynth.volume.files import check_labels, read_labels, write_volume
from tubesynth.volume.grid import Volume


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth synthesize",
        description="Make new CTs from label maps with a trained model.",
        example="tubesynth synthesize --model runs/stage_2_3d_f4_lfm_base/checkpoints/last.ckpt"
        " \\\n    --input-dir LABELS --output-dir OUT --num-samples 4 --seed 0",
    )
    add = parser.add_argument
    add("--output-dir", type=Path, required=True, metavar="DIR", help="folder of the results")
    add("--model", type=Path, required=True, metavar="CKPT", help="checkpoint of stage 2 or 3")
    add(
        "--input-dir",
        type=Path,
        metavar="DIR",
        help="folder of label maps; default: validation/labels in data.root",
    )
    add(
        "--centrelines",
        type=Path,
        metavar="DIR",
        help="C.centreline.json of each case: vessels in place of those in its label map",
    )
    add("--label-map", nargs="+", metavar="VALUE=CLASS", help="other label values, e.g. 1=3 2=7")
    add("--unconditional", action="store_true", help="no label maps: needs label_dropout")
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--num-samples", type=int, default=1, help="volumes per label map")
    add("--batch-size", type=int, default=1, help="volumes per batch: faster, more memory")
    add("--config", help="config of the sections data and sampling; default: the model's")
    add("--latent-mode", metavar="MODE", help="flow or diffusion: must agree with the model")
    solvers = [*FLOW_SOLVERS, *DIFFUSION_SAMPLERS]
    add("--solver", choices=solvers, metavar="NAME", help=", ".join(solvers) + "; default: config")
    add("--steps", type=int, help="solver steps (ignored by dopri5); default: the config's")
    for condition in ("label", "vessel"):
        text = f"weight of the {condition} condition: 1 as trained, above 1 stronger, 0 dropped"
        add(f"--guidance-{condition}", type=float, default=1.0, metavar="WEIGHT", help=text)
    add(
        "--control-scale",
        type=float,
        default=1.0,
        metavar="SCALE",
        help="factor of the ControlNet's residuals (stage 3)",
    )
    add(
        "--ema",
        type=float,
        metavar="STEPS",
        help="half-life of the averaged weights; default: the first of train.ema_half_life",
    )
    add("--save-process", action="store_true", help="write the volume after every solver step")
    add_model_options(parser)
    add_overrides(parser, "sampling.eta=1")
    return parser.parse_with_overrides(argv)


def label_translation(pairs: list[str] | None, num_classes: int) -> np.ndarray | None:
    """(256,) uint8: the class of each stored value; None without --label-map."""
    if pairs is None:
        return None
    table, values = np.zeros(256, dtype=np.uint8), set()
    for pair in pairs:
        value, equals, label = pair.partition("=")
        is_pair = equals and value.isdigit() and label.isdigit()
        if not is_pair or max(int(value), int(label)) > 255:
            raise InputError(f"--label-map {pair}: expected VALUE=CLASS with whole numbers, as 1=3")
        if value in values:
            raise InputError(f"--label-map {pair}: {value} has two classes: give it one")
        if int(label) >= num_classes:
            raise InputError(f"--label-map {pair}: choose a class from 0 to {num_classes - 1}")
        values.add(value)
        table[int(value)] = int(label)
    return table


def find_label_maps(args: argparse.Namespace, config: Config) -> dict[str, Path | None]:
    """{case: label map}; with --unconditional one case without a label map."""
    if args.unconditional:
        if args.input_dir:
            raise InputError("--input-dir: --unconditional takes no label maps: leave one out")
        return {"unconditional": None}
    input_dir = args.input_dir or Path(config.data.root) / "validation" / "labels"
    for folder in (args.output_dir, args.output_dir / "labels"):
        if folder.resolve() == input_dir.resolve():
            raise InputError(
                f"--output-dir {args.output_dir}: {folder} is the folder of the label maps:"
                " choose another"
            )
    return dict(find_cases(input_dir))


def find_centrelines(args: argparse.Namespace, cases: Iterable[str]) -> dict[str, Path]:
    """The centreline file of every case; empty without --centrelines."""
    if args.centrelines is None:
        return {}
    if args.unconditional:
        raise InputError("--centrelines: --unconditional has no cases: leave one of the two out")
    centrelines = {case: args.centrelines / f"{case}{SUFFIX}" for case in cases}
    for path in centrelines.values():
        read_centreline(path)  # an unreadable file is an error before the first volume
    return centrelines


def load_model(args: argparse.Namespace, device: torch.device) -> tuple[Pipeline, Stage2Config]:
    """The model, and its config with the settings of the command line."""
    pipeline = Pipeline.load(
        args.model,
        device=device,
        precision=args.precision,
        tile=tile_option(args.tile),
        ema=args.ema,
    )
    config = pipeline.config
    if not isinstance(config, Stage2Config):
        raise InputError(f"{args.model}: a stage-1 checkpoint, where one of stage 2 or 3 is needed")
    if args.config or args.overrides:
        config = replace_settings(config, args)
    if args.latent_mode not in (None, config.latent_mode):
        raise InputError(
            f"--latent-mode {args.latent_mode}: {args.model} is of mode {config.latent_mode}:"
            " leave the flag out"
        )
    sampling = replace(config.sampling, solver=args.solver or config.sampling.solver)
    if args.steps:
        sampling = replace(sampling, steps=args.steps, time_grid=None)
    config = replace(config, sampling=sampling)
    pipeline.config = config
    return pipeline, config


def replace_settings(config: Stage2Config, args: argparse.Namespace) -> Stage2Config:
    """The model's config with the sections data and sampling of --config and key=value items."""
    for item in args.overrides:
        if item.partition(".")[0] not in ("data", "sampling"):
            raise InputError(
                f"override '{item}': a trained model takes data.KEY=value and sampling.KEY=value"
            )
    if args.config:
        other, source = load_config(args.config, args.overrides), args.config
    else:
        source = str(args.model)
        other = config_from_plain(apply_overrides(to_plain(config), args.overrides), source)
    if not isinstance(other, Stage2Config) or other.stage != config.stage:
        raise InputError(
            f"{source}: for stage {other.stage}, the model is of stage {config.stage}:"
            " give a config of that stage"
        )
    for key, value, trained in (
        ("number of classes", other.labels.num_classes, config.labels.num_classes),
        ("labels.vessel", other.labels.vessel, config.labels.vessel),
        ("data.hu_window", other.data.hu_window, config.data.hu_window),
    ):
        if value != trained:
            raise InputError(
                f"{source}: {key}: {value}, the model was trained with {trained}: make them equal"
            )
    return replace(config, data=other.data, sampling=other.sampling)


def common_settings(args: argparse.Namespace, config: Stage2Config, digest: str) -> dict:
    """The settings that decide the voxels of all samples; digest: of the model's weights."""
    data = config.data
    settings = {
        "model_digest": digest,
        "seed": args.seed,
        "sampling": vars(config.sampling).copy(),
        "guidance_label": args.guidance_label,
        "guidance_vessel": args.guidance_vessel,
        "resolution": list(args.resolution or data.resolution),
        "spacing": list(args.spacing or data.spacing),
        "precision": args.precision,
        "label_map": args.label_map,
    }
    if uses_vessels(config.unet):
        settings["vessels"] = {"token_step_mm": data.token_step_mm, "format": TOKEN_FORMAT}
    if config.stage == 3 or args.control_scale != 1.0:
        settings["control_scale"] = args.control_scale
    return settings


def label_path(output_dir: Path, name: str) -> Path:
    return output_dir / "labels" / f"{name}.label.nii.gz"


def process_folder(output_dir: Path, name: str) -> Path:
    return output_dir / "process" / name


def sample_jobs(
    args: argparse.Namespace,
    cases: dict[str, Path | None],
    centrelines: dict[str, Path],
    settings: dict,
) -> list[Job]:
    """One job per case and sample."""
    jobs = []
    for case, path in cases.items():
        case_settings = {**settings, "case": case}
        if case in centrelines:
            case_settings["centreline_sha256"] = file_digest(centrelines[case])
        for index in range(args.num_samples):
            name, outputs = f"{case}_s{index}", []
            if path is not None:
                outputs.append(label_path(args.output_dir, name))
            if args.save_process:
                outputs.append(process_folder(args.output_dir, name))
            jobs.append(Job(name, path, {**case_settings, "sample": index}, tuple(outputs)))
    return jobs


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for name in ("num_samples", "batch_size", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    device = dist.start()
    try:
        pipeline, config = load_model(args, device)
        settings = common_settings(args, config, pipeline.digest)
        num_classes = config.labels.num_classes
        translation = label_translation(args.label_map, num_classes)
        cases = find_label_maps(args, config)
        centrelines = find_centrelines(args, cases)

        def request_of(job: Job) -> SampleRequest:
            labels, vessels = None, None
            case, index = job.settings["case"], job.settings["sample"]
            if job.source is not None:
                labels = read_labels(job.source)
                if translation is not None:
                    labels = Volume(translation[labels.array], labels.affine)
                remedy = "translate them with --label-map"
                check_labels(labels.array, num_classes, job.source, remedy)
                if case in centrelines:
                    step_mm = config.data.token_step_mm or 1.0
                    vessels = user_centreline_tokens(centrelines[case], labels, step_mm)
            random = generator(torch.device("cpu"), args.seed, "sample", case, index)
            return SampleRequest(labels, random, vessels)

        def synthesize(batch: list[Job]) -> list[tuple[Volume, dict]]:
            def write_step(index: int, t: float, volume: Volume) -> None:
                folder = process_folder(args.output_dir, batch[index].name)
                write_volume(folder / f"t{t:.3f}.img.nii.gz", volume, "int16")

            requests = [request_of(job) for job in batch]
            with arguments_as_flags():
                samples = pipeline.sample_batch(
                    requests,
                    guidance_label=args.guidance_label,
                    guidance_vessel=args.guidance_vessel,
                    control_scale=args.control_scale,
                    spacing=settings["spacing"],
                    resolution=settings["resolution"],
                    callback=write_step if args.save_process else None,
                )
            for job, sample in zip(batch, samples, strict=True):
                if job.source is not None:
                    write_volume(label_path(args.output_dir, job.name), sample.labels, "uint8")
            values = {"model": str(args.model), "batch": len(batch)}
            return [(each.volume, {**values, "evaluations": each.evaluations}) for each in samples]

        jobs = sample_jobs(args, cases, centrelines, settings)
        run_jobs(jobs, args.output_dir, synthesize, device, "synthesize", args.batch_size)
    finally:
        dist.stop()


if __name__ == "__main__":
    run_command(main)
