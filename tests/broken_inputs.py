"""A corpus of broken inputs: each is made in a folder, and has the command that must refuse it.

    python tests/broken_inputs.py FOLDER      makes them all, to look at

A case is called `broken` in every data set here, and `good` is a case beside it without a fault.
"""

import gzip
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"
SHAPE = (12, 11, 10)


@dataclass(frozen=True)
class BrokenInput:
    """make: writes the files into a folder; returns the arguments of the command.

    words: of the error's line, such as the file or the key.
    """

    command: str
    make: Callable[[Path], list]
    words: tuple[str, ...]


CORPUS: dict[str, BrokenInput] = {}


def add(name: str, command: str, make: Callable[[Path], list], *words: str) -> None:
    assert name not in CORPUS, name
    CORPUS[name] = BrokenInput(command, make, words)


# ---- configs, as files and as items of the command line


def config(folder: Path, content: bytes | str, *items: str) -> list:
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / "c.yml").write_bytes(raw)
    return ["--config", folder / "c.yml", "--dry-run", *items]


CONFIGS = {
    "empty": "",
    "a comment alone": "# stage: 1\n",
    "text": "stage 1\n",
    "two documents": "stage: 1\n---\nstage: 1\n",
    "no stage": "seed: 1\n",
    "stage null": "stage:\n",
    "section as value": "stage: 1\ntrain: 3\n",
    "value as section": "stage: 1\nseed: {a: 1}\n",
    "tab": "stage: 1\n\tseed: 1\n",
    "open quote": 'stage: 1\nseed: "1\n',
    "tag float": "stage: 1\ntrain: {learning_rate: !!float abc}\n",
    "tag timestamp": "stage: 1\nseed: !!timestamp abc\n",
    "undefined alias": "stage: 1\nseed: *a\n",
    "3000 open brackets": "[" * 3000,
    "UTF-16": "stage: 1\n".encode("utf-16"),
    "binary": bytes(range(256)),
    "rate NaN": "stage: 1\ntrain: {learning_rate: .nan}\n",
    "negative resolution": "stage: 1\ndata: {resolution: [-64, 64, 64]}\n",
    "absurd resolution": "stage: 1\ndata: {resolution: [64000, 64000, 64000]}\n",
    "tiny spacing": "stage: 1\ndata: {spacing: [1e-9, 1, 1]}\n",
    "endless layers": "stage: 1\nautoencoder: {num_residual_layers: 1000000000}\n",
    "wide": "stage: 2\nunet: {channels: [4000000000, 2]}\n",
    "labels list": "stage: 1\nlabels: [a, b]\n",
    "labels without names": "stage: 1\nlabels: {vessel: 1}\n",
    "section null": "stage: 1\nlosses:\n",
    "section labels null": "stage: 1\nlabels:\n",
    "inner section null": "stage: 1\ndata: {augment: }\n",
    "empty path": 'stage: 1\ndata: {root: ""}\n',
    "300 classes": f"stage: 1\nlabels: {{names: {[f'c{i}' for i in range(300)]}, vessel: 1}}\n",
}
for name, text in CONFIGS.items():
    add(f"config: {name}", "train", partial(config, content=text), "c.yml")
for item, key in {
    "train.epochs=abc": "train.epochs",
    "train.epochs=0": "train.epochs",
    "train.epochs=1e400": "train.epochs",
    "train.epochs=": "train.epochs",
    "train.learning_rate=nan": "train.learning_rate",
    "train.epoch=3": "train.epochs",
    "data.resolution=[8": "data.resolution",
    "data.resolution=8": "data.resolution",
    "data.crop=[999, 999, 999]": "data.crop",
    "seed=!!int abc": "seed",
    "seed=2001-99-99": "seed",
    "seed.x=1": "seed",
    "stage=5": "stage",
    "train=3": "train",
    "train.restart=*a": "train.restart",
    "train.precision=64": "train.precision",
    "seed=-1": "seed",
    "data.root=[" + "[" * 2000: "data.root",
}.items():
    words = ("command line", key)
    add(f"item: {item[:40]}", "train", lambda d, i=item: config(d, "stage: 1\n", i), *words)
