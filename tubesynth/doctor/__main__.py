"""The command doctor: checks data, config, disk and device before GPU time is spent on a run.

    tubesynth doctor --config stage_1_3d_f4 data.root=/data/imagecas
    tubesynth doctor --data FOLDER        # any folder of images, with labels or without

Every case is read and measured, on all cores. Then the rules of case_rules.py, set_rules.py and,
with a config, config_rules.py judge the measurements. Errors end with exit code 2, warnings do not.
--json prints {"ok": bool, "findings": [{"level", "rule", "case", "message"}]} and nothing else.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("doctor")  # imports this file as tubesynth.doctor

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
from itertools import groupby
from pathlib import Path

from tubesynth.build.preprocessing import preprocessing_of
from tubesynth.config.labels import (
    is_label_section,
    label_remedy,
    load_label_map,
    load_scheme,
)
from tubesynth.config.loading import load_config
from tubesynth.data.layout import SPLITS, Split, find_splits
from tubesynth.data.pool import check_workers, each
from tubesynth.doctor.case_rules import CASE_RULES
from tubesynth.doctor.facts import Expected, measure
from tubesynth.doctor.findings import Finding, apply_rules, by_level
from tubesynth.doctor.set_rules import SET_RULES
from tubesynth.runtime.errors import EXIT_INPUT, CommandParser, InputError, add_overrides
from tubesynth.runtime.kinds import lines_by_kind
from tubesynth.runtime.stop_signal import STARTS_AGAIN, interruptible

QUICK_CASES = 8  # of each split
COLORS = {"error": "31;1", "warning": "33", "info": "2"}


@dataclasses.dataclass
class Diagnosis:
    """All findings, errors first; the data folder and whether a training config was checked."""

    findings: list[Finding]
    root: Path | None
    for_training: bool

    @property
    def ok(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    diagnosis = interruptible(lambda: diagnose(args), f"not all cases are checked; {STARTS_AGAIN}")
    if args.json:
        findings = [dataclasses.asdict(finding) for finding in diagnosis.findings]
        content = {"ok": diagnosis.ok, "findings": findings}
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        print(screen(diagnosis, title(args, diagnosis.root), sys.stdout.isatty()))
    if not diagnosis.ok:
        sys.exit(EXIT_INPUT)


def diagnose(args: argparse.Namespace) -> Diagnosis:
    """Check the config and its data. A config or folder that cannot be read is a finding too."""
    config, root, folders, expected = None, args.data, None, Expected()
    workers = check_workers(args.workers)
    try:
        if args.config and is_label_section(args.config):
            scheme = load_scheme(args.config)
            expected = Expected(labels=scheme, label_map=load_label_map(args.config, scheme))
        elif args.config:
            config = load_config(args.config, args.overrides)
            label_map = config.data.label_map
            expected = Expected(
                preprocessing_of(config),
                config.labels,
                label_map,
                for_training=True,
                label_remedy=label_remedy(config),
            )
            data = config.data
            if root is None and (data.image_train_dir or data.label_train_dir):
                folders = [data.folders(split) for split in SPLITS]
            root = root or Path(data.image_train_dir or data.root)
        if root is None:
            raise InputError(f"{args.config}: holds the section labels alone: give --data DIR too")
        splits = find_splits(root, expected.label_map, folders)
    except InputError as problem:
        rule = "config" if args.config and config is None else "folder"
        splits, findings = [], [Finding("error", rule, None, str(problem))]
    else:
        findings = check_data(splits, expected, workers, args.quick)
    if config:
        from tubesynth.doctor.config_rules import (  # needs torch, which --data does not
            RULES,
            PlannedRun,
        )

        findings += apply_rules(RULES, PlannedRun(config, splits))
    return Diagnosis(by_level(findings), root, for_training=config is not None)


def check_data(
    splits: list[Split], expected: Expected, workers: int = 1, quick: bool = False
) -> list[Finding]:
    """Measure every case (quick: QUICK_CASES of each split), and apply the rules on the data."""
    jobs = []
    for split in splits:
        step = max(1, -(-len(split.cases) // QUICK_CASES)) if quick else 1
        jobs += [(case, split.name, expected) for case in split.cases[::step]]
    facts = each(measure, jobs, workers, "measure")
    findings = apply_rules(SET_RULES, splits, facts, expected)
    for case in facts:
        findings += apply_rules(CASE_RULES, case, expected, case=case.case)
    return findings


def title(args: argparse.Namespace, root: Path | None) -> str:
    config = " ".join([args.config, *args.overrides]) if args.config else "no config"
    data = "no data" if root is None else f"data in {root}"
    return f"tubesynth doctor: {config}; {data}" + (" (quick)" if args.quick else "")


def screen(diagnosis: Diagnosis, heading: str, color: bool = False) -> str:
    """The findings as a table, errors first, many cases of one kind in one line; the verdict."""
    findings, root = diagnosis.findings, diagnosis.root
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 140))
    rule_width = max([len(finding.rule) for finding in findings], default=0)
    lines = [heading]
    for level, level_findings in groupby(findings, lambda finding: finding.level):
        lines.append("")
        by_rule: dict[str, list[Finding]] = {}
        for finding in level_findings:
            by_rule.setdefault(finding.rule, []).append(finding)
        for rule, group in by_rule.items():
            for text in _texts(group):
                text = text.replace(f"{root}/", "") if root else text
                label = f"  {level:7}  {rule:{rule_width}}  "
                indent = " " * len(label)
                wrapped = textwrap.wrap(
                    text, width - len(label), break_long_words=False, break_on_hyphens=False
                )
                if color:
                    label = label.replace(level, f"\033[{COLORS[level]}m{level}\033[0m", 1)
                lines += [label + wrapped[0], *(indent + line for line in wrapped[1:])]
    return "\n".join([*lines, "", verdict(findings, diagnosis.for_training)])


def _texts(group: list[Finding]) -> list[str]:
    """The lines of a rule's findings."""
    texts = [finding.message for finding in group if finding.case is None]
    cases = [(finding.case, finding.message) for finding in group if finding.case is not None]
    return texts + lines_by_kind(cases)


