"""One screen that says whether a run can succeed, before GPU time is spent on it.

    tubesynth doctor --config stage_1_3d_f4 data.root=/data/imagecas
    tubesynth doctor --data FOLDER        # any folder of images, with labels or without

Every case is read and measured, on all cores; then the rules of data/examine/ and
training/checks.py are asked. Errors end with exit code 2, warnings do not. --json prints
{"ok": bool, "findings": [{"level", "rule", "case", "message"}]} and nothing else.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
from itertools import groupby
from pathlib import Path

from tubesynth.build.preprocessing import preprocessing_of
from tubesynth.config.labels import is_label_section, load_scheme
from tubesynth.config.loading import load_config
from tubesynth.config.schema import Config
from tubesynth.data.layout import Part, find_parts
from tubesynth.data.pool import check_workers, each
from tubesynth.doctor.case_rules import CASE_RULES
from tubesynth.doctor.facts import Expected, measure
from tubesynth.doctor.findings import Finding, ask, by_level
from tubesynth.doctor.set_rules import SET_RULES
from tubesynth.runtime.errors import (
    EXIT_INPUT,
    CommandParser,
    InputError,
    add_overrides,
    run_command,
)
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme

QUICK_CASES = 8  # of each part
SHOWN_ALONE = 3  # cases with the same finding get a line each up to here
COLOURS = {"error": "31;1", "warning": "33", "info": "2"}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    findings, root = diagnose(args)
    ok = not any(finding.level == "error" for finding in findings)
    if args.json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"ok": ok, "findings": listed}, indent=1, ensure_ascii=False))
    else:
        print(screen(findings, title(args, root), root, bool(args.config), sys.stdout.isatty()))
    if not ok:
        sys.exit(EXIT_INPUT)


def diagnose(args: argparse.Namespace) -> tuple[list[Finding], Path | None]:
    """All findings, errors first, and the folder looked at.

    What keeps doctor from looking, a wrong key or a missing folder, is a finding too.
    """
    config, root, workers = None, args.data, check_workers(args.workers)
    scheme = NINE_CLASSES
    try:
        if args.config and is_label_section(args.config):
            scheme = load_scheme(args.config)
        elif args.config:
            config = load_config(args.config, args.overrides)
            root = root or Path(config.data.root)
        parts = find_parts(root)
    except InputError as problem:
        rule = "config" if args.config and config is None else "folder"
        parts, findings = [], [Finding("error", rule, None, str(problem))]
    else:
        findings = examine(parts, config, workers, args.quick, scheme)
    if config:
        from tubesynth.doctor.config_rules import RULES, Plan  # torch: --data does without

        findings += ask(RULES, Plan(config, parts))
    return by_level(findings), root


def examine(
    parts: list[Part],
    config: Config | None,
    workers: int,
    quick: bool,
    scheme: LabelScheme = NINE_CLASSES,
) -> list[Finding]:
    """Measure every case, apply every rule. scheme: that of the label maps without a config."""
    wanted = expected(config, scheme)
    jobs = []
    for part in parts:
        step = max(1, -(-len(part.cases) // QUICK_CASES)) if quick else 1
        jobs += [(case, part.name, wanted) for case in part.cases[::step]]
    facts = each(measure, jobs, workers, "examine")
    findings = ask(SET_RULES, parts, facts, wanted)
    return findings + [finding for one in facts for finding in ask(CASE_RULES, one, wanted)]


def expected(config: Config | None, scheme: LabelScheme) -> Expected:
    if config is None:
        return Expected(labels=scheme)
    return Expected(preprocessing_of(config), config.labels, for_training=True)


def title(args: argparse.Namespace, root: Path | None) -> str:
    looked = " ".join([args.config, *args.overrides]) if args.config else "no config"
    return f"tubesynth doctor: {looked}; data in {root}" + (" (quick)" if args.quick else "")


def screen(findings, heading: str, root=None, for_training=True, colour=False) -> str:
    """The findings as a table, worst first, alike ones on one line; then the verdict."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 140))
    rules = max([len(finding.rule) for finding in findings], default=0)
    lines = [heading]
    for level, found in groupby(findings, lambda finding: finding.level):
        lines.append("")
        alike: dict[str, list[Finding]] = {}
        for finding in found:
            alike.setdefault(finding.rule, []).append(finding)
        for rule, group in alike.items():
            for text in _texts(group):
                text = text.replace(f"{root}/", "") if root else text
                label = f"  {level:7}  {rule:{rules}}  "
                indent = " " * len(label)
                wrapped = textwrap.wrap(
                    text, width - len(label), break_long_words=False, break_on_hyphens=False
                )
                if colour:
                    label = label.replace(level, f"\033[{COLOURS[level]}m{level}\033[0m", 1)
                lines += [label + wrapped[0], *(indent + more for more in wrapped[1:])]
    return "\n".join([*lines, "", verdict(findings, for_training)])


def _texts(group: list[Finding]) -> list[str]:
    """A line a case, or one for many."""
    of_cases = [finding for finding in group if finding.case is not None]
    texts = [finding.message for finding in group if finding.case is None]
    if len(of_cases) <= SHOWN_ALONE:
        return texts + [f"case {f.case}: {f.message}" for f in of_cases]
    ids = list(dict.fromkeys(finding.case for finding in of_cases))
    first, others = of_cases[0], ids[1:]
    listed = ", ".join(others[:12]) + (", ..." if len(others) > 12 else "")
    return [
        *texts,
        f"{len(ids)} cases, such as {first.case}: {first.message} (also {listed})",
    ]


def verdict(findings: list[Finding], for_training: bool) -> str:
    done = "READY" if for_training else "NO ERRORS"

    def number(level):
        count = sum(finding.level == level for finding in findings)
        return f"{count} {level}{'s' * (count != 1)}"

    levels = {finding.level for finding in findings}
    if "error" in levels:
        return f"NOT READY: {number('error')}, {number('warning')}; put the errors right first"
    if "warning" in levels:
        return f"{done}, with {number('warning')}: have a look at them"
    return f"{done}: nothing stands in the way"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth doctor",
        description="Check data, config, disk and device before GPU time is spent.",
        example="tubesynth doctor --config stage_1_3d_f4 data.root=/data/imagecas\n"
        "tubesynth doctor --data FOLDER",
    )
    parser.add_argument("--config", metavar="YAML", help="the config of the run")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="look at this folder instead of data.root"
    )
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--workers", type=int, help="processes; default: one a core")
    parser.add_argument(
        "--quick", action="store_true", help=f"read {QUICK_CASES} cases of each part, not all"
    )
    add_overrides(parser)
    args = parser.parse_with_overrides(argv)
    if not args.config and not args.data:
        raise InputError("nothing to look at: give --config YAML or --data DIR")
    if args.overrides and not args.config:
        raise InputError(f"{args.overrides[0]}: there is no --config that it could change")
    return args


if __name__ == "__main__":
    run_command(main)