add(
    "item: the same key twice",
    "train",
    lambda d: config(d, "stage: 1\n", "seed=1", "seed=2"),
    "seed=2",
    "keep one",
)
add(
    "item: a flag and its key",
    "train",
    lambda d: config(d, "stage: 1\n", "seed=1", "--seed", "2"),
    "seed=1",
    "keep one",
)


EMPTY = {
    "train": ["--config", "stage_1_3d_f4", "--run-dir", ""],
    "reconstruct": ["--model", "heart-phantom", "--input-dir", "", "--output-dir", "out"],
    "prepare": ["--input-dir", ".", "--output-dir="],
}
for command, arguments in EMPTY.items():
    add(f"empty: {command}", command, lambda d, a=arguments: a, "empty text", "-dir")
SEEDED = {
    "train": ["--config", "stage_1_3d_f4", "--dry-run"],
    "synthesize": ["--model", "heart-phantom", "--output-dir", "out"],
    "phantom": ["--cases", "1", "--output-dir", "out"],
    "prepare": ["--input-dir", ".", "--output-dir", "out"],
}
for command, arguments in SEEDED.items():
    add(f"seed: {command}", command, lambda d, a=arguments: [*a, "--seed", "-1"], "seed", "from 0")


def no_file(folder: Path, make: Callable[[Path], object]) -> list:
    make(folder / "c.yml")
    return ["--config", folder / "c.yml", "--dry-run"]


add("config: a pipe", "train", partial(no_file, make=os.mkfifo), "c.yml", "pipe")
add("config: a folder", "train", partial(no_file, make=Path.mkdir), "c.yml", "folder")
add("config: missing", "train", partial(no_file, make=str), "c.yml", "no such")
add("config: a device", "train", lambda d: ["--config", "/dev/zero", "--dry-run"], "/dev/zero")
long_name = "x" * 300 + ".yml"
add("config: a long name", "train", lambda d: ["--config", long_name, "--dry-run"], "x.yml")
add(
    "config: a name that is no UTF-8",
    "train",
    lambda d: ["--config", "caf\udce9.yml", "--dry-run"],
    "caf\\udce9.yml",
    "rename",
)


# ---- volumes


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    image = nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine)
    return image.to_bytes()


def a_ct() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def a_label() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[4:7, 4:7, 2:8] = 1
    return label


SPACING, MAGIC, SIZES, FORM_CODES = 80, 344, 40, 252  # bytes of a NIfTI-1 header


def patched(offset: int, form: str, *values: float | bytes, raw: bytes | None = None) -> bytes:
    """A CT with fields of its header overwritten."""
    raw = nifti(a_ct()) if raw is None else raw
    size = struct.calcsize(f"<{form}")
    return raw[:offset] + struct.pack(f"<{form}", *values) + raw[offset + size :]


def spaced(*spacing: float) -> bytes:
    """A CT with voxels of this size and no other geometry."""
    return patched(SPACING, "3f", *spacing, raw=patched(FORM_CODES, "2h", 0, 0))


