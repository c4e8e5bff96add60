"""The configs and trained models that come with tubesynth, found by name from any folder.

They are the files of configs/ and models/: beside the package in a checkout, inside it in an
installed wheel (setup.py). The name of a config is a path below that folder, with or without .yml:
stage_1_3d_f4, demo/stage_2. The model NAME is NAME.safetensors, which contains its
autoencoder; its vessel segmenter is NAME-segmenter.safetensors.
"""

import difflib
from pathlib import Path

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import warn_once
from tubesynth.runtime.reading import no_such

PACKAGE = Path(__file__).parent.parent


def packaged_folder(name: str) -> Path:
    """The folder configs, launch or models: installed with the package, or that of the checkout."""
    installed = PACKAGE / "packaged" / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def packaged_configs() -> dict[str, Path]:
    """{name: file} of every packaged config; those in subfolders come last."""
    root = packaged_folder("configs")
    files = sorted(root.rglob("*.yml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def find_config(name: str | Path) -> Path:
    """An existing path unchanged; else the packaged config of that name.

    config/NAME.yml and configs/NAME.yml, the spellings of a checkout, find the packaged config too.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():  # a folder may have the name of a packaged config
        return path
    if path.suffix in (".yml", ".yaml"):
        path = path.with_suffix("")
    if len(path.parts) > 1 and path.parts[0] in ("config", "configs"):
        path = path.relative_to(path.parts[0])
    configs, key = packaged_configs(), path.as_posix()
    if key in configs:
        parts = Path(name).parts
        # config/NAME.yml is the spelling of the published code; NAME.yml names a file of the user.
        if parts[0] == "config" or (len(parts) == 1 and key != str(name)):
            published = f"as_published/{key}"
            hint = f"; the published settings are {published}" if published in configs else ""
            warn_once(f"{name}: no such file: using the packaged config {key}{hint}")
        return configs[key]
    near = difflib.get_close_matches(key, configs, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`tubesynth configs` lists those by name"
    raise InputError(
        f"{name}: {no_such(name, 'config file')}, nor a packaged config of that name: {remedy}"
    )


def run_name(config: str | Path) -> str:
    """The name of a config for its runs: demo/stage_1 of a packaged one, else its file's name."""
    path = find_config(config).resolve()
    names = (name for name, file in packaged_configs().items() if file.resolve() == path)
    return next(names, path.stem)


def packaged_models(stage: int | str | None = None) -> dict[str, Path]:
    """{name: file} of every packaged model, or of the vessel segmenters for stage "segmenter"."""
    suffix = "-segmenter" if stage == "segmenter" else ""
    files = sorted(packaged_folder("models").glob(f"*{suffix}.safetensors"))
    names = {path.stem.removesuffix(suffix): path for path in files}
    return {n: path for n, path in names.items() if not n.endswith("-segmenter")}


def find_model(name: str | Path, stage: int | str | None = None) -> Path:
    """An existing path unchanged; else the packaged model of that name."""
    if Path(name).is_file():
        return Path(name)
    models = packaged_models(stage)
    if str(name) in models:
        return models[str(name)]
    near = difflib.get_close_matches(str(name), models, n=1)
    kind = {None: "a model", "segmenter": "a segmenter"}.get(stage, f"stage {stage}")
    remedy = f"train {kind} first, or correct the path"
    if models:
        remedy += f"; the models by name are {', '.join(models)}"
    if near:
        remedy = f"did you mean {near[0]}?"
    raise InputError(
        f"{name}: {no_such(name, 'file')}, nor a packaged model of that name: {remedy}"
    )


def description_of(path: Path) -> str:
    """The first comment line of a file, which is its one-line description."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line[2:].strip()
    return ""
