"""The disk cache as a command: build it before training, verify, list and prune its entries.

    tubesynth cache build  --config stage_1_3d_f4
    tubesynth cache verify --config stage_1_3d_f4
    tubesynth cache list   --cache-dir cache
    tubesynth cache prune  --config configs/*.yml --dry-run

build writes the entries that training with this config needs: volumes for every stage, latents for
stages 2 and 3 (on the GPU, under torchrun on all GPUs). prune deletes every entry that no config
refers to, so --config needs all configs that are still in use.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("cache")  # imports this file as tubesynth.cache

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tubesynth.config.loading import load_config
from tubesynth.data.entry import Entry
from tubesynth.data.pool import check_workers
from tubesynth.data.store import Store
from tubesynth.data.volumes import LATENTS, TOKENS, VOLUMES, token_key
from tubesynth.runtime.errors import CommandParser, InputError, add_overrides
from tubesynth.runtime.log import progress
from tubesynth.runtime.reading import require_folder
from tubesynth.runtime.stop_signal import interruptible
from tubesynth.volume.grid import spacing_of


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    configs = [load_config(path, args.overrides) for path in args.config]
    folders = {args.cache_dir} if args.cache_dir else {c.data.cache_dir for c in configs}
    if len(folders) > 1:
        raise InputError(
            f"data.cache_dir: the configs have {sorted(folders)}; give one config at a time, or"
            " --cache-dir"
        )
    if args.command in ("build", "prune") and not configs:
        raise InputError(
            f"{args.command}: --config is missing; give the configs that use the cache"
        )
    if args.dry_run and args.command != "prune":
        raise InputError(f"--dry-run: {args.command} has none, only prune: leave it out")
    store = Store(folders.pop() if folders else "cache")
    if args.command != "build":
        require_folder(store.root, "set data.cache_dir or --cache-dir")
    if args.command == "build":
        if args.workers is not None:
            check_workers(args.workers)
        build(store, configs, args.workers)
    elif args.command == "verify":
        interruptible(lambda: verify(store), "not all entries are checked")
    elif args.command == "list":
        list_entries(store)
    else:
        interruptible(lambda: prune(store, configs, args.dry_run), "not all entries are pruned")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth cache",
        description="Build, check, list or prune the disk cache.",
        example="tubesynth cache build --config stage_1_3d_f4 data.root=/data/imagecas\n"
        "tubesynth cache prune --config my_stage_1.yml my_stage_2.yml --dry-run",
    )
    parser.add_argument(
        "command",
        choices=["build", "verify", "list", "prune"],
        help="build the entries that training needs; verify all checksums, and remove the damaged"
        " entries; list all entries; prune those that no config refers to",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="YAML",
        help="files or packaged configs that use the cache; list and verify take its folder alone",
    )
    parser.add_argument("--cache-dir", help="default: data.cache_dir of the configs, or cache")
    parser.add_argument("--workers", type=int, help="build: processes; default: one per core")
    parser.add_argument("--dry-run", action="store_true", help="prune: list entries, delete none")
    add_overrides(parser)
    return parser.parse_with_overrides(argv)


def build(store: Store, configs: list, workers: int | None) -> None:
    """Build every entry that training with these configs reads; ranks share the work."""
    from tubesynth.runtime import dist  # imports torch, which list and verify do not need

    device = dist.start()
    try:
        for config in configs:
            build_entries(store, config, workers, device)
    finally:
        dist.stop()


def build_entries(store: Store, config, workers: int | None, device) -> None:
    """The entries of one config; device: encodes its latents."""
    from tubesynth.runtime import dist
    from tubesynth.training.inputs import Volumes

    volumes = Volumes.find(config)
    volumes.store = store
    report, world = volumes.build_cache(workers), dist.world_size()
    if dist.is_main():
        of_rank = f" (in this process, of {world})" if world > 1 else ""
        kinds = VOLUMES if volumes.tokens is None else f"{VOLUMES} and {TOKENS}"
        print(f"{store.root}: {kinds}: {report}{of_rank}")
    if config.stage in (2, 3):
        from tubesynth.build.base_models import require_base_models
        from tubesynth.training.latents import encode_data_set

        before = len(store.files(LATENTS))
        models = require_base_models(config, ["latents.autoencoder"])
        assert models.autoencoder is not None  # required above
        encode_data_set(config, volumes, models.autoencoder, device)
        if dist.is_main():
            total = len(store.files(LATENTS))
            print(f"{store.root}: {LATENTS}: {total - before} built, {total} in all")


@contextmanager
def hashing_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads, since hashing and reading release Python's lock; an error cancels their work."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def verify(store: Store) -> None:
    """Compare every array with its checksum; remove damaged entries, with exit code 1."""
    files, damaged = store.files(), []
    with hashing_threads() as pool:
        problems = pool.map(store.problem, files)
        problems = progress(problems, "verify", len(files), unit="entry")
        for file, problem in zip(files, problems, strict=True):
            if problem:
                damaged.append(file)
                print(f"damaged: {file.relative_to(store.root)}: {problem}")
    if damaged:
        for file in damaged:
            store.remove(file)
        print(f"{len(damaged)} of {len(files)} entries were damaged and are removed: build again")
        sys.exit(1)
    print(f"{store.root}: {len(files)} entries match their checksums")


def list_entries(store: Store) -> None:
    """Print one line per entry, and the bytes of each kind."""
    sizes, counts = Counter(), Counter()
    for entry in store.entries():
        sizes[entry.kind] += entry.size
        counts[entry.kind] += 1
        name = f"{entry.kind:8} {entry.key[:10]} {entry.size / 1e6:9.2f} MB"
        print(f"{name}  case {entry.meta['case']}: {description(entry)}")
    for kind in counts:
        print(f"{kind}: {counts[kind]} entries, {sizes[kind] / 1e6:.1f} MB")
    num_damaged = len(store.files()) - sum(counts.values())
    if num_damaged:
        print(f"{num_damaged} damaged entries: verify removes them")
    if not counts:
        print(f"{store.root}: no entries")


def description(entry: Entry) -> str:
    """The arrays and settings of an entry in one line."""
    meta = entry.meta
    arrays = ", ".join(
        f"{name} {'x'.join(map(str, a['shape']))} {a['dtype'].lstrip('<>|')}"
        for name, a in meta["arrays"].items()
    )
    if entry.kind == VOLUMES:
        spacing = "x".join(f"{s:.4g}" for s in spacing_of(meta["affine"]))
        low, high = meta["preprocessing"]["hu_window"]
        return f"{arrays}, {spacing} mm, HU {low:g} to {high:g}"
    if entry.kind == LATENTS:
        return f"{arrays}, variant {meta['variant']}, autoencoder {meta['autoencoder'][:10]}"
    return arrays


def prune(store: Store, configs: list, dry_run: bool) -> None:
    """Delete the entries that no config refers to, and unfinished entries of ended processes."""
    referenced = set().union(*(references(store, config) for config in configs))
    kinds = (VOLUMES, TOKENS, LATENTS)  # another kind belongs to another version of tubesynth
    unreferenced = [
        entry
        for entry in store.entries()
        if entry.kind in kinds and (entry.kind, entry.key) not in referenced
    ]
    leftovers, outdated = store.leftovers(), store.outdated()
    for entry in unreferenced:
        print(f"{entry.kind} {entry.key[:10]} {entry.size / 1e6:.2f} MB  case {entry.meta['case']}")
        if not dry_run:
            store.remove(entry.path)
    outdated_bytes = sum(f.stat().st_size for p in outdated for f in [p, *p.glob("*")])
    if not dry_run:
        store.sweep()
        for path in outdated:
            store.remove(path)
    size_mb = (outdated_bytes + sum(entry.size for entry in unreferenced)) / 1e6
    verb = "would free" if dry_run else "freed"
    print(
        f"{verb} {size_mb:.1f} MB: {len(unreferenced)} entries, {len(leftovers)} unfinished builds"
        + (f", {len(outdated)} files of an older form of the cache" if outdated else "")
    )


def references(store: Store, config) -> set[tuple[str, str]]:
    """(kind, key) of every entry that training with a config would read."""
    from tubesynth.build.checkpoint import Checkpoint
    from tubesynth.training.inputs import Volumes
    from tubesynth.training.latents import latent_key

    volumes = Volumes.find(config)
    volumes.store = store
    cases = volumes.training + volumes.validation
    with hashing_threads() as pool:
        keys = list(progress(pool.map(volumes.keys, cases), "digests", len(cases)))
    every_key = [key for of_case in keys for key in of_case]
    referenced = {(VOLUMES, key) for key in every_key}
    if volumes.tokens:
        referenced |= {(TOKENS, token_key(key, volumes.tokens)) for key in every_key}
    path = config.latents.autoencoder if config.stage in (2, 3) else None
    if path is None:
        return referenced
    try:
        digest = Checkpoint.load(path, stage=1).trained_autoencoder.digest
    except InputError as error:
        raise InputError(f"latents.autoencoder: {error}") from error
    of_training = config.latents.variants * volumes.preprocessing.num_spacings
    for index, of_case in enumerate(keys):
        for variant in range(of_training if index < len(volumes.training) else 1):
            referenced.add((LATENTS, latent_key(config, volumes, digest, of_case, variant)))
    return referenced
