"""Side by side with MONAI: a training step of any network, and its ratio to its kernels alone.

    .venv/bin/python tests/bench/monai_step.py --peer-python monai_env/bin/python base crossattn

Same widths (but for recommended), sizes, losses and cores, in turns (the environment is that of
monai_data.py). What only one side has is off: feature matching in place of LPIPS in stage 1,
averaged weights in stage 2; our vessel attention has its distance bias, MONAI's has none. Prints a
JSON object a network: seconds are those of our step, kernel_seconds those of its convolutions,
matrix products and attention alone, over_kernels their ratio; stored_mb is what autograd stores.
--set reaches our side only; --precision and --device both.
"""

import argparse
import json
import sys
from pathlib import Path

from monai_data import cpu, middle, run, side_by_side

BENCH_FOLDER = Path(__file__).parent
FLOW = ("data.resolution=[128,128,64]", "train.ema_half_life=null")
CROP = ("data.crop=[64,64,64]", "losses.feature_matching=0")
NETWORKS = {  # our config and settings, and the peer's network; sizes as in monai_networks.py
    "autoencoder": ("stage_1_3d_f4", CROP, "autoencoder"),
    "base": ("stage_2_3d_f4_lfm_base", FLOW, "base"),
    "crossattn": ("stage_2_3d_f4_lfm_crossattn", FLOW, "crossattn"),
    # Other networks: that which each side would take for label maps and vessels.
    "recommended": ("heart_stage_2", FLOW, "crossattn"),
}


def main() -> None:
    args = parse()
    for network in args.networks:
        print(json.dumps(compare(network, args)), flush=True)


def compare(network: str, args: argparse.Namespace) -> dict:
    config, settings, peer_network = NETWORKS[network]
    settings = [*settings, f"train.precision='{args.precision}'", *args.overrides]
    both = ["--repeats", args.repeats, "--device", args.device]
    ours = [sys.executable, BENCH_FOLDER / "bench.py", "step", "--config", config, *both]
    ours += ["--tokens", 2000, "--set", *settings]
    peer = [args.peer_python, "-W", "ignore", BENCH_FOLDER / "monai_networks.py", peer_network]
    peer += [*both, "--precision", args.precision]
    steps, alone, peer_steps = [], [], []
    for _ in range(args.rounds):
        step, kernels = run(ours)
        steps.append(step)
        alone.append(kernels)
        peer_steps += run(peer)
    stored, peer_stored = (side[0]["stored_mb"] for side in (steps, peer_steps))
    more = {
        "case": network,
        "peer_stored_mb": peer_stored,
        "stored_ratio": round(stored / peer_stored, 2),
        "kernel_seconds": middle(alone),
        "kernel_cpu_seconds": cpu(alone),
        "over_kernels": round(middle(steps) / middle(alone), 2),
        "load": max(line["load"] for line in [*steps, *alone, *peer_steps]),
    }
    return side_by_side(steps, f"MONAI, {peer_network}", peer_steps, **more)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("networks", nargs="+", choices=NETWORKS)
    add("--peer-python", required=True, help="python of an environment with monai")
    add("--precision", default="32", choices=["32", "bf16-mixed", "16-mixed"])
    add("--device", default="cpu")
    add("--rounds", type=int, default=3, help="turns of both sides")
    add("--repeats", type=int, default=5, help="timed steps in a turn")
    add("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    return parser.parse_args()


if __name__ == "__main__":
    main()
