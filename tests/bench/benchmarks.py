"""Runs all benchmarks into one file of JSON lines, and writes docs/benchmarks.md from that file.

    python tests/bench/benchmarks.py run [--peer-python monai_env/bin/python] [--section data ...]
    python tests/bench/benchmarks.py write

`run` needs a clean checkout and an idle machine; it replaces the lines of its sections in
docs/benchmarks.jsonl. `write` refuses a section of more than one commit. A peer needs an
environment with MONAI: python3 -m venv monai_env; monai_env/bin/pip install torch==2.13.0
monai==1.6.1 einops nibabel scipy. Sections with a peer are skipped without --peer-python.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

BENCH_FOLDER = Path(__file__).parent
REPOSITORY = BENCH_FOLDER.parent.parent
LINES = REPOSITORY / "docs" / "benchmarks.jsonl"
PAGE = REPOSITORY / "docs" / "benchmarks.md"

INTRODUCTION = (
    "Written by `python tests/bench/benchmarks.py write` from [benchmarks.jsonl](benchmarks.jsonl),"
    " which `python tests/bench/benchmarks.py run` makes. Both sides of a comparison take turns in"
    " one run, on the same files and cores. *spread* is (slowest - fastest) / median of the runs."
    " *CPU s* is the time of all cores together, which depends less on other work than the clock."
    " *load* is the one-minute load average; it counts the benchmark itself. [gpu.md](gpu.md) has"
    " the figures of a GPU."
)


@dataclass(frozen=True)
class Section:
    """A section of the page and the command whose JSON lines it shows."""

    title: str
    text: str
    script: str
    arguments: str
    peer: bool = False  # needs --peer-python
    data: bool = False  # needs --data-dir

    @property
    def command(self) -> str:
        words = ["python", f"tests/bench/{self.script}", self.arguments]
        words += ["--peer-python monai_env/bin/python"] if self.peer else []
        words += ["--data-dir bench"] if self.data else []
        return " ".join(part for part in words if part)


SECTIONS = {
    "data": Section(
        "Data: warm epochs and a cold build",
        "16 phantoms of 256 x 256 x 128, cached, as the training stages read them. On a CPU, the"
        " window, the intensities and the one-hot labels count in the seconds; a GPU would compute"
        " them. Rows `_stored` end at the tensors sent to a GPU. `cold` reads, resamples and"
        " caches scans of ImageCAS's size. Peer: MONAI's PersistentDataset and DataLoader. Over a"
        " copy: the seconds over those of copying the epoch's batches once in memory.",
        "monai_data.py",
        "--case whole crop one_hot stage2 whole_stored crop_stored stage2_stored cold"
        " --rounds 1 --scans 2",
        peer=True,
        data=True,
    ),
    "step": Section(
        "Training steps",
        "Published widths, float32. Stage 1: a crop of 64 x 64 x 64, all losses but LPIPS, both"
        " optimizers; peer: MONAI's VQVAE and PatchDiscriminator. Stage 2: latents of 32 x 32 x 16,"
        " base and cross-attention with 2,000 tokens; peer: MONAI's SPADEDiffusionModelUNet with"
        " the same label encoder, fused attention, and neither our vessel fields nor our distance"
        " bias. `recommended` compares two different networks: our heart_stage_2 and MONAI's with"
        " cross-attention. Kernels: the convolutions, matrix products and attention of our step,"
        " alone. Stored: the activations that a step keeps for its backward pass.",
        "monai_step.py",
        "autoencoder base crossattn recommended --rounds 1 --repeats 3",
        peer=True,
    ),
    "codebook": Section(
        "Quantizer: nearest code of 64 x 64 x 32 latents among 8,192",
        "Peer: the usual quantizer with all distances and a one-hot row per vector in memory, on a"
        " quarter of the vectors; compared is the time per vector.",
        "bench.py codebook",
        "--peer-vectors 32768 --repeats 3",
    ),
    "vessel_attention": Section(
        "Vessel attention: the cost of the distance bias",
        "2,000 tokens, 32 x 32 x 16 queries, 384 channels, float32. Peer: attention without bias.",
        "bench.py vessel_attention",
        "--repeats 5",
    ),
    "sample": Section(
        "Sampling: cached conditions",
        "One evaluation of a U-Net of 32 and 64 channels with 500 tokens. Peer: the conditions"
        " computed again at every step.",
        "bench.py sample",
        "--repeats 7",
    ),
    "synthesis": Section(
        "Synthesis: seconds and memory against size",
        "An evaluation of the networks of heart_stage_2 with random weights, which also computes"
        " the features of the conditions, then its decoding; and a whole synthesis by the 12"
        " evaluations of the config. This CPU has AVX512-BF16.",
        "bench.py synthesis",
        "--config heart_stage_2 --sizes 32x32x32 64x64x64 128x128x64 128x128x128 256x256x128"
        " --evaluations 1 12 --precision 32 bf16-mixed --repeats 1",
    ),
    "evaluate": Section(
        "Evaluation",
        "Pairs of CTs of 256 x 256 x 128, from files to all image and vessel scores; and the tokens"
        " of their label maps, traced. One pair or label map at a time, in one thread.",
        "bench.py evaluate",
        "--pairs 4 --repeats 3 --workers 1",
        data=True,
    ),
}

COLUMNS = {
    "case": "case",
    "size": "size",
    "evaluations": "evaluations",
    "seconds": "s",
    "seconds_per_pair": "s each",
    "spread": "spread",
    "cpu_seconds": "CPU s",
    "peak_mb": "peak MB",
    "peer_seconds": "peer, s",
    "peer_cpu_seconds": "peer, CPU s",
    "peer_peak_mb": "peer, MB",
    "speedup": "times faster",
    "memory_ratio": "memory ratio",
    "stored_mb": "stored, MB",
    "peer_stored_mb": "peer, MB",
    "stored_ratio": "stored ratio",
    "over_kernels": "over its kernels",
    "over_copy": "over a copy",
    "decode_seconds": "decoding, s",
    "load": "load",
}


def main() -> None:
    args = parse()
    if args.action == "run":
        for name in args.section:
            run(name, args.peer_python, args.data_dir)
    write()


def run(name: str, peer_python: str | None, data_dir: Path | None) -> None:
    """Replace a section's lines in the file by those of a new run."""
    section = SECTIONS[name]
    if section.peer and peer_python is None:
        print(f"{name}: skipped, needs --peer-python", file=sys.stderr)
        return
    script, *words = section.script.split()
    command = [sys.executable, str(BENCH_FOLDER / script), *words, *section.arguments.split()]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
        if section.peer:
            command += ["--peer-python", str(peer_python)]
        if section.data:
            command += ["--data-dir", str(data_dir or temporary)]
        job = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in job.stdout.splitlines() if line.startswith("{")]
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    lines = [{"section": name, **line, "machine": machine} for line in lines]
    others = [line for line in read() if line["section"] != name]
    LINES.write_text("".join(json.dumps(line) + "\n" for line in [*others, *lines]))


