"""Side by side with MONAI: a training step of stage 1, and its ratio to its convolutions.

    .venv/bin/python tests/bench/monai_vqvae.py --peer-python monai_env/bin/python --crop 64 64 64

Same widths, losses, crop and cores, in turns (the environment is that of monai_data.py). LPIPS is
on neither side, since its weights would have to be there. Prints one JSON object: seconds are those
of our step, convolution_seconds those of its convolutions alone, over_convolutions their ratio.
--set reaches our side only; --precision and --device both.
"""

import argparse
import json
import sys
from pathlib import Path

from monai_data import cpu, middle, run, side_by_side

BENCH_FOLDER = Path(__file__).parent


def main() -> None:
    args = parse()
    both = ["--crop", *args.crop, "--batch", args.batch, "--repeats", args.repeats]
    both += ["--device", args.device]
    settings = [f"train.precision='{args.precision}'", *args.overrides]
    ours = [sys.executable, BENCH_FOLDER / "bench.py", "autoencoder", *both, "--set", *settings]
    peer = [args.peer_python, "-W", "ignore", BENCH_FOLDER / "monai_vqvae_step.py", *both]
    peer += ["--precision", args.precision]
    steps, bare, peer_steps = [], [], []
    for _ in range(args.rounds):
        step, convolutions = run(ours)
        steps.append(step)
        bare.append(convolutions)
        peer_steps += run(peer)
    of_convolutions = {
        "convolution_seconds": middle(bare),
        "convolution_cpu_seconds": cpu(bare),
        "over_convolutions": round(middle(steps) / middle(bare), 2),
        "load": max(line["load"] for line in [*steps, *bare, *peer_steps]),
    }
    peer_name = "MONAI VQVAE and PatchDiscriminator"
    print(json.dumps(side_by_side(steps, peer_name, peer_steps, **of_convolutions)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peer-python", required=True, help="python of an environment with monai")
    add("--crop", type=int, nargs=3, default=(64, 64, 64), metavar=("X", "Y", "Z"))
    add("--batch", type=int, default=1)
    add("--precision", default="32", choices=["32", "bf16-mixed", "16-mixed"])
    add("--device", default="cpu")
    add("--rounds", type=int, default=3, help="turns of both sides")
    add("--repeats", type=int, default=5, help="timed steps in a turn")
    add("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    return parser.parse_args()


if __name__ == "__main__":
    main()
