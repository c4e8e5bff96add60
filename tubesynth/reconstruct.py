"""CT -> autoencoder -> CT: what stage 1 keeps of a volume, and so the ceiling of all that follows.

    python -m tubesynth.reconstruct --input-dir CTS --output-dir OUT --model
    runs/stage_1_3d_f4_full/checkpoints/last.ckpt

Each result lies in the world of its input, on the model's grid (--resolution, --spacing), or with
--original-grid on the input's own grid; outside of the model's field of view that grid is filled
with air.
"""

import argparse
from pathlib import Path

from tubesynth.errors import InputError, run_command
from tubesynth.pipeline import Pipeline
from tubesynth.runtime import dist
from tubesynth.stream import Job, run_jobs, tile_option
from tubesynth.volume.files import find_cases, read_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.resample import resample_image


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tubesynth.reconstruct", description="Pass CTs through the autoencoder."
    )
    parser.add_argument("--input-dir", type=Path, required=True, help="folder of CT volumes")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of stage 1 or 2")
    parser.add_argument("--resolution", type=int, nargs="+", help="voxels x y z; default: trained")
    parser.add_argument("--spacing", type=float, nargs="+", help="mm x y z; default: trained")
    parser.add_argument("--precision", default="32", choices=["32", "bf16-mixed", "16-mixed"])
    parser.add_argument("--tile", default="auto", help="voxels a side, auto (fit memory) or none")
    parser.add_argument("--original-grid", action="store_true", help="write on the input's grid")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    cases = find_cases(args.input_dir)
    if args.output_dir.resolve() == args.input_dir.resolve():
        raise InputError(f"--output-dir {args.output_dir}: is the input folder: choose another")
    device = dist.start()
    try:
        pipeline = Pipeline.load(args.model, device, args.precision, tile_option(args.tile))
        data = pipeline.config.data
        settings = {
            "model_digest": pipeline.digest,
            "resolution": list(args.resolution or data.resolution),
            "spacing": list(args.spacing or data.spacing),
            "original_grid": args.original_grid,
            "precision": args.precision,
        }
        jobs = [Job(case, path, settings) for case, path in cases.items()]

        def make(job: Job) -> tuple[Volume, dict]:
            image = read_volume(job.source)
            result = pipeline.reconstruct(image, settings["spacing"], settings["resolution"])
            if args.original_grid:
                fill = data.hu_window[0]
                result = resample_image(result, image.shape, image.affine, fill=fill)
            return result, {"model": str(args.model)}

        run_jobs(jobs, args.output_dir, make, device, "reconstruct")
    finally:
        dist.stop()


if __name__ == "__main__":
    run_command(main)
