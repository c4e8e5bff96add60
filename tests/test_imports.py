"""Imports go one way: commands -> training, pipeline -> data, metrics -> the five that know nobody
-> config.
"""

import ast
import importlib.util
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tubesynth"
BOTTOM = {"errors", "atomic"}
CONFIG = {"config", "config_loading"}
FIVE = {"volume", "models", "generative", "losses", "runtime"}
MAY_IMPORT = {
    "errors": set(),
    "atomic": {"errors"},
    "strict": BOTTOM,
    "config": BOTTOM,
    "config_checks": BOTTOM | {"config"},
    "config_loading": BOTTOM | {"strict", "config", "config_checks"},
    **{part: BOTTOM | {part} for part in FIVE},
    "data": BOTTOM | FIVE | {"data"},
    "metrics": BOTTOM | FIVE | {"metrics"},
    "report": BOTTOM | FIVE | {"metrics", "report"},
    "training": BOTTOM | FIVE | CONFIG | {"data", "metrics", "strict", "training"},
}
LOSSES_AND_MODELS_KNOW_NO_PROCESS = {"models", "losses", "generative", "volume"}


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
            name = "." * node.level + (node.module or "")
            modules = [importlib.util.resolve_name(name, folder)]
            if modules == ["tubesynth"]:
                modules = [f"tubesynth.{alias.name}" for alias in node.names]
        for module in modules:
            if module.startswith("tubesynth."):
                yield module.split(".")[1]


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_a_part_imports_only_what_lies_below_it(part):
    paths = list((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    for path in paths:
        found = set(imported_parts(path)) - {"__version__"}
        assert found <= MAY_IMPORT[part], f"{path.name} imports {found - MAY_IMPORT[part]}"


def test_volume_never_imports_torch():
    for path in (PACKAGE / "volume").rglob("*.py"):
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
            )
        }
        assert not any(name.split(".")[0] == "torch" for name in names), path


def test_no_training_framework_is_imported():
    forbidden = {"monai", "lightning", "pytorch_lightning", "hydra", "omegaconf", "torchvision"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & forbidden, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in forbidden, path