def with_voxel(value: float, array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[3, 3, 3] = value
    return array


CT = gzip.compress(nifti(a_ct()))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
IMAGES = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"no volume at all\n" * 40,
    "zeros": bytes(5000),
    "HTML": b"<html>404 Not Found</html>" * 20,
    "pointer of Git LFS": POINTER,
    "gzip of nothing": gzip.compress(b""),
    "gzip cut off": CT[:-200],
    "gzip without its end": CT[:-4],
    "gzip header alone": CT[:10],
    "gzip bits flipped": CT[:400] + bytes(b ^ 255 for b in CT[400:440]) + CT[440:],
    "gzip bomb": gzip.compress(patched(SIZES, "4h", 3, 2, 2, 2) + bytes(2**25)),
    "voxels cut off": gzip.compress(nifti(a_ct())[:-50]),
    "header alone": nifti(a_ct())[:348],
    "half a header": nifti(a_ct())[:200],
    "wrong magic": patched(MAGIC, "4s", b"abcd"),
    "magic of a pair": patched(MAGIC, "4s", b"ni1\0"),
    "no axes": patched(SIZES, "h", 0),
    "99 axes": patched(SIZES, "h", 99),
    "negative axes": patched(SIZES, "4h", 3, -12, 11, 10),
    "an axis of nothing": patched(SIZES, "4h", 3, 12, 0, 10),
    "absurd axes": patched(SIZES, "4h", 3, 32767, 32767, 32767),
    "more than memory": gzip.compress(patched(SIZES, "4h", 3, 32000, 32000, 4)),
    "four axes": nifti(np.zeros((*SHAPE, 3), np.int16)),
    "five axes": nifti(np.zeros((*SHAPE, 1, 3), np.int16)),
    "RGB": nifti(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
    "complex": nifti(np.zeros(SHAPE, np.complex64)),
    "unknown type": patched(70, "2h", 9999, 16),
    "voxels at NaN": patched(108, "f", float("nan")),
    "voxels at infinity": patched(108, "f", float("inf")),
    "voxels at -16": patched(108, "f", -16.0),
    "voxels at 1e30": patched(108, "f", 1e30),
    "slope NaN": patched(112, "2f", 1.0, float("nan")),
    "spacing NaN": spaced(np.nan, 1, 1),
    "spacing infinite": spaced(1, 1, np.inf),
    "spacing zero": spaced(0, 0, 0),
    "kilometers": spaced(1e6, 1e6, 1e6),
    "a NaN voxel": nifti(with_voxel(np.nan, a_ct())),
    "an infinite voxel": nifti(with_voxel(np.inf, a_ct())),
}
LABELS = {
    "empty": b"",
    "cut off": gzip.compress(nifti(a_label()))[:-30],
    "a class too many": nifti(with_voxel(7, a_label())),
    "another grid": nifti(np.zeros((9, 9, 9), np.uint8)),
    "another place": nifti(a_label(), np.array(np.diag([2.0, 2, 2, 1])) + 99 * np.eye(4, k=3)),
    "four axes": nifti(np.zeros((*SHAPE, 2), np.uint8)),
}
MHA = b"NDims = %s\nDimSize = %s\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\n\n"
OTHERS = {
    "text.nrrd": b"no volume at all\n" * 20,
    "cut off.nrrd": NRRD + bytes(9),
    "more than memory.nrrd": NRRD.replace(b"9 9 9", b"32000 32000 999") + bytes(9),
    "empty.nrrd": b"",
    "text.mha": b"no volume at all\n" * 20,
    "93 axes.mha": MHA % (b"93", b"4 5 6") + bytes(240),
    "an axis of nothing.mha": MHA % (b"3", b"4 0 6") + bytes(240),
    "negative.mha": MHA % (b"3", b"4 -5 6") + bytes(240),
    "more than memory.mha": MHA % (b"3", b"32000 32000 999") + bytes(240),
    "cut off.mha": MHA % (b"3", b"40 50 60") + bytes(24),
    "LIST.mhd": MHA.replace(b"LOCAL", b"LIST") % (b"3", b"4 5 6"),
    "text.png": b"no picture at all\n" * 20,
    "header alone.png": b"\x89PNG\r\n\x1a\n",
}


def data_set(folder: Path, image: bytes | None = None, label: bytes | None = None) -> list:
    """The cases broken and good as ImageCAS has them; prepare refuses the first."""
    source = folder / "source"
    source.mkdir()
    for case, files in {"broken": (image, label), "good": (None, None)}.items():
        for kind, raw, valid in zip(("img", "label"), files, (a_ct(), a_label()), strict=True):
            raw = gzip.compress(nifti(valid)) if raw is None else raw
            (source / f"{case}.{kind}.nii.gz").write_bytes(raw)
    return ["--input-dir", source, "--output-dir", folder / "out", "--workers", "1"]


def ct_folder(folder: Path, name: str, raw: bytes) -> list:
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / name).write_bytes(raw)
    model = ["--model", FIXTURES / "stage_1.ckpt"]
    return ["--input-dir", folder / "source", "--output-dir", folder / "out", *model]


