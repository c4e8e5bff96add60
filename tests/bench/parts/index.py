"""The start-up of a training on many cases: empty files stand for CTs and label maps.

Cases:
  pairs  images and label maps are found and paired by id
  keys   the data set: a stat, a stored digest and a cache key for each case, as on every rank
  order  the first sample of an epoch, which needs its permutation
mb is the memory that the work leaves allocated, by Python's own count.
"""

import itertools
import time
import tracemalloc
from pathlib import Path

from parts.measure import Measurement, result, significant
from parts.options import check_options

CASES = ("pairs", "keys", "order")


def add_arguments(parser) -> None:
    parser.add_argument("--cases", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--data-dir", type=Path, help="default: a temporary folder")


def check(args) -> None:
    check_options(args, "cases")


def prepare(case: str, args) -> None:
    """Empty files, older than those whose digests are not stored yet."""
    if case == "order":
        return
    for number in args.cases:
        for kind, suffix in (("images", "img"), ("labels", "label")):
            folder = args.data_dir / str(number) / kind
            if not folder.is_dir():
                folder.mkdir(parents=True)
                for index in range(number):
                    (folder / f"{index}.{suffix}.nii.gz").touch()


def lines(case: str, args) -> list[tuple]:
    return [(number,) for number in args.cases]


def run_case(case: str, args, number: int) -> dict:
    from tubesynth.data.dataset import VolumeDataset
    from tubesynth.data.preprocessing import Preprocessing
    from tubesynth.data.sampler import case_of_sample
    from tubesynth.data.store import Store
    from tubesynth.volume.cases import pair_cases

    folder = args.data_dir / str(number)

    def pairs():
        return pair_cases(folder / "images", folder / "labels")

    seeds = itertools.count()
    work = {"pairs": pairs, "order": lambda: case_of_sample(0, number, next(seeds))}
    if case == "keys":
        cases, store = pairs(), Store(folder / "cache")
        preprocessing = Preprocessing((256, 256, 128), (0.7, 0.7, 1.05), (-1000.0, 1000.0))

        def keys():
            return VolumeDataset(cases, preprocessing, store, "persistent")

        keys()  # stores the digests: those of a second start are measured
        work[case] = keys
    start, cpu = time.perf_counter(), time.process_time()
    work[case]()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    tracemalloc.start()
    kept = work[case]()
    megabytes = tracemalloc.get_traced_memory()[0] / 1e6
    del kept
    return result(
        Measurement([seconds], [cpu_seconds], None),
        f"{number} cases",
        device="cpu",
        threads=1,
        mb=significant(megabytes),
        microseconds_per_case=significant(seconds / number * 1e6),
    )
