"""Measure this machine on one part of the work: one JSON object a line.

    python tests/bench/bench.py data --data-dir bench --workers 0 2
    python tests/bench/bench.py evaluate --data-dir bench
    python tests/bench/bench.py codebook
    python tests/bench/bench.py vessel_attention
    python tests/bench/bench.py step --config configs/stage_1_3d_f4_full.yml --device cuda
    python tests/bench/bench.py sample --device cuda \\
        --config configs/stage_2_3d_f4_lfm_crossattn.yml
    python tests/bench/bench.py synthesis --device cuda --config configs/heart_stage_2.yml
    python tests/bench/bench.py ceiling --device cuda --precision bf16-mixed

data: the loader, from a warm cache of phantoms (made in the folder or in a temporary one) to the
tensors of a training step; and the building of that cache. evaluate: the scores of pairs of CTs.
codebook: the quantizer of one volume's latents, beside the usual one. vessel_attention: the cost of
the distance bias. step: a training step of any config, and its kernels alone. sample: the time that
cached conditions save. synthesis: sampling and decoding of whole CTs. ceiling: a matrix product and
a copy. index: the start-up with many cases.

Each case runs in a process of its own, so that its peak memory is measured alone. Where there is a
peer, speedup is its time over ours, and memory_ratio our peak over its. docs/benchmarks.md has the
results; the other files of this folder compare with other libraries, and tests/gpu/measure.sh runs
what a GPU is to be measured by.
"""

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from parts import (
    ceiling,
    codebook,
    data,
    evaluate,
    index,
    sample,
    step,
    synthesis,
    vessel_attention,
)
from parts.measure import show

from tubesynth.runtime.errors import CommandParser, run_command


class Bench(NamedTuple):
    """A file of parts/, which has CASES, add_arguments, check and run_case.

    prepare: set-up of a case that is not measured. lines: for each line of a case, the arguments of
    run_case besides the case and the command line's.
    """

    module: ModuleType
    prepare: Callable[[str, argparse.Namespace], None] = lambda case, args: None
    lines: Callable[[str, argparse.Namespace], list[tuple]] = lambda case, args: [()]


BENCHES = {
    "data": Bench(data, data.prepare, data.lines),
    "evaluate": Bench(evaluate, evaluate.prepare, evaluate.lines),
    "codebook": Bench(codebook),
    "vessel_attention": Bench(vessel_attention),
    "step": Bench(step),
    "sample": Bench(sample),
    "synthesis": Bench(synthesis, lines=synthesis.lines),
    "ceiling": Bench(ceiling),
    "index": Bench(index, index.prepare, index.lines),
}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    bench = BENCHES[args.bench]
    bench.module.check(args)
    with tempfile.TemporaryDirectory(prefix="tubesynth-bench-") as temporary:
        args.data_dir = Path(getattr(args, "data_dir", None) or temporary)
        for case in args.case:
            bench.prepare(case, args)
            for line in bench.lines(case, args):
                show(args.bench, case, in_fresh_process(bench.module.run_case, case, args, *line))


def in_fresh_process(function, *arguments):
    """function(*arguments) in a new interpreter: nothing that ran before weighs on its memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="python tests/bench/bench.py", description=__doc__.splitlines()[0])
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, (module, *_) in BENCHES.items():
        text, raw = module.__doc__, argparse.RawDescriptionHelpFormatter
        subparser = benches.add_parser(
            name, help=text.splitlines()[0], description=text, formatter_class=raw
        )
        subparser.add_argument(
            "--case", nargs="+", choices=module.CASES, default=list(module.CASES)
        )
        module.add_arguments(subparser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