for name, raw in IMAGES.items():
    add(f"image: {name}", "prepare", partial(data_set, image=raw), "broken.img.nii.gz")
for name, raw in LABELS.items():
    add(f"label: {name}", "prepare", partial(data_set, label=raw), "broken.label.nii.gz")
for value in (0.5, -1, 300, np.nan):
    make = partial(data_set, label=nifti(with_voxel(value, a_label())))
    add(f"label: {value}", "prepare", make, "broken.label.nii.gz", str(value))
for name, raw in OTHERS.items():
    file = name.replace(" ", "_")
    add(f"image: {name}", "reconstruct", partial(ct_folder, name=file, raw=raw), file)


def odd_entry(
    folder: Path, make: Callable[[Path], object], name: str = "broken.img.nii.gz"
) -> list:
    arguments = ct_folder(folder, "good.img.nii.gz", CT)
    make(folder / "source" / name)
    return arguments


def bytes_name(path: Path) -> None:
    with open(os.fsencode(path.parent) + b"/caf\xe9.img.nii.gz", "wb") as file:
        file.write(CT)


for name, make in {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere.nii.gz"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}.items():
    add(f"file: {name}", "reconstruct", partial(odd_entry, make=make), "broken.img.nii.gz")
add("file: a name that is no UTF-8", "reconstruct", partial(odd_entry, make=bytes_name), "rename")
twice = partial(odd_entry, make=lambda path: path.write_bytes(CT), name="good.nii")
add("file: two files of a case", "reconstruct", twice, "good.nii", "rename")
add(
    "folder: without volumes",
    "reconstruct",
    lambda d: ct_folder(d, "notes.txt", b"no volume"),
    "source",
    "holds no volumes",
)


def dangling_label(folder: Path) -> list:
    arguments = data_set(folder)
    path = folder / "source" / "broken.label.nii.gz"
    path.unlink()
    path.symlink_to("nowhere")
    return arguments


add("label: a link to nowhere", "prepare", dangling_label, "broken.label.nii.gz", "mend")


def data_root(folder: Path, make: Callable[[Path], object]) -> list:
    make(folder / "data")
    return ["--config", "stage_1_3d_f4", f"data.root={folder / 'data'}"]


for kind, make in {
    "a pipe": os.mkfifo,
    "a file": Path.touch,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
}.items():
    add(f"data.root: {kind}", "train", partial(data_root, make=make), f"data: {kind}")


# ---- centrelines


def branch(points: object = None, **changes: object) -> str:
    points = [[0, 0, 0, 1], [1, 0, 0, 1]] if points is None else points
    return json.dumps({"branches": [{"parent": None, "points": points, **changes}]})


NO_JSON, LIST, POINTS = (
    "give the JSON file of a centreline",
    "branches: expected a list",
    "[0].points",
)
PARENT = "branches[0].parent: {}, expected null or an earlier"
CENTRELINES = {
    "empty": ("", NO_JSON),
    "text": ("x, y, z, radius\n", NO_JSON),
    "half": (branch()[:-20], NO_JSON),
    "list": ("[]", LIST),
    "number": ("3", LIST),
    "null": ("null", LIST),
    "no branches": ("{}", LIST),
    "branches of text": ('{"branches": "LAD"}', LIST),
    "a branch of numbers": ('{"branches": [3]}', "branches[0]: expected an object"),
    "no points": ('{"branches": [{}]}', f"{POINTS}: expected two"),
    "one point": (branch([[0, 0, 0, 1]]), f"{POINTS}: expected two"),
    "three columns": (branch([[0, 0, 0], [1, 0, 0]]), POINTS),
    "ragged": (branch([[0, 0, 0, 1], [1, 0]]), POINTS),
    "text in points": (branch([[0, 0, 0, 1], [1, 0, "x", 1]]), POINTS),
    "NaN": (branch([[0, 0, 0, 1], [1, 0, float("nan"), 1]]), POINTS),
    "infinite": (branch([[0, 0, 0, 1], [1, 0, float("inf"), 1]]), POINTS),
    "radius 0": (branch([[0, 0, 0, 0], [1, 0, 0, 1]]), "radius above 0"),
    "radius in micrometers": (branch([[0, 0, 0, 1500], [1, 0, 0, 1500]]), "radius"),
    "its own parent": (branch(parent=0), PARENT.format(0)),
    "a later parent": (branch(parent=7), PARENT.format(7)),
    "parent true": (branch(parent=True), PARENT.format(True)),
    "parent text": (branch(parent="LM"), PARENT.format("'LM'")),
    "centimeters": (json.dumps({"units": "cm", "branches": []}), "units: 'cm', expected 'mm'"),
    "LPS": (json.dumps({"frame": "LPS", "branches": []}), "frame: 'LPS', expected 'RAS world'"),
    "100,000 brackets": ("[" * 100_000, NO_JSON),
    "5,000 digits": (branch().replace("null", "1" * 5000), NO_JSON),
    "latin-1": ('{"branches": "é"}'.encode("latin-1"), NO_JSON),
    "binary": (bytes(range(256)), NO_JSON),
}


def centreline(folder: Path, content: str | bytes) -> list:
    raw = content if isinstance(content, bytes) else content.encode()
    for name in ("real", "labels", "synthesis", "centrelines"):
        (folder / name).mkdir()
    (folder / "real" / "broken.img.nii.gz").write_bytes(CT)
    (folder / "labels" / "broken.label.nii.gz").write_bytes(gzip.compress(nifti(a_label())))
    (folder / "synthesis" / "broken.img.nii.gz").write_bytes(CT)
    (folder / "centrelines" / "broken.centreline.json").write_bytes(raw)
    names = ("real", "labels", "synthesis", "centrelines")
    folders = [part for name in names for part in (f"--{name}", folder / name)]
    return [*folders, "--output-dir", folder / "out", "--workers", "1"]


for name, (text, words) in CENTRELINES.items():
    make = partial(centreline, content=text)
    add(f"centreline: {name}", "evaluate", make, "broken.centreline.json", words)


# ---- files that an earlier run has written, or that list cases


def stored(folder: Path, name: str, content: bytes, arguments: list) -> list:
    (folder / "out").mkdir()
    (folder / "out" / name).write_bytes(content)
    return [*arguments, "--output-dir", folder / "out"]


JSON = {
    "half": b'{"format": 1, "settings": {',
    "list": b"[]",
    "100,000 brackets": b"[" * 100_000,
    "binary": bytes(range(256)),
    "empty": b"",
}
PHANTOM = ["--cases", "1", "--resolution", "16", "16", "16", "--spacing", "5", "5", "5"]
for name, raw in JSON.items():
    make = partial(stored, name="phantom.json", content=raw, arguments=PHANTOM)
    add(f"phantom.json: {name}", "phantom", make, "phantom.json")
for name, raw in {
    **JSON,
    "another form": b'{"format": 1, "settings": [], "cases": 3}',
    "another version": b'{"format": 99, "settings": {}, "cases": {}}',
    "other settings": b'{"format": 1, "settings": {"seed": [5]}, "cases": {}}',
}.items():

    def manifest(folder: Path, raw: bytes = raw) -> list:
        arguments = data_set(folder)
        return [*arguments[:2], "--workers", "1", *stored(folder, "manifest.json", raw, [])]

    add(f"manifest.json: {name}", "prepare", manifest, "manifest.json")


def ids(folder: Path, content: bytes) -> list:
    (folder / "ids.txt").write_bytes(content)
    return [*data_set(folder), "--validation-ids", folder / "ids.txt"]


for name, raw in {
    "empty": b"",
    "unknown": b"7\n",
    "all": b"broken good",
    "binary": bytes(range(256)),
    "latin-1": "é".encode("latin-1"),
}.items():
    add(f"ids: {name}", "prepare", partial(ids, content=raw), "ids.txt")


def log(folder: Path, content: bytes) -> list:
    (folder / "metrics.jsonl").write_bytes(content)
    return [*centreline(folder, branch()), "--training-log", folder / "metrics.jsonl"]


for name, raw in {
    "empty": b"",
    "binary": bytes(range(256)),
    "brackets": b"[" * 100_000 + b"\n",
    "other rows": b'{"step": 1}\n[]\n3\n{"split": "validation", "step": "x", "loss": 1}\n',
    "NaN": b'{"split": "validation", "step": 1, "loss": NaN}\n',
}.items():
    add(f"metrics.jsonl: {name}", "evaluate", partial(log, content=raw), "metrics.jsonl")


# ---- checkpoints, by their bytes alone


def model(folder: Path, make: Callable[[Path], object], name: str = "m.ckpt") -> list:
    make(folder / name)
    return [*ct_folder(folder, "good.img.nii.gz", CT)[:4], "--model", folder / name]


WEIGHTS = (FIXTURES / "stage_1.ckpt").read_bytes()
for name, raw in {
    "empty": b"",
    "text": b"no weights\n" * 99,
    "cut off": WEIGHTS[: len(WEIGHTS) // 2],
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}.items():
    write = partial(Path.write_bytes, data=raw)
    add(f"checkpoint: {name}", "reconstruct", partial(model, make=write), "m.ckpt")
    if name != "pickle":
        safe = partial(model, make=write, name="m.safetensors")
        add(f"safetensors: {name}", "reconstruct", safe, "m.safetensors")
add("checkpoint: a folder", "reconstruct", partial(model, make=Path.mkdir), "m.ckpt: a folder")
add("checkpoint: a pipe", "reconstruct", partial(model, make=os.mkfifo), "m.ckpt: a pipe")
add("checkpoint: missing", "reconstruct", partial(model, make=str), "m.ckpt")


# ---- places to write to, and options


def unwritable(folder: Path, out: str) -> list:
    arguments = data_set(folder)
    (folder / "file").write_text("a file, no folder")
    return [*arguments[:2], "--output-dir", folder / out, "--workers", "1"]


for out in ("file", "file/out", "x" * 300, "/proc/nowhere"):
    add(f"output: {out[:20]}", "prepare", partial(unwritable, out=out), out)
for option in (
    ["--workers", "0"],
    ["--workers", "many"],
    ["--validation-fraction", "nan"],
    ["--validation-fraction", "2"],
    ["--margin-mm", "3"],
    ["--seed", "1e3"],
    ["--link", "soft"],
    ["--heart-dir", "nowhere"],
    ["--config", "nowhere"],
    ["--nothing"],
):
    make = lambda d, o=option: [*data_set(d)[:4], *o]  # noqa: E731
    add(f"option: {' '.join(option)}", "prepare", make, option[0].lstrip("-").split("-")[0])
for option in (
    *(["--tile", "²"], ["--tile", "0"], ["--resolution", "4"], ["--precision", "8"]),
    *(["--spacing", "nan", "1", "1"], ["--spacing", "1e-9", "1", "1"]),
):
    make = lambda d, o=option: [*ct_folder(d, "good.nii.gz", CT), *o]  # noqa: E731
    add(f"option: {' '.join(option)}", "reconstruct", make, option[0].lstrip("-"))


for option in (["--vessel-class", "-1"], ["--heart-classes", "999"], ["--hu-window", "3", "nan"]):
    make = lambda d, o=option: [*centreline(d, branch()), *o]  # noqa: E731
    add(f"option: {' '.join(option)}", "evaluate", make, option[0])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for number, (name, item) in enumerate(CORPUS.items()):
        folder = root / f"{number:03d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"{folder}  {name}: tubesynth {item.command}", *item.make(folder))
