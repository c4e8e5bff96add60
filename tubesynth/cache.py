"""The disk cache from the outside: build it ahead, check it, look at it, free what is not needed.

    tubesynth cache build  --config stage_1_3d_f4
    tubesynth cache verify --config stage_1_3d_f4
    tubesynth cache list   --cache-dir cache
    tubesynth cache prune  --config configs/*.yml --dry-run

build makes what a training run with this config would make first: volumes for every stage, latents
for stages 2 and 3 (with the GPU, and under torchrun with all of them). prune frees every entry that
none of the configs refers to: name all that are still in use.
"""

import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from tubesynth.config.loading import load_config
from tubesynth.data.pool import check_workers
from tubesynth.data.store import Entry, Store
from tubesynth.data.volumes import LATENTS, TOKENS, VOLUMES, token_key, volume_key
from tubesynth.runtime.errors import CommandParser, InputError, add_overrides, run_command


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    configs = [load_config(path, args.overrides) for path in args.config]
    folders = {args.cache_dir} if args.cache_dir else {c.data.cache_dir for c in configs}
    if len(folders) > 1:
        raise InputError(f"data.cache_dir: the configs have {sorted(folders)}; prune one at a time")
    if args.command in ("build", "prune") and not configs:
        raise InputError(f"{args.command}: --config says what belongs in the cache; name one")
    store = Store(folders.pop() if folders else "cache")
    if args.command != "build" and not store.root.is_dir():
        raise InputError(f"{store.root}: no such folder; set data.cache_dir or --cache-dir")
    if args.command == "build":
        if args.workers is not None:
            check_workers(args.workers)
        for config in configs:
            build(store, config, args.workers)
    elif args.command == "verify":
        verify(store)
    elif args.command == "list":
        show(store)
    else:
        prune(store, configs, args.dry_run)


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
        help="build what training would build first; verify every checksum; list the entries;"
        " prune those that no config refers to",
    )
    parser.add_argument("--config", nargs="+", action="extend", default=[], metavar="YAML")
    parser.add_argument("--cache-dir", help="default: data.cache_dir of the configs, or cache")
    parser.add_argument("--workers", type=int, help="build: processes; default: one a core")
    parser.add_argument("--dry-run", action="store_true", help="prune: only say what would go")
    add_overrides(parser)
    return parser.parse_with_overrides(argv)


def build(store: Store, config, workers: int | None) -> None:
    """Everything that training with this config reads from the disk; all ranks share the work."""
    from tubesynth.runtime import dist  # torch: list and verify do without
    from tubesynth.training.inputs import Volumes

    volumes = Volumes.find(config)
    volumes.store = store
    device = dist.start()
    try:
        report, world = volumes.build_cache(workers), dist.world_size()
        if dist.is_main():
            swept = store.sweep()
            of_rank = f" (this process; {world} shared the work)" if world > 1 else ""
            print(f"{store.root}/{VOLUMES}: {report}{of_rank}")
            if swept:
                print(f"removed the leftovers of {swept} builds that were stopped")
        if config.stage in (2, 3):
            from tubesynth.build.base_models import require_base_models
            from tubesynth.training.latents import encode_data_set

            before = len(list(store.folders(LATENTS)))
            models = require_base_models(config, ["latents.autoencoder"])
            encode_data_set(config, volumes, models.autoencoder, device)
            if dist.is_main():
                total = len(list(store.folders(LATENTS)))
                print(f"{store.root}/{LATENTS}: {total - before} built, {total} in all")
    finally:
        dist.stop()


def verify(store: Store) -> None:
    """Compare every byte with its checksum; damaged entries are removed, and the exit code is 1."""
    folders, bad = list(store.folders()), []
    with ThreadPoolExecutor() as pool:  # hashing and reading leave Python free
        problems = pool.map(store.problem, folders)
        for folder, problem in zip(
            folders, tqdm(problems, "verify", len(folders), unit="entry", disable=None), strict=True
        ):
            if problem:
                bad.append(folder)
                print(f"damaged: {folder.relative_to(store.root)}: {problem}")
    if bad:
        for folder in bad:
            store.remove(folder)
        print(f"{len(bad)} of {len(folders)} entries were damaged and are removed: build again")
        sys.exit(1)
    print(f"{store.root}: {len(folders)} entries are as they were written")


