"""Train both stages under hundreds of faults, and compare every end with an undisturbed run.

    python tests/soak.py --output-dir soak [--minutes 30] [--seed 1]

Three runs at once (stage 1, stage 1 on two ranks, stage 2), each repeated until the time is up.
Kills and signals hit the training process, one of its children (a rank, a worker) or the whole
process group at random moments; between two lives of a run, bits of its checkpoints and of its
cache are flipped, files are cut short, temporaries are left behind, and files may not grow beyond
a limit, as on a full disk. Every life is started by the same command. At the end weights,
averages, optimizers, best.ckpt and metrics.jsonl must equal those of a run without faults. Prints
a JSON line per finished run, and exits with 1 if one differs. docs/reliability.md has a result.
It takes long, so it is no part of the test suite.
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
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
SMALL = ["data.resolution=[32,32,24]", "data.spacing=[5.5,5.5,5.5]", "train.log_every=3"]
SMALL += ["train.save_every=1", "train.validate_every=4", "train.panel_every=1000"]
SMALL += ["train.restart=[]", "data.num_workers=2"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PRINT = threading.Lock()


@dataclass(frozen=True)
class Kind:
    """A kind of run; its undisturbed one and its cache are in folders of its name."""

    name: str
    stage: int
    ranks: int = 1

    def command(self, folder: Path, run: Path, epochs: int) -> list[str]:
        config = CONFIGS / f"stage_{self.stage}.yml"
        options = ["--run-dir", run, "--logger", "none", "--device", "cpu", *SMALL]
        options += [f"data.root={folder / 'data'}", f"data.cache_dir={self.cache(folder)}"]
        options += [f"train.epochs={epochs}"]
        if self.ranks > 1:
            options += ["--gpus", self.ranks]
        if self.stage == 1:
            options += ["data.crop=[16,16,16]", "autoencoder.quantizer=ema_vq"]
        else:
            last = folder / "stage_1" / "undisturbed" / "checkpoints" / "last.ckpt"
            options += [f"latents.autoencoder={last}", "unet.dropout=0.1"]
        program = [sys.executable, "-m", "tubesynth.train", "--config", config, *options]
        return [str(item) for item in program]

    def cache(self, folder: Path) -> Path:
        return folder / self.name / "cache"

    def undisturbed(self, folder: Path, epochs: int) -> None:
        run = folder / self.name / "undisturbed"
        run.parent.mkdir()
        with open(run.parent / "undisturbed.log", "w") as log:
            subprocess.run(self.command(folder, run, epochs), stderr=log, check=True)


KINDS = (Kind("stage_1", 1), Kind("stage_1_two_ranks", 1, ranks=2), Kind("stage_2", 2))


class Faults:
    """Draws faults from a seed, applies them, and counts them."""

    def __init__(self, seed: str, run: Path, cache: Path, ranks: int):
        self.ranks = ranks
        self.random, self.counts = random.Random(seed), Counter()
        self.cache, self.checkpoints = cache, run / "checkpoints"

    def between_lives(self) -> None:
        """Damage to the checkpoints and to the cache, and what a killed writer leaves."""
        # Not best.ckpt: a later best alone would write it again.
        intact = sorted(set(self.checkpoints.glob("*.ckpt")) - {self.checkpoints / "best.ckpt"})
        # One good checkpoint must be left: the claim is not that a run can live without any.
        if len(intact) >= 3 and self.random.random() < 0.6:
            self._damage(self.random.choice(intact))
        if self.random.random() < 0.3 and self.checkpoints.is_dir():
            (self.checkpoints / ".last.ckpt.12345.tmp").write_bytes(b"x" * 5000)
            self.counts["temporary left behind"] += 1
        entries = sorted(self.cache.rglob("*.safetensors"))
        if entries and self.random.random() < 0.4:
            self._damage(self.random.choice(entries))

    def _damage(self, path: Path) -> None:
        kind = self.random.choice(["bit", "zeros", "cut"])
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
            # an import of torch takes seconds; two ranks and their launcher are three processes
            wait = (2 * self.ranks - 1) * (self.random.choice([1, 5, 9]) + 6 * self.random.random())
            try:
                return process.wait(wait)
            except subprocess.TimeoutExpired:
                pass
            number = self.random.choice(SIGNALS)
            target = self.random.choice(["process", "group", "child"])
            children = descendants(process.pid) if target == "child" else []
            if target == "child" and not children:
                target = "process"
            self.counts[f"{number.name} to the {target}"] += 1
            if target == "group":
                os.killpg(process.pid, number)
            else:
                os.kill(self.random.choice(children or [process.pid]), number)
            try:
                return process.wait(60)
            except subprocess.TimeoutExpired:
                self.counts["no end within 60 s"] += 1
                os.killpg(process.pid, signal.SIGKILL)
                return process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that come of this one, apart from the servers of multiprocessing."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def disturbed(kind: Kind, folder: Path, number: int, args, deadline: float) -> dict:
    """Lives of one run under faults until it is done; after the deadline without faults."""
    run = folder / kind.name / f"disturbed_{number}"
    seed = f"{args.seed} {kind.name} {number}"
    faults, codes = Faults(seed, run, kind.cache(folder), kind.ranks), Counter()
    arguments, log = kind.command(folder, run, args.epochs), run.with_suffix(".log")
    done = False
    while not done and time.monotonic() < deadline:
        code = faults.life(arguments, log)
        codes[code] += 1
        done = code == 0
        if not done:
            faults.between_lives()
    if not done:
        with open(log, "a") as file:
            codes[subprocess.run(arguments, stderr=file).returncode] += 1
    text = log.read_text()
    return {
        "run": f"{kind.name} {number}",
        "lives": sum(codes.values()),
        "exit_codes": {str(code): number for code, number in sorted(codes.items())},
        "faults": sum(faults.counts.values()),
        "by_kind": dict(faults.counts),
        # Python has its own way to end at a Ctrl-C while it imports, and of its resource tracker.
        "tracebacks": text.count("Traceback (most recent call last)")
        - text.count("\nKeyboardInterrupt\n")
        - text.count('multiprocessing/resource_tracker.py", line'),
        "differences": differences(folder / kind.name / "undisturbed", run)[:20],
    }


def differences(*runs: Path) -> list[str]:
    """What differs between two runs."""
    found = []
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
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = args.output_dir.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    phantoms = "--cases 12 --seed 7 --validation-fraction 0.34 --resolution 32 32 24"
    program = [sys.executable, "-m", "tubesynth.phantom", *phantoms.split()]
    program += ["--spacing", "5.5", "5.5", "5.5", "--output-dir", str(folder / "data")]
    subprocess.run(program, check=True)
    for kind in KINDS:
        kind.undisturbed(folder, args.epochs)
    deadline, rows = time.monotonic() + 60 * args.minutes, []

    def repeat(kind: Kind) -> None:
        number = 0
        while time.monotonic() < deadline:
            number += 1
            row = disturbed(kind, folder, number, args, deadline)
            with PRINT:
                rows.append(row)
                print(json.dumps(row), flush=True)

    threads = [threading.Thread(target=repeat, args=(kind,)) for kind in KINDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = {key: sum(row[key] for row in rows) for key in ("lives", "faults", "tracebacks")}
    different = [row["run"] for row in rows if row["differences"]]
    by_kind = sum((Counter(row["by_kind"]) for row in rows), Counter())
    print(json.dumps({"runs": len(rows), **total, "different": different, "by_kind": by_kind}))
    return int(bool(different or total["tracebacks"] or len(rows) < len(KINDS)))


if __name__ == "__main__":
    sys.exit(main())
