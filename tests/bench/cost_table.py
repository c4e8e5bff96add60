"""The table of docs/gpu.md: the costs of the packaged configs as tubesynth plan computes them, and
what an H200 took (docs/gpu.jsonl).

    python tests/bench/cost_table.py
"""

import json
import sys
from pathlib import Path

from tubesynth.config.length import PEAK_FLOPS
from tubesynth.config.loading import load_config
from tubesynth.config.packaged import packaged_configs
from tubesynth.plan import columns

CASES = 900
HEAD = ["config", "parameters", "TFLOP a step", "memory", "measured", "steps"]
HEAD += ["hours on one H100", "on an H200, measured"]
SMALL = ("demo/", "heart_phantom/")  # trained on a CPU
MEASURED = Path(__file__).parents[2] / "docs" / "gpu.jsonl"
PLAIN = ["train.precision=bf16-mixed", "train.checkpointing=false"]


def names() -> list[str]:
    return [name for name in packaged_configs() if not name.startswith(SMALL)]


def row(name: str) -> list[str]:
    """The cells of a config, in HEAD's order."""
    changes = list(PLAIN)
    if "stage" in name and "stage_1" not in name:
        changes.append("latents.autoencoder=null")  # of the published sizes, wherever it runs
    config = load_config(name, changes)
    if name.endswith("_full"):  # its epochs count from the first phase
        first = load_config(name.removesuffix("_full")).train.epochs
        config = load_config(name, [*changes, f"train.epochs={config.train.epochs - first}"])
    parameters, memory, tflop, steps, *hours = columns(config, CASES)
    measured = memory_measured = "-"
    if step := measured_steps().get(name):
        memory_measured = f"{step['peak_mb'] / 1e3:.1f} GB"
        measured = f"{int(steps.replace(',', '')) * step['seconds'] / 3600:.2g} h"
    cells = [
        parameters,
        tflop,
        memory,
        memory_measured,
        steps,
        hours[list(PEAK_FLOPS).index("H100")],
    ]
    return [f"`{name}`", *cells, measured]


def measured_steps() -> dict[str, dict]:
    """The plain steps in bf16-mixed that an H200 took, by config."""
    rows = map(json.loads, MEASURED.read_text(encoding="utf-8").splitlines())
    plain = [row for row in rows if row.get("bench") == "step" and row["settings"] == PLAIN]
    return {Path(row["config"]).stem: row for row in plain}


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(line(HEAD), "|---" * len(HEAD) + "|", sep="\n")
    for each in sys.argv[1:] or names():
        print(line(row(each)), flush=True)
