"""List the configs that come with tubesynth, or copy one to edit it.

    tubesynth configs
    tubesynth configs copy stage_1_3d_f4 my_stage_1.yml

--config of every command takes a listed name, from any folder.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("configs")  # imports this file as tubesynth.configs

import argparse
from pathlib import Path

from tubesynth.config.packaged import (
    description_of,
    find_config,
    packaged_configs,
    packaged_folder,
)
from tubesynth.runtime.atomic import write_text
from tubesynth.runtime.errors import CommandParser, InputError

SLURM = "launch/slurm.sbatch"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth configs",
        description="List the configs that come with tubesynth, or copy one to edit it.",
        example="tubesynth configs copy stage_1_3d_f4 my_stage_1.yml\n"
        "tubesynth train --config my_stage_1.yml",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("list", help="one line for each config (the default)")
    copy = commands.add_parser("copy", help="copy a config to a file")
    copy.add_argument("name", metavar="NAME", help="a listed name")
    copy.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="default: the name, in this folder"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "copy":
        copy(args.name, args.file)
        return
    configs = packaged_configs()
    width = max(map(len, configs))
    for name, path in configs.items():
        print(f"{name:{width}}  {description_of(path)}")
    print(f"\n{SLURM}, no config, can be copied too: {description_of(_batch_script())}")


def _batch_script() -> Path:
    return packaged_folder("launch") / "slurm.sbatch"


def copy(name: str, target: Path | None) -> None:
    source = _batch_script() if name == SLURM else find_config(name)
    target = target or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise InputError(f"{target}: exists already: choose another file")
    write_text(target, source.read_text(encoding="utf-8"))
    print(f"{target}: a copy of {name}")
