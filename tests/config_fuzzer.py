"""Mutated configs and overrides: each is planned by `tubesynth train --dry-run`, or refused.

    python tests/config_fuzzer.py --cases 2000

Prints every case that ends otherwise than with a plan or with an error of one line (a traceback,
a hang, an error of several lines), and exits with 1 if there was any.
"""

import argparse
import contextlib
import io
import random
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tubesynth.runtime.errors import EXIT_INPUT, run_command
from tubesynth.train import main

CONFIGS = Path(__file__).parent.parent / "configs"
SECONDS = 5  # a case that takes longer counts as a hang

VALUES = [
    *("", "~", "null", "true", "off", "-1", "0", "1", "3", "0.5", "1e-4", "1e400", "-1e400"),
    *(".inf", "-.inf", ".nan", "nan", "inf", "1_000", "0x_", "0b_", "0x10", "0o17", "1:30", "010"),
    *("99999999999999999999", "9223372036854775808", "1" * 5000, "1e", "--", "=", "<<", "*x", "&x"),
    *("&x [*x]", "&x {a: *x}", "!!int abc", "!!float abc", "!!bool abc", "!!int ''", "!!null 1"),
    *("!!timestamp abc", "!!binary é", "!!set {a}", "!!omap [a]", "!!python/object:os.system x"),
    *("!local 3", "2001-01-01", "2001-99-99", "2001-01-01 99:99:99", "[]", "{}", "[[]]", "[a, b]"),
    *("[1, 2, 3]", "[0, 0, 0]", "[-4, 8, 8]", "[64, 64]", "[1e9, 1e9, 1e9]", "{a: 1}", "{1: 2}"),
    *("{[a]: 1}", "{? [a, b] : 1}", "? [a, b]", "'", '"', '"\\ud800"', '"\\0"', '"\\x1b[2J"'),
    *("\0", "\x07", "\ufeff", "\u2028", "é", "🫀", "a: b", "- 1", "%", "@", "`", "|", ">", "#"),
    *("[" * 3000, "[" * 3000 + "]" * 3000, "{a: " * 500, "- " * 500, "x" * 100_000),
    *("100000", "1000000000", "[4, 4]", "[1000000000]", "[2, 3, 5, 7]", "euler", "heun", "kl"),
]
KEYS = ["x", "stage", "seed", "1", "true", "null", "? [a]", "'a b'", "<<", "=", "train", "data"]


def configs() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(CONFIGS.rglob("*.yml"))]


def set_value(text: str, chance: random.Random) -> str:
    """One value of the config replaced."""
    pair = chance.choice(list(re.finditer(r"(?m)^(.*?:)([^\n#]*)", text)))
    return text[: pair.start(2)] + chance.choice(VALUES) + text[pair.end(2) :]


def set_key(text: str, chance: random.Random) -> str:
    pair = chance.choice(list(re.finditer(r"(?m)^ *(.*?):", text)))
    return text[: pair.start(1)] + chance.choice(KEYS) + text[pair.end(1) :]


def change_lines(text: str, chance: random.Random) -> str:
    """A line removed, doubled, moved, indented or dedented."""
    lines = text.splitlines(keepends=True)
    i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
    change = chance.randrange(5)
    if change == 0:
        del lines[i]
    elif change == 1:
        lines.insert(j, lines[i])
    elif change == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif change == 3:
        lines[i] = " " * chance.randint(1, 4) + lines[i]
    else:
        lines[i] = lines[i].lstrip(" ")
    return "".join(lines)


def change_characters(text: str, chance: random.Random) -> str:
    """One to five characters replaced, inserted or removed; or the end cut off."""
    if chance.random() < 0.2:
        return text[: chance.randrange(len(text))]
    for _ in range(chance.randint(1, 5)):
        i, new = chance.randrange(len(text)), chance.choice("[]{}:,&*!|>%@`'\"#-? \t\n\0\x07é=<~")
        text = text[:i] + new * chance.randint(0, 2) + text[i + chance.randint(0, 1) :]
    return text


def change_bytes(raw: bytes, chance: random.Random) -> bytes:
    i = chance.randrange(len(raw))
    return raw[:i] + bytes([chance.randrange(256)]) + raw[i + 1 :]


def overrides(text: str, chance: random.Random) -> list[str]:
    """One or two key=value items; the keys are those of the config."""
    section, keys = "", ["seed", "train", "train.epochs", "data.resolution", "x.y"]
    for key in re.finditer(r"(?m)^( *)(\w+):", text):
        section = section if key[1] else key[2]
        keys.append(f"{section}.{key[2]}" if key[1] else key[2])
    items = [f"{chance.choice(keys)}={chance.choice(VALUES)}" for _ in range(chance.randint(1, 2))]
    return [item.replace("\0", "\x01") for item in items]  # no argument of a program has a NUL


def mutated(seed: int, index: int) -> tuple[bytes, list[str]]:
    """(the bytes of a config, overrides) of one case."""
    chance = random.Random(f"{seed}/{index}")
    text = chance.choice(configs())
    text = text[text.index("\nstage:") + 1 :]  # without the comment on top
    items = overrides(text, chance) if chance.random() < 0.3 else []
    for _ in range(chance.choice([0, 1, 1, 2]) if items else chance.choice([1, 1, 1, 2, 3])):
        change = chance.choices(
            [set_value, set_key, change_lines, change_characters], [6, 1, 2, 2]
        )[0]
        text = change(text, chance) if ":" in text else text  # cut off before its first key
    raw = text.encode("utf-8", "surrogatepass")
    return (change_bytes(raw, chance) if chance.random() < 0.05 else raw), items


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError in the block after so many seconds."""

    def end(*_):
        raise TimeoutError(f"took over {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault_of(path: Path, items: list[str]) -> str | None:
    """What is wrong with the end of a case: None for a plan, or an error of one line."""
    out, err = io.StringIO(), io.StringIO()
    arguments = ["--config", str(path), "--dry-run", *items]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with time_limit(SECONDS):
                run_command(lambda: main(arguments))
    except SystemExit as end:
        message = err.getvalue()
        if end.code == 0 and not message:
            return None
        is_line = message.startswith("error: ") and message.count("\n") == 1
        return None if end.code == EXIT_INPUT and is_line else f"code {end.code}: {message[:2000]}"
    except BaseException as error:  # what a user would see as a traceback; the fuzzer goes on
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(frame.filename).name}: {str(error)[:200]}"
    return "no exit"


def faults(num_cases: int, seed: int, folder: Path) -> dict[int, str]:
    """{case: what was wrong} of the cases from 0."""
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):  # torch imports its meta device: seconds
        main(["--config", "demo/stage_1", "--dry-run"])
    for index in range(num_cases):
        raw, items = mutated(seed, index)
        path = folder / "mutated.yml"
        path.write_bytes(raw)
        if fault := fault_of(path, items):
            found[index] = fault
    return found


def program() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, metavar="CASE", help="print one case and its end")
    args = parser.parse_args()
    if args.show is not None:
        raw, items = mutated(args.seed, args.show)
        print(raw.decode("utf-8", "replace"), items, sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        found = faults(args.cases, args.seed, Path(folder))
    for index, fault in found.items():
        print(f"case {index}: {fault}")
    print(f"{args.cases} cases, {len(found)} faults")
    sys.exit(bool(found))


if __name__ == "__main__":
    program()
