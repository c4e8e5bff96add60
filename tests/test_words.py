"""Names of variables and arguments say what they hold; pronouns and participles do not."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tubesynth"
PRONOUNS = {
    *("here", "there", "told", "said", "found", "kept", "mine", "theirs", "given", "asked"),
    *("shown", "held", "moved", "parts", "one", "own", "known", "wanted", "made"),
}
HIGHEST_SHARE = 0.003


def assigned_names(path: Path) -> list[tuple[str, int]]:
    """(name, line) of each assignment and each argument in a file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.id, node.lineno))
        elif isinstance(node, ast.arg):
            names.append((node.arg, node.lineno))
    return names


def test_assignments_loops_and_arguments_are_counted(tmp_path):
    path = tmp_path / "names.py"
    path.write_text("def f(given, *told):\n    for here in given:\n        kept, x = here, told\n")
    expected = [("given", 1), ("here", 2), ("kept", 3), ("told", 1), ("x", 3)]
    assert sorted(assigned_names(path)) == expected


def test_less_than_3_in_1000_names_of_the_package_are_pronouns():
    names = [
        (name, f"{path.relative_to(PACKAGE.parent)}:{line} {name}")
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, line in assigned_names(path)
    ]
    pronouns = [place for name, place in names if name.lower() in PRONOUNS]
    share = len(pronouns) / len(names)
    message = f"{len(pronouns)} of {len(names)} names ({share:.2%}) are pronouns: "
    assert share < HIGHEST_SHARE, message + ", ".join(pronouns)
