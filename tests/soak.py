"""Train both stages under hundreds of faults, and compare the end with an undisturbed run.

    python tests/soak.py --output-dir soak [--minutes 30] [--seed 1]

Kills and signals hit the training process, its loader or the whole process group at random moments;
between two lives of a run, bits of its checkpoints and of the cache are flipped, files are cut
short, temporaries are left behind, and files may not grow beyond a limit, as on a full disk. Every
life is started by the same command. At the end weights, averages, optimizers, best.ckpt and
metrics.jsonl must equal those of a run without faults. Prints a JSON line per run, and exits with 1
if one differs. docs/reliability.md has a result. It takes long, so it is no part of the test suite.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
SMALL = ["data.resolution=[32,32,24]", "data.spacing=[5.5,5.5,5.5]", "train.log_every=3"]
SMALL += ["train.save_every=1", "train.validate_every=4", "train.panel_every=1000"]
SMALL += ["train.restart=[]", "data.num_workers=2"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED = 75


def command(stage: int, folder: Path, run: str, epochs: int) -> list[str]:
    options = [f"data.root={folder / 'data'}", f"data.cache_dir={folder / 'cache'}", *SMALL]
    options += [f"train.epochs={epochs}"]
    if stage == 1:
        options += ["data.crop=[16,16,16]", "autoencoder.quantizer=ema_vq"]
    else:
        last = folder / "undisturbed_1" / "checkpoints" / "last.ckpt"
        options += [f"latents.autoencoder={last}", "unet.dropout=0.1"]
    program = [sys.executable, "-m", "tubesynth.train", "--config", CONFIGS / f"stage_{stage}.yml"]
    program += ["--run-dir", folder / run, "--logger", "none", "--device", "cpu", *options]
    return [str(item) for item in program]


def undisturbed(stage: int, folder: Path, epochs: int) -> None:
    with open(folder / f"undisturbed_{stage}.log", "w") as log:
        subprocess.run(
            command(stage, folder, f"undisturbed_{stage}", epochs), stderr=log, check=True
        )


class Faults:
    """Draws faults from a seed, applies them, and counts them."""

    def __init__(self, seed: int, folder: Path, run: str):
        self.random, self.counts = random.Random(f"{seed} {run}"), Counter()
        self.folder, self.checkpoints = folder, folder / run / "checkpoints"

    def between_lives(self) -> None:
        """At most one damage to the files of the run and one to the cache."""
        # Not best.ckpt: a later best alone would write it again.
        intact = sorted(set(self.checkpoints.glob("*.ckpt")) - {self.checkpoints / "best.ckpt"})
        kind = self.random.choice(["nothing", "bit", "zeros", "cut", "temporary"])
        # One good checkpoint must be left: the claim is not that a run can live without any.
        if kind in ("bit", "zeros", "cut") and len(intact) >= 3:
            self._damage(self.random.choice(intact), kind)
        elif kind == "temporary" and self.checkpoints.is_dir():
            (self.checkpoints / ".last.ckpt.12345.tmp").write_bytes(b"x" * 5000)
            self.counts["temporary left behind"] += 1
        entries = sorted((self.folder / "cache").rglob("*.npy"))
        if entries and self.random.random() < 0.3:
            self._damage(self.random.choice(entries), self.random.choice(["bit", "zeros", "cut"]))

    def _damage(self, path: Path, kind: str) -> None:
        content = bytearray(path.read_bytes())
        start = self.random.randrange(len(content))
        if kind == "bit":
            content[start] ^= 1 << self.random.randrange(8)
        elif kind == "zeros":
            content[start : start + 512] = bytes(len(content[start : start + 512]))
        else:
            del content[start:]
        path.write_bytes(content)
        self.counts[f"{path.suffix} {kind}"] += 1

    def life(self, arguments: list[str], log: Path) -> int:
        """One life of the process: its exit code, or that of the signal which ended it."""
        full = self.random.random() < 0.1

        def full_disk():
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        with open(log, "a") as file:
            process = subprocess.Popen(
                arguments,
                stderr=file,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=full_disk if full else None,
            )
            self.counts["full disk"] += full
            wait = self.random.choice([0.5, 3.0, 5.0]) + 6 * self.random.random()
            try:
                return process.wait(wait)
            except subprocess.TimeoutExpired:
                pass
            number = self.random.choice(SIGNALS)
            target = self.random.choice(["process", "group"])
            self.counts[f"{number.name} to the {target}"] += 1
            (os.killpg if target == "group" else os.kill)(process.pid, number)
            try:
                return process.wait(60)
            except subprocess.TimeoutExpired:
                self.counts["no end within 60 s"] += 1
                os.killpg(process.pid, signal.SIGKILL)
                return process.wait()


def disturbed(stage: int, folder: Path, epochs: int, seed: int, deadline: float) -> dict:
    """Lives of one run under faults, then one without until it is done."""
    run = f"disturbed_{stage}"
    faults, codes = Faults(seed, folder, run), Counter()
    arguments, log = command(stage, folder, run, epochs), folder / f"{run}.log"
    while time.monotonic() < deadline:
        code = faults.life(arguments, log)
        codes[code] += 1
        if code == 0:
            break
        faults.between_lives()
    with open(log, "a") as file:
        codes[subprocess.run(arguments, stderr=file).returncode] += 1
    text = log.read_text()
    return {
        "stage": stage,
        "lives": sum(codes.values()),
        "exit_codes": {str(code): number for code, number in sorted(codes.items())},
        "faults": sum(faults.counts.values()),
        "by_kind": dict(faults.counts),
        # A Ctrl-C while Python still imports ends it in Python's own way.
        "tracebacks": text.count("Traceback (most recent call last)")
        - text.count("\nKeyboardInterrupt\n"),
    }


def differences(folder: Path, stage: int) -> list[str]:
    """What differs between both runs of a stage."""
    found = []
    runs = [folder / f"{name}_{stage}" for name in ("undisturbed", "disturbed")]
    for name in ("last.ckpt", "best.ckpt"):
        states = [torch.load(r / "checkpoints" / name, weights_only=True) for r in runs]
        for state in states:  # the run's own folder is no part of its result
            state["config"] = None
        found += [f"{name}{key}" for key in unequal(*states)]
    texts = [(run / "metrics.jsonl").read_bytes() for run in runs]
    return found + (["metrics.jsonl"] if texts[0] != texts[1] else [])


def unequal(first, second, key: str = "") -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [
            each for name in first for each in unequal(first[name], second[name], f"{key}.{name}")
        ]
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [key]
    return [] if first == second or first != first else [key]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = args.output_dir.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    phantoms = "--cases 12 --seed 7 --validation-fraction 0.34 --resolution 32 32 24"
    program = [sys.executable, "-m", "tubesynth.phantom", *phantoms.split()]
    program += ["--spacing", "5.5", "5.5", "5.5", "--output-dir", str(folder / "data")]
    subprocess.run(program, check=True)
    failed = False
    for stage in (1, 2):
        undisturbed(stage, folder, args.epochs)
        deadline = time.monotonic() + 60 * args.minutes / 2
        row = disturbed(stage, folder, args.epochs, args.seed, deadline)
        row["differences"] = differences(folder, stage)[:20]
        failed |= bool(row["differences"] or row["tracebacks"])
        print(json.dumps(row), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
