"""The configs that come with tubesynth, found by name from any folder.

They are the files of configs/: beside the package in a checkout, inside it in an installed wheel
(setup.py). A name is a path below that folder, with or without .yml: stage_1_3d_f4,
demo/stage_2_flow.
"""

import difflib
from pathlib import Path

from tubesynth.runtime.errors import InputError

PACKAGE = Path(__file__).parent.parent


def packaged_folder(name: str) -> Path:
    """configs or launch: as installed with the package, or those of the checkout."""
    installed = PACKAGE / "packaged" / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def packaged_configs() -> dict[str, Path]:
    """{name: file} of every config, those of subfolders last."""
    root = packaged_folder("configs")
    files = sorted(root.rglob("*.yml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def find_config(name: str | Path) -> Path:
    """An existing path as it is; else the packaged config of that name.

    config/NAME.yml and configs/NAME.yml, the spellings of a checkout, find the packaged config too.
    """
    path = Path(name)
    if path.is_file():
        return path
    parts = path.with_suffix("").parts if path.suffix in (".yml", ".yaml") else path.parts
    if len(parts) > 1 and parts[0] in ("config", "configs"):
        parts = parts[1:]
    configs, wanted = packaged_configs(), "/".join(parts)
    if wanted in configs:
        return configs[wanted]
    near = difflib.get_close_matches(wanted, configs, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`tubesynth configs` lists those by name"
    raise InputError(f"{name}: no such config file, nor a packaged config of that name: {remedy}")


def description_of(path: Path) -> str:
    """The first comment of a file, which says in one line what it is for."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line[2:].strip()
    return ""
