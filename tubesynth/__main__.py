"""The program `tubesynth`: runs one of its commands, importing only that one.

tubesynth train --config stage_1_3d_f4        the same as: python -m tubesynth.train ...
"""

import difflib
import sys
from typing import NoReturn

import tubesynth
from tubesynth.runtime.errors import CommandParser, load_command, run_command

COMMANDS = {
    "train": "train stage 1 (autoencoder), 2 (generator) or 3 (ControlNet)",
    "synthesize": "make new CTs from label maps with a trained model",
    "reconstruct": "pass CTs through a trained autoencoder",
    "export": "write the weights of a checkpoint as one file for inference",
    "evaluate": "score reconstructions and syntheses; write metrics.json and report.html",
    "segment": "train a vessel segmenter on real and synthetic data, or apply it",
    "doctor": "check data, config, disk and device before a run",
    "plan": "compute what trainings would cost: memory, FLOPs, hours and disk",
    "prepare": "turn ImageCAS into training and validation folders",
    "phantom": "make a data set of procedural coronary CTs; needs no data",
    "cache": "build, verify, list or prune the disk cache",
    "configs": "list the configs that come with tubesynth, or copy one",
}
EXAMPLE = """\
tubesynth configs
tubesynth doctor --config stage_1_3d_f4 data.root=/data/imagecas
tubesynth train --config stage_1_3d_f4 data.root=/data/imagecas
tubesynth train --help"""


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        load_command(arguments[0]).main(arguments[1:])
        return
    parser = CommandParser(
        prog="tubesynth", description=(tubesynth.__doc__ or "").strip(), example=EXAMPLE
    )
    version = f"tubesynth {tubesynth.__version__}"
    parser.add_argument("--version", action="version", version=version)
    listed = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        listed.add_parser(name, help=text)
    if not arguments:
        parser.print_help()
    elif arguments[0].startswith("-"):
        parser.parse_args(arguments[:1])
    else:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        parser.error(f"{arguments[0]}: no such command: {remedy}")


def program() -> NoReturn:
    """The console script: `main` with the exit codes of runtime/errors.py."""
    run_command(main)


if __name__ == "__main__":
    program()