def read() -> list[dict]:
    if not LINES.exists():
        return []
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]


def write() -> None:
    """The page from the file's lines."""
    lines = read()
    page = ["# Benchmarks\n", f"{paragraph(INTRODUCTION)}\n"]
    for name, section in SECTIONS.items():
        rows = [line for line in lines if line["section"] == name]
        if rows:
            page.append(f"## {section.title}\n\n{paragraph(section.text)}\n")
            page.append(f"    {section.command}\n")
            page.append(f"{source(name, rows)}\n")
            page.append(table(rows))
    PAGE.write_text("\n".join(page), encoding="utf-8")
    print(PAGE)


def source(name: str, rows: list[dict]) -> str:
    """The commit and machine of a section; it ends the program where its lines have several."""
    commits, machines = ({row[key] for row in rows} for key in ("commit", "machine"))
    if len(commits) != 1:
        sys.exit(f"error: {LINES}: {name} has lines of commits {sorted(commits)}: run it again")
    return f"Commit {commits.pop()}; {'; '.join(sorted(machines))}."


def paragraph(text: str) -> str:
    return textwrap.fill(text, 118)


def table(rows: list[dict]) -> str:
    """A Markdown table of the columns that any of the rows has."""
    columns = {key: head for key, head in COLUMNS.items() if any(row.get(key) for row in rows)}
    text = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    for row in rows:
        text.append(f"| {' | '.join(cell(key, row.get(key)) for key in columns)} |")
    return "\n".join(text) + "\n"


def cell(key: str, value) -> str:
    if value is None:
        return ""
    if key.endswith("spread"):
        return f"{value:.0%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "write"])
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--peer-python", help="python of an environment with MONAI")
    parser.add_argument("--data-dir", type=Path, help="phantoms and caches, kept for another run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
