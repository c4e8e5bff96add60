r"""Synthesize new CTs from label maps with a trained model.

    tubesynth synthesize --model heart-phantom --output-dir OUT
    tubesynth synthesize --model runs/stage_2/checkpoints/last.ckpt --output-dir OUT
    tubesynth synthesize --model last.ckpt --output-dir OUT \
        --input-dir LABELS --num-samples 4 --seed 0

Sample k of case C is C_s<k>.img.nii.gz. It depends on (seed, C, k) alone, so any sample can be
repeated without the others. Its label map, on the same grid, is labels/C_s<k>.label.nii.gz: both
together are a new labeled case. Models of pictures write .png. --label-map 1=3 2=7 3=6 translates
other label values, in place of data.label_map; all values that it does not name become 0.
--centrelines is a folder with C.centreline.json of each case (volume/centreline_file.py): user
centrelines, which replace the vessels of the label map.

--cases N makes the label maps itself, of N new patients of the phantom generator; their centrelines
and pictures are written to centrelines/ and panels/. It is the default of packaged and exported
models, which have no data folder.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("synthesize")  # imports this file as tubesynth.synthesize

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from tubesynth.build.checkpoint_file import SAFETENSORS
from tubesynth.config.checks import check_seed, requirement
from tubesynth.config.packaged import find_model
from tubesynth.config.schema import DIFFUSION_SAMPLERS, FLOW_SOLVERS, Stage2Config
from tubesynth.config.unread import unread_settings
from tubesynth.inference.arguments import arguments_as_flags
from tubesynth.inference.comparison import compare_cases
from tubesynth.inference.job import Job, output_format
from tubesynth.inference.label_maps import find_centrelines, find_label_maps, label_map_of
from tubesynth.inference.options import add_model_options, precision_option, tile_option
from tubesynth.inference.run_jobs import run_jobs
from tubesynth.inference.sample_jobs import SampleSteps, sample_jobs
from tubesynth.inference.settings import common_settings, replace_settings
from tubesynth.inference.synthesis import SampleOptions
from tubesynth.pipeline import Pipeline
from tubesynth.runtime import dist
from tubesynth.runtime.errors import CommandParser, InputError, SettingError, add_overrides
from tubesynth.runtime.log import logger
from tubesynth.volume.anatomy import Comparison


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth synthesize",
        description="Make new CTs from label maps with a trained model.",
        example="tubesynth synthesize --model heart-phantom --output-dir OUT\n"
        "tubesynth synthesize --model runs/stage_2_3d_f4_lfm_base/checkpoints/last.ckpt"
        " \\\n    --input-dir LABELS --output-dir OUT --num-samples 4 --seed 0",
    )
    add = parser.add_argument
    add("--output-dir", type=Path, required=True, metavar="DIR", help="folder of the results")
    add(
        "--model",
        type=Path,
        required=True,
        metavar="CKPT|NAME",
        help="checkpoint of stage 2 or 3, or the name of a packaged model",
    )
    add(
        "--input-dir",
        "--label-dir",
        type=Path,
        metavar="DIR",
        help="folder of label maps; default: validation/labels in data.root, or for a packaged or"
        " exported model --cases 1",
    )
    add("--cases", type=int, metavar="N", help="label maps of N new phantoms, with pictures")
    add(
        "--centrelines",
        type=Path,
        metavar="DIR",
        help="C.centreline.json of each case: vessels in place of those in its label map (their"
        " format: README.md, Your own centrelines)",
    )
    add(
        "--unconditional",
        action="store_true",
        help="no label maps: of a model trained with label_dropout, or without label maps",
    )
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--num-samples", type=int, default=1, help="volumes per label map")
    add(
        "--batch-size",
        type=int,
        default=1,
        help="volumes per batch: faster, more memory; the same to rounding",
    )
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
        help="half-life of the averaged weights; default: those of train.swa, or else the first of"
        " train.ema_half_life",
    )
    text = (
        "side of the generator's overlapping tiles in latent cells, for grids that do not fit the"
    )
    text += " memory: another sample than that of the whole grid, which is the default"
    add("--latent-tile", type=int, metavar="CELLS", help=text)
    add("--force", action="store_true", help="also from a label map without any known structure")
    add("--save-process", action="store_true", help="write the volume after every solver step")
    add_model_options(parser)
    text = "the same as --precision 16-mixed"
    add("--amp", action="store_true", help=text)
    add_overrides(parser, "sampling.shift=2")
    return parser.parse_with_overrides(argv)


def label_sources(args: argparse.Namespace, config: Stage2Config) -> dict[str, Path | None]:
    """{case: label map}; None for new phantoms and for the case of --unconditional."""
    sources = {"--unconditional": args.unconditional, "--input-dir": args.input_dir}
    sources |= {"--cases": args.cases, "--centrelines": args.centrelines}
    used = [flag for flag, value in sources.items() if value]
    if len(used) > 1 and used != ["--input-dir", "--centrelines"]:
        raise InputError(f"{' and '.join(used)}: give only one source of label maps")
    if args.unconditional:
        return {"unconditional": None}
    is_exported = find_model(args.model).suffix == SAFETENSORS
    if args.cases or is_exported and not used:
        if config.dim == 2:
            raise InputError("--cases: phantoms are volumes, but this model is 2D: --input-dir")
        if args.label_map:
            raise InputError("--label-map: phantoms have the classes of the model: leave it out")
        return {f"phantom_{number}": None for number in range(1, (args.cases or 1) + 1)}
    if args.centrelines and is_exported and not args.input_dir:
        raise InputError("--centrelines: give the label maps of their cases as --input-dir")
    input_dir = args.input_dir or config.data.folders("validation")[1]
    if input_dir is None:
        raise InputError(
            "--input-dir: the folder of label maps is missing: the model's config has none"
        )
    return {**find_label_maps(input_dir, args.output_dir)}


def load_model(args: argparse.Namespace, device: torch.device) -> tuple[Pipeline, Stage2Config]:
    """The model, and its config with the settings of the command line."""
    pipeline = Pipeline.load(
        args.model,
        device=device,
        precision=precision_option(args),
        tile=tile_option(args.tile),
        ema=args.ema,
    )
    config = pipeline.config
    if not isinstance(config, Stage2Config):
        raise InputError(
            f"--model {args.model}: is of stage {config.stage}, where a checkpoint of stage 2 or 3"
            " is needed: give another"
        )
    if args.config or args.overrides:
        config = replace_settings(config, args)
    if args.latent_mode not in (None, config.latent_mode):
        raise InputError(
            f"--latent-mode {args.latent_mode}: {args.model} is of mode {config.latent_mode}:"
            " leave the flag out"
        )
    sampling = replace(config.sampling, solver=args.solver or config.sampling.solver)
    for flag, keys in (("steps", ("steps", "time_grid")), ("solver", ("solver",))):
        for item in args.overrides if getattr(args, flag) else ():
            if item.partition("=")[0] in {f"sampling.{key}" for key in keys}:
                raise InputError(f"--{flag} and {item.partition('=')[0]}: give one of them")
    if args.steps:
        sampling = replace(sampling, steps=args.steps, time_grid=None)
    has_interval = any(item.startswith("sampling.guidance_interval=") for item in args.overrides)
    if has_interval and args.guidance_label == args.guidance_vessel == 1:
        logger.warning("sampling.guidance_interval has no effect without another guidance than 1")
    if args.latent_tile:
        logger.warning(
            f"--latent-tile {args.latent_tile}: a sample in tiles is another one than that of the"
            " whole grid"
        )
    data = replace(config.data, label_map=label_map_of(config, args.label_map))
    config = replace(config, data=data, sampling=sampling)
    for reason, keys in unread_settings(config):
        for item in args.overrides:
            if item.partition("=")[0] in keys and item.startswith("sampling."):
                raise InputError(f"command line, '{item}': not read, since {reason}: leave it out")
    pipeline.config = config
    return pipeline, config


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_seed(args.seed, "--seed", requirement("command line"))
    for name in ("num_samples", "batch_size", "steps", "cases"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    device = dist.start()
    try:
        pipeline, config = load_model(args, device)
        settings = common_settings(args, config, pipeline.digest, pipeline.precision)
        if not pipeline.takes_labels and not (args.input_dir or args.cases or args.centrelines):
            args.unconditional = True
        cases = label_sources(args, config)
        centrelines = find_centrelines(args.centrelines, cases)
        grid = {name: settings[name] for name in ("spacing", "resolution")}
        with arguments_as_flags():
            pipeline.grid.preprocessing(*grid.values())
        options = SampleOptions(
            guidance_label=args.guidance_label,
            guidance_vessel=args.guidance_vessel,
            control_scale=args.control_scale,
            latent_tile=args.latent_tile,
            **grid,
        )
        unusual: dict[str, list[str]] = {}
        steps = SampleSteps(args, pipeline.synthesizer, options, centrelines, unusual)

        def compare(job: Job) -> Comparison | None:
            try:
                request, _ = steps.read(job)
            except SettingError:
                raise
            except InputError:
                return None  # run_jobs reads it again, and leaves it out
            if request.labels is None:
                return None
            with arguments_as_flags():
                return pipeline.compare_with_training(
                    request.labels, vessels=request.vessels, **grid
                )

        def check(jobs: list[Job]) -> None:
            unusual.update(compare_cases(jobs, compare, args.force))

        jobs = sample_jobs(args, cases, centrelines, settings, output_format(config))
        run_jobs(jobs, args.output_dir, steps, device, "synthesize", args.batch_size, check)
    finally:
        dist.stop()