def show(store: Store) -> None:
    """One line an entry, and the bytes of each kind."""
    sizes, counts = Counter(), Counter()
    for entry in store.entries():
        sizes[entry.kind] += entry.size
        counts[entry.kind] += 1
        size = f"{entry.size / 1e6:9.2f} MB"
        print(f"{entry.kind:8} {entry.key[:10]} {size}  case {entry.meta['case']}: {what(entry)}")
    for kind in counts:
        print(f"{kind}: {counts[kind]} entries, {sizes[kind] / 1e6:.1f} MB")
    whole = sum(counts.values())
    damaged = len(list(store.folders())) - whole
    if damaged:
        print(f"{damaged} damaged entries: verify removes them")
    if not whole:
        print(f"{store.root}: no entries")


def what(entry: Entry) -> str:
    """An entry's content in a few words."""
    meta = entry.meta
    arrays = ", ".join(
        f"{name} {'x'.join(map(str, a['shape']))} {a['dtype'].lstrip('<>|')}"
        for name, a in meta["arrays"].items()
    )
    if entry.kind == VOLUMES:
        spacing = "x".join(f"{s:g}" for s in meta["preprocessing"]["spacing"])
        low, high = meta["preprocessing"]["hu_window"]
        return f"{arrays}, {spacing} mm, HU {low:g} to {high:g}"
    if entry.kind == LATENTS:
        return f"{arrays}, variant {meta['variant']}, autoencoder {meta['autoencoder'][:10]}"
    return arrays


def prune(store: Store, configs: list, dry_run: bool) -> None:
    """Free the entries that no config refers to, and what dead builders left."""
    kept = set().union(*(references(store, config) for config in configs))
    known = (VOLUMES, TOKENS, LATENTS)  # another kind is of a version that this one does not know
    doomed = [
        entry
        for entry in store.entries()
        if entry.kind in known and (entry.kind, entry.key) not in kept
    ]
    leftovers = store.leftovers()
    for entry in doomed:
        print(f"{entry.kind} {entry.key[:10]} {entry.size / 1e6:.2f} MB  case {entry.meta['case']}")
        if not dry_run:
            store.remove(entry.path)
    if not dry_run:
        store.sweep()
    freed = sum(entry.size for entry in doomed) / 1e6
    verb = "would free" if dry_run else "freed"
    print(f"{verb} {freed:.1f} MB: {len(doomed)} entries, {len(leftovers)} unfinished builds")


def references(store: Store, config) -> set[tuple[str, str]]:
    """(kind, key) of every entry that training with a config would read."""
    from tubesynth.build.checkpoint import Checkpoint
    from tubesynth.training.inputs import Volumes
    from tubesynth.training.latents import latent_key

    volumes = Volumes.find(config)
    volumes.store = store
    cases = volumes.training + volumes.validation
    with ThreadPoolExecutor() as pool:
        keys = pool.map(lambda case: volume_key(store, case, volumes.preprocessing), cases)
        keys = list(tqdm(keys, "digests", len(cases), unit="case", disable=None))
    kept = {(VOLUMES, key) for key in keys}
    if volumes.tokens:
        kept |= {(TOKENS, token_key(key, volumes.tokens)) for key in keys}
    path = config.latents.autoencoder if config.stage in (2, 3) else None
    if path is None:
        return kept
    if not Path(path).is_file():
        raise InputError(f"latents.autoencoder: {path} does not exist; its latents cannot be told")
    digest = Checkpoint.load(path, stage=1).trained_autoencoder.digest
    for split, variants in ((volumes.training, config.latents.variants), (volumes.validation, 1)):
        for case in split:
            for variant in range(variants):
                kept.add((LATENTS, latent_key(config, volumes, digest, case, variant)))
    return kept


if __name__ == "__main__":
    run_command(main)
