"""Side by side with MONAI: `python tests/bench/bench.py data` and monai_pipeline.py, in turns.

    python3 -m venv monai_env
    monai_env/bin/pip install torch==2.13.0 monai==1.6.1 einops nibabel scipy
    .venv/bin/python tests/bench/monai_data.py --peer-python monai_env/bin/python --data-dir bench

Same files, same cores, same run: for each case our process and the peer's take turns, with each
number of workers, so that other work on the machine slows both. The faster number of workers of
each side counts. Prints one JSON object a line, and with --table a table in Markdown at the end.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

BENCH_FOLDER = Path(__file__).parent
REPOSITORY = BENCH_FOLDER.parent.parent

# our case -> (the peer's case, its type of one-hot classes); _stored: ours before conversion, as a
# GPU receives it; the peer has no such form
PAIRS = {
    "whole": ("whole", None),
    "crop": ("crop", None),
    "one_hot": ("one_hot", "float32"),
    "one_hot_uint8": ("one_hot", "uint8"),
    "stage2": ("one_hot", "float32"),
    "stage2_uint8": ("one_hot", "uint8"),
    "whole_stored": ("whole", None),
    "crop_stored": ("crop", None),
    "stage2_stored": ("one_hot", "float32"),
    "cold": ("cold", None),
}


def main() -> None:
    args = parse()
    lines = []
    for case in args.case:
        rounds = [one_round(case, args) for _ in range(args.rounds)]
        lines.append(compare(case, rounds))
        print(json.dumps(lines[-1]), flush=True)
    if args.table:
        print(table(lines))


def one_round(case: str, args) -> tuple[list[dict], list[dict]]:
    """Both sides once, with each number of workers: (our lines, the peer's lines)."""
    name, (peer_case, dtype) = case.removesuffix("_uint8").removesuffix("_stored"), PAIRS[case]
    size = ["--resolution", *args.resolution, "--spacing", *args.spacing, "--crop", *args.crop]
    size = [*map(str, size), "--repeats", str(args.repeats)]
    types = ["--one-hot", dtype] if dtype else []
    cold = case == "cold"
    amount, data = (args.scans, "scans") if cold else (args.volumes, "phantoms")
    ours, peer = [], []
    for workers in args.workers:
        if not cold or not ours:  # our build takes all cores for any number of workers
            scans = map(str, ["--scans", args.scans, "--scan-resolution", *args.scan_resolution])
            bench = [sys.executable, BENCH_FOLDER / "bench.py", "data", "--case", name]
            folder = ["--data-dir", args.data_dir, "--volumes", str(args.volumes), *scans]
            stored = ["--stored"] if case.endswith("_stored") else []
            ours += run([*bench, *folder, *size, *types, *stored, "--workers", str(workers)])
        pipeline = [args.peer_python, "-W", "ignore", BENCH_FOLDER / "monai_pipeline.py"]
        folder = ["--data", args.data_dir / data, "--cache-dir", args.data_dir]
        amounts = ["--volumes", str(amount), "--workers", str(workers), "--case", peer_case]
        peer += run([*pipeline, *folder, *amounts, *size, *types])
    return ours, peer


def run(command: list) -> list[dict]:
    """The JSON lines that a command prints."""
    job = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in job.stdout.splitlines() if line.startswith("{")]


def compare(case: str, rounds) -> dict:
    """One line: the medians over rounds of each side's faster number of workers."""
    ours = faster([line for our_lines, _ in rounds for line in our_lines])
    peer = faster([line for _, peer_lines in rounds for line in peer_lines])
    more = {"peer_workers": peer[0]["workers"], "peer_cache_mb": peer[0]["cache_mb"]}
    line = side_by_side(ours, "MONAI PersistentDataset", peer, **more)
    return {**line, "case": case, "rounds": len(rounds)}


def side_by_side(ours: list[dict], peer_name: str, peer: list[dict], **more) -> dict:
    """One line: the medians of both sides' lines, and their ratios."""
    memory, peer_memory = (statistics.median(x["peak_mb"] for x in side) for side in (ours, peer))
    return {
        **ours[0],
        "seconds": middle(ours),
        "spread": spread(ours),
        "cpu_seconds": cpu(ours),
        "peak_mb": memory,
        "rounds": len(ours),
        "load": max(line["load"] for line in ours + peer),
        "peer": peer_name,
        "peer_seconds": middle(peer),
        "peer_spread": spread(peer),
        "peer_cpu_seconds": cpu(peer),
        "peer_peak_mb": peer_memory,
        "speedup": round(middle(peer) / middle(ours), 2),
        "cpu_ratio": round(cpu(peer) / cpu(ours), 2),
        "memory_ratio": round(memory / peer_memory, 2),
        **more,
    }


def faster(lines: list[dict]) -> list[dict]:
    """The lines of the number of workers whose median is the smallest."""
    sides: dict[int, list[dict]] = {}
    for line in lines:
        sides.setdefault(line["workers"], []).append(line)
    return min(sides.values(), key=middle)


def middle(lines: list[dict]) -> float:
    return statistics.median(line["seconds"] for line in lines)


def cpu(lines: list[dict]) -> float:
    """Seconds of all cores together, which depend less on other work than the clock."""
    return round(statistics.median(line["cpu_seconds"] or 0.01 for line in lines), 3)


def spread(lines: list[dict]) -> float:
    """(slowest - fastest round) / median; of one round its own spread."""
    if len(lines) == 1:
        return lines[0]["spread"]
    seconds = [line["seconds"] for line in lines]
    return round((max(seconds) - min(seconds)) / middle(lines), 3)


def table(lines: list[dict]) -> str:
    rows = [
        "| case | size | volumes/s | spread | MONAI | spread | times faster |"
        " CPU time | peak MB | MONAI | cache MB | MONAI |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        volumes = int(line["size"].split()[0])
        cells = [
            line["case"],
            line["size"],
            f"{volumes / line['seconds']:.1f}",
            f"{line['spread']:.0%}",
            f"{volumes / line['peer_seconds']:.1f}",
            f"{line['peer_spread']:.0%}",
            f"{line['speedup']:.1f}",
            f"1 / {line['cpu_ratio']:.1f}",
            f"{line['peak_mb']:.0f}",
            f"{line['peer_peak_mb']:.0f}",
            line["cache_mb"],
            line["peer_cache_mb"],
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    triple = dict(nargs=3, metavar=("X", "Y", "Z"))
    add("--peer-python", required=True, help="python of an environment with monai")
    add("--data-dir", type=Path, required=True, help="phantoms and caches are made here")
    add("--case", nargs="+", choices=PAIRS, default=list(PAIRS))
    add("--rounds", type=int, default=3, help="turns of both sides")
    add("--repeats", type=int, default=3, help="timed epochs in a turn, after one to warm up")
    add("--workers", type=int, nargs="+", default=[0, 2])
    add("--volumes", type=int, default=16)
    add("--scans", type=int, default=4)
    add("--resolution", type=int, default=(256, 256, 128), **triple)
    add("--spacing", type=float, default=(0.7, 0.7, 1.05), **triple)
    add("--crop", type=int, default=(128, 128, 128), **triple)
    add("--scan-resolution", type=int, default=(512, 512, 206), **triple)
    add("--table", action="store_true")
    args = parser.parse_args()
    args.data_dir = args.data_dir.absolute()
    return args


if __name__ == "__main__":
    main()