def verdict(findings: list[Finding], for_training: bool) -> str:
    """The last line: READY, READY with warnings, or NOT READY; a warning of many cases is one."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.rule), []).append(finding)

    def number(level: str) -> str:
        count = sum(len(_texts(group)) for key, group in groups.items() if key[0] == level)
        return f"{count} {level}{'s' * (count != 1)}"

    ready = "READY" if for_training else "NO ERRORS"
    levels = {finding.level for finding in findings}
    if "error" in levels:
        return f"NOT READY: {number('error')}, {number('warning')}; correct the errors first"
    if "warning" in levels:
        return f"{ready}, with {number('warning')}: read them before a long run"
    return f"{ready}: no error and no warning"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth doctor",
        description="Check data, config, disk and device before GPU time is spent.",
        example="tubesynth doctor --config stage_1_3d_f4 data.root=/data/imagecas\n"
        "tubesynth doctor --data FOLDER",
    )
    add = parser.add_argument
    add(
        "--config",
        metavar="YAML",
        help="the config of the run; with --data also a file with labels or data.label_map alone",
    )
    add("--data", type=Path, metavar="DIR", help="the data folder; default: data.root")
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--workers", type=int, metavar="N", help="processes; default: the number of cores")
    add("--quick", action="store_true", help=f"read {QUICK_CASES} cases of each split, not all")
    add_overrides(parser)
    args = parser.parse_with_overrides(argv)
    if not args.config and not args.data:
        raise InputError("no config and no data: give --config YAML or --data DIR")
    if args.overrides and not args.config:
        raise InputError(f"{args.overrides[0]}: changes a config: give --config YAML too")
    return args
