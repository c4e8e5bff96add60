"""Imports go one way, from the top to the bottom of this list; config lies beside the last two.

commands, pipeline, doctor -> training, inference -> build, conditioning -> data, metrics, pictures
-> models, generative, losses, volume -> runtime
"""

import ast
import importlib.util
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tubesynth"
FLOOR = {"runtime"}
NETWORKS = {"models", "generative", "losses"}
CONFIGURED = FLOOR | NETWORKS | {"volume", "config", "data"}
# The rooms that each room may import besides itself.
MAY_IMPORT = {
    "runtime": set(),
    "volume": FLOOR,
    **{room: FLOOR | {"volume"} for room in NETWORKS},
    "config": FLOOR | {"volume"},
    "phantom": FLOOR | {"volume", "data", "config"},
    "data": FLOOR | NETWORKS | {"volume"},
    "prepare": FLOOR | {"volume", "data", "config"},
    "metrics": FLOOR | NETWORKS | {"volume"},
    "pictures": FLOOR | {"volume", "metrics"},
    "report": FLOOR | {"volume", "metrics", "pictures"},
    "build": CONFIGURED,
    "conditioning": CONFIGURED | {"build"},
    "training": CONFIGURED | {"build", "conditioning", "metrics", "pictures"},
    "inference": CONFIGURED | {"build", "conditioning", "metrics", "pictures", "phantom"},
    "doctor": CONFIGURED | {"build", "training"},
}
WITHOUT_PROCESSES = {"models", "losses", "generative", "volume"}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
            name = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(name, folder)
            if module == "tubesynth":
                yield from (f"tubesynth.{alias.name}" for alias in node.names)
            else:
                yield module


def imported_rooms(path):
    for module in imported_modules(path):
        if module.startswith("tubesynth."):
            yield module.split(".")[1]


def test_every_room_has_its_rule():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_the_rooms_below_it(room):
    for path in (PACKAGE / room).rglob("*.py"):
        rooms = set(imported_rooms(path)) - {"__version__", room}
        assert rooms <= MAY_IMPORT[room], f"{path.name} imports {rooms - MAY_IMPORT[room]}"


@pytest.mark.parametrize("room", sorted(WITHOUT_PROCESSES))
def test_mathematics_imports_no_process_group(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert "tubesynth.runtime.dist" not in imported_modules(path), path


def test_volume_never_imports_torch():
    for path in (PACKAGE / "volume").rglob("*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imported_modules(path)), path


def test_no_training_framework_is_imported():
    forbidden = {"monai", "lightning", "pytorch_lightning", "hydra", "omegaconf"}
    for path in PACKAGE.rglob("*.py"):
        packages = {name.split(".")[0] for name in imported_modules(path)}
        assert not packages & forbidden, path
