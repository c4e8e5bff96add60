"""Checkpoints with damaged bytes, wrong contents or code in them: one line, and exit code 2.

Each is refused by Checkpoint.load, through which every command reads.
"""

import copy
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused_command

from tubesynth import export
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.build.checkpoint_file import write_contents
from tubesynth.runtime.errors import InputError

FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"
ABSENT = object()  # as a value: the key is removed


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[int, Path]:
    """Checkpoints of stages 1 and 2, and in 0 the weights of stage 2 alone, in today's format."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {stage: folder / f"stage_{stage}.ckpt" for stage in (0, 1, 2)}
    for stage in (1, 2):
        Checkpoint.load(FIXTURES / f"stage_{stage}.ckpt").save(paths[stage])
    Checkpoint.load(paths[2]).weights_alone().save(paths[0])
    return paths


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def refused(path: Path, capsys) -> str:
    """The line of a command that is given the file; it writes nothing."""
    output = path.with_name("out.safetensors")
    line = refused_command(lambda: export.main([str(path), "--output", str(output)]), capsys)
    assert line.startswith(f"{path}: ") and not output.exists()
    return line


CHANNELS = ("config", "unet", "channels")
MODULE = ("phases", "unet", "module")
FIRST = (*MODULE, "conv_in.weight")
EMA = ("phases", "unet", "ema")
FIRST_EMA = (*EMA, 10.0, "conv_in.weight")
SWA = ("phases", "unet", "swa")
ADAM = ("phases", "unet", "optimizer")
GROUP = (*ADAM, "param_groups", 0)
MOMENT = (*ADAM, "state", 0, "exp_avg")
LATENTS = ("autoencoder", "module")
GAN = ("phases", "discriminator")
INTERVAL = {"steps": 1, "skipped_steps": 0, "sums": {}, "counts": {}}
EMPTY_PHASE = {"module": {}, "optimizer": None, "scaler": {}, "ema": {}}

# (stage, keys, wrong value or a function of the right one, words of the message)
WRONG: list[tuple] = [
    # Whole parts
    (2, (), 3, "not a tubesynth checkpoint"),
    (2, (), [1, 2], "not a tubesynth checkpoint"),
    (2, (), {}, "not a tubesynth checkpoint"),
    (2, (), torch.zeros(3), "not a tubesynth checkpoint"),
    (2, ("format",), ABSENT, "not a tubesynth checkpoint"),
    (2, ("format",), "6", "not a tubesynth checkpoint"),
    (2, ("format",), 99, "format 99 of stage 2, this version reads"),
    (2, ("format",), torch.tensor([6, 6]), "not a tubesynth checkpoint"),
    (2, ("config",), ABSENT, "not a tubesynth checkpoint"),
    (2, ("config",), [], "not a tubesynth checkpoint"),
    (2, ("config", "stage"), 7, "no such stage"),
    (2, ("config", "stage"), [2], "not a tubesynth checkpoint"),
    (2, ("config", "stage"), "segmenter", "format 6 of stage segmenter"),
    (2, ("config", "stage"), 3, "'phases.unet.module.base."),
    (2, ("config", "unet"), 3, "unet: expected a section"),
    (2, CHANNELS, [16, -16], "config: unet.channels"),
    (2, CHANNELS, torch.tensor([16, 16]), "unet.channels: expected a list"),
    (2, CHANNELS, [32, 32], "'phases.unet.module.embed_time.0.weight' has shape"),
    (2, ("config", "unet", "num_res_blocks"), 2, "module"),
    (2, ("config", "data", "resolution"), "large", "data.resolution: expected a list"),
    (2, ("config", "labels"), 7, "labels: expected a section"),
    (2, ("config", 3), 4, "unknown key '3'"),
    (1, ("config", "autoencoder"), [], "autoencoder: expected a section"),
    (1, ("config", "autoencoder", "codebook_size"), 64, "codebook"),
    (1, ("config", "autoencoder", "quantizer"), "fsq", "config: autoencoder.embedding_dim"),
    # Progress
    (2, ("position",), [], "'position' is list, not dict"),
    (2, ("position",), None, "'best' and 'position' need each other"),
    (2, ("position", "step"), -1, "'position.step' is -1, not 0 to"),
    (2, ("position", "step"), 8.0, "'position.step' is float, not int"),
    (2, ("position", "step"), True, "'position.step' is bool, not int"),
    (2, ("position", "step"), torch.tensor(8), "'position.step' is Tensor, not int"),
    (2, ("position", "sample_index"), -8, "'position.sample_index' is -8, not 0"),
    (2, ("position", "schedule_start"), 9, "'position.schedule_start' is 9, not 0 to 8"),
    (2, ("position", "step"), 10**9, "'position.step' is 1000000000, not 0 to"),
    (2, ("position", "sample_index"), 10**40, "'position.sample_index' is 1000"),
    (2, ("position", "rollbacks"), 10**9, "'position.rollbacks' is 1000000000, not 0 to"),
    (2, ("position", "started_from"), 5, "'position.started_from' is int, not str"),
    (2, ("position", "due"), "panels ../../x", "'position.due' has '../../x', which is no work"),
    (2, ("best",), None, "'best' and 'position' need each other"),
    (2, ("best", "mode"), "least", "'best.mode' is 'least', not min, the better direction of loss"),
    (2, ("best", "mode"), "max", "'best.mode' is 'max', not min, the better direction of loss"),
    (2, ("best", "name"), "beauty", "'best.name' is 'beauty', not one of loss"),
    (2, ("best", "step"), None, "'best.step' is missing beside the value"),
    (2, ("best", "value"), "low", "'best.value' is str, not float"),
    (2, ("best", "step"), 99, "'best.step' is 99, not 0 to 8"),
    (2, ("best", "without_improvement"), -1, "'best.without_improvement' is -1"),
    # Phases and weights
    (2, ("phases",), [], "'phases' is list, not dict"),
    (2, ("phases", "unet"), [], "'phases.unet' is list, not dict"),
    (2, ("phases",), {}, "'phases.unet' is missing"),
    (2, ("phases", "extra"), EMPTY_PHASE, "is no phase of stage 2"),
    (2, ("phases", 3), EMPTY_PHASE, "'phases.3 (as a key)' is int, not str"),
    (1, GAN, ABSENT, "'phases.discriminator' is missing"),
    (1, (*GAN, "module"), {}, "'phases.discriminator.module."),
    (2, MODULE, [], "'phases.unet.module' is list, not dict"),
    (2, MODULE, {}, "'phases.unet.module.embed_time.0.weight' is missing"),
    (2, FIRST, ABSENT, "'phases.unet.module.conv_in.weight' is missing"),
    (2, FIRST, None, "'phases.unet.module.conv_in.weight' is NoneType, not Tensor"),
    (2, FIRST, lambda w: w[:1], "has shape (1, 4, 3, 3, 3), where its config needs (8, 4"),
    (2, FIRST, lambda w: w.double().to(torch.int64), "is torch.int64, where the network has"),
    (2, FIRST, lambda w: w.to(torch.complex64), "phases/unet/module/conv_in.weight is no dense"),
    (2, FIRST, lambda w: w.to_sparse(), "phases/unet/module/conv_in.weight is no dense array"),
    (2, FIRST, lambda w: w.to("meta"), "not a readable tubesynth checkpoint"),
    (2, FIRST, lambda w: w * math.nan, "phases/unet/module/conv_in.weight has values that are not"),
    (2, FIRST, lambda w: w.index_fill(0, torch.tensor([3]), math.inf), "not finite (NaN or Inf)"),
    (2, (*MODULE, "stranger"), torch.zeros(2), "module.stranger' is no weight of the network"),
    (1, ("phases", "autoencoder", "module", "quantizer.codebook"), lambda w: w.T, "codebook' has"),
    # Averages
    (2, EMA, [], "'phases.unet.ema' is list, not dict"),
    (2, EMA, lambda ema: {"10": ema[10.0]}, "'phases.unet.ema.10 (as a key)' is str, not float"),
    (2, EMA, lambda ema: {-10.0: ema[10.0]}, "is a half-life of no more than 0 steps"),
    (2, EMA, lambda ema: {math.nan: ema[10.0]}, "is a half-life of no more than 0 steps"),
    (2, EMA, {10.0: {}}, "'phases.unet.ema.10.embed_time.0.weight' is missing"),
    (2, EMA, {10.0: 3}, "'phases.unet.ema.10.0' is int, not dict"),
    (2, FIRST_EMA, lambda w: w[..., :1], "'phases.unet.ema.10.conv_in.weight'"),
    (2, FIRST_EMA, lambda w: w * math.nan, "phases/unet/ema/10.0/conv_in.weight"),
    (2, SWA, {"epochs": 0, "module": {}}, "'phases.unet.swa.epochs' is 0, below 1"),
    (
        2,
        SWA,
        {"epochs": 1, "module": {}},
        "'phases.unet.swa.module.embed_time.0.weight' is missing",
    ),
    # Optimizer and gradient scaler
    (2, ADAM, ABSENT, "'phases.unet.optimizer' is missing"),
    (2, ADAM, None, "'phases.unet.optimizer' and 'position' need each other"),
    (2, ADAM, {}, "'phases.unet.optimizer.param_groups' is not a list of one group"),
    (2, ADAM, [], "'phases.unet.optimizer' is list, not dict"),
    (2, (*ADAM, "param_groups"), [3], "'phases.unet.optimizer.param_groups' is not a list of one"),
    (2, (*GROUP, "params"), [0, 1], "'phases.unet.optimizer.param_groups.params' is not 0 to"),
    (2, (*GROUP, "lr"), "fast", "'phases.unet.optimizer.param_groups.lr' is 'fast'"),
    (2, (*GROUP, "lr"), math.nan, "'phases.unet.optimizer.param_groups.lr' is nan"),
    (2, (*GROUP, "betas"), (0.9,), "'phases.unet.optimizer.param_groups.betas' is (0.9,)"),
    (2, (*GROUP, "eps"), ABSENT, "'phases.unet.optimizer.param_groups.eps' is None"),
    (2, (*ADAM, "state"), [], "'phases.unet.optimizer.state' is not a dictionary"),
    (2, (*ADAM, "state", 9999), {}, "'phases.unet.optimizer.state.9999' is no parameter"),
    (2, (*ADAM, "state", "0"), {}, "'phases.unet.optimizer.state.0' is no parameter"),
    (2, (*ADAM, "state", 0), 3, "'phases.unet.optimizer.state.0' is int, not dict"),
    (2, MOMENT, ABSENT, "'phases.unet.optimizer.state.0.exp_avg' is no tensor"),
    (2, MOMENT, lambda m: m[:1], "'phases.unet.optimizer.state.0.exp_avg' has shape"),
    (2, MOMENT, lambda m: m / 0, "phases/unet/optimizer/state/0/exp_avg has values that are not"),
    (2, (*ADAM, "state", 0, "step"), "8", "'phases.unet.optimizer.state.0.step' is '8'"),
    (2, MOMENT, lambda m: m.int(), "'phases.unet.optimizer.state.0.exp_avg' is torch.int32"),
    (2, (*ADAM, "state", 0, "exp_avg_sq"), lambda m: m - 1, "exp_avg_sq' is negative"),
    (2, (*ADAM, "state", 0, "step"), torch.tensor(1.5), "not a number from 0 to 8"),
    (2, (*ADAM, "state", 0, "step"), torch.tensor(9.0), "is tensor(9.), not a number from 0 to 8"),
    (2, (*GROUP, "lr"), -1e-3, "'phases.unet.optimizer.param_groups.lr' is -0.001"),
    (2, (*ADAM, "state", 0, "step"), torch.tensor(-1.0), "'phases.unet.optimizer.state.0.step'"),
    (2, ("phases", "unet", "scaler"), 3, "'phases.unet.scaler' is int, not dict"),
    (2, ("phases", "unet", "scaler"), {"scale": "x"}, "'phases.unet.scaler.scale' is 'x'"),
    (2, ("phases", "unet", "scaler"), {"scale": 1.0}, "'phases.unet.scaler.growth_factor' is None"),
    # Latents
    (2, ("latent_scale",), None, "'latent_scale' is missing"),
    (2, ("latent_scale", "mean"), torch.zeros(3), "'latent_scale.mean' has shape (3,), where"),
    (2, ("latent_scale", "mean"), [0.0] * 4, "'latent_scale.mean' is list, not Tensor"),
    (2, ("latent_scale", "std"), torch.zeros(4), "'latent_scale.std' is not above 0"),
    (2, ("latent_scale", "std"), torch.full((4,), math.nan), "latent_scale/std has values that"),
    (2, ("autoencoder",), None, "'autoencoder' is missing"),
    (2, ("autoencoder", "config"), {"stage": 2}, "'autoencoder.config' is of stage 2"),
    (2, ("autoencoder", "config", "autoencoder", "embedding_dim"), 8, "conv_in.weight' has shape"),
    (2, ("autoencoder", "digest"), "0" * 16, "'autoencoder.digest' is of other weights"),
    (2, LATENTS, {}, "'autoencoder.module."),
    (2, (*LATENTS, "quantizer.codebook"), lambda w: w + 1, "'autoencoder.digest' is of other"),
    (1, ("autoencoder",), lambda _: 3, "'autoencoder' is int, not dict"),
    # The steps since the last line of the log
    (2, ("interval",), 3, "'interval' is int, not dict"),
    (2, ("interval",), {**INTERVAL, "steps": -1}, "'interval.steps' is -1, below 0"),
    (2, ("interval",), {**INTERVAL, "sums": {0: {"a,b": torch.zeros(2)}}}, "'interval.sums.0.a,b'"),
    (2, ("interval",), {**INTERVAL, "sums": {"0": {}}}, "'interval.sums.0 (as a key)' is str"),
    (1, ("interval",), {**INTERVAL, "counts": {"autoencoder": torch.zeros(3)}}, "(3,), where"),
    # Weights alone
    (0, ("phases",), {}, "'phases.unet' is missing"),
    (0, ADAM, {}, "'phases.unet.optimizer' and 'position' need each other"),
    (0, (*MODULE, "conv_in.bias"), ABSENT, "'phases.unet.module.conv_in.bias' is missing"),
]


def with_value(contents: dict, keys: tuple, value) -> object:
    """The contents with one value replaced or removed."""
    if not keys:
        return value
    contents = inner = copy.deepcopy(contents)
    for key in keys[:-1]:
        inner = inner[key]
    if value is ABSENT:
        del inner[keys[-1]]
    else:
        old = inner.get(keys[-1]) if isinstance(inner, dict) else inner[keys[-1]]
        inner[keys[-1]] = value(old) if callable(value) else value
    return contents


@pytest.mark.parametrize(
    ("stage", "keys", "value", "words"),
    WRONG,
    ids=[f"{i}-{'.'.join(map(str, keys)) or 'all'}" for i, (_, keys, *_) in enumerate(WRONG)],
)
def test_wrong_contents_are_refused_in_one_line(stage, keys, value, words, files, tmp_path, capsys):
    path = tmp_path / "wrong.ckpt"
    torch.save(with_value(read(files[stage]), keys, value), path)
    assert words in refused(path, capsys)


def test_right_contents_are_read(files, tmp_path):
    """Also of an optimizer that has made no step, and without the keys that are newer."""
    for stage in (0, 1, 2):
        Checkpoint.load(files[stage])
    contents = with_value(read(files[2]), (*ADAM, "state"), {})  # 8 steps, all skipped
    for key in ("rollbacks", "resumed_from"):
        del contents["position"][key]
    torch.save(contents, tmp_path / "new.ckpt")
    assert Checkpoint.load(tmp_path / "new.ckpt").position.rollbacks == 0
    contents["position"]["step"] = 38
    torch.save(contents, tmp_path / "new.ckpt")
    with pytest.raises(InputError, match="phases.unet.optimizer.state' is empty, after 38 steps"):
        Checkpoint.load(tmp_path / "new.ckpt")


@pytest.mark.parametrize("damage", ["bit", "zeros"])
@pytest.mark.parametrize(
    "keys", [FIRST, (*EMA, 10.0, "conv_out.weight"), MOMENT, (*LATENTS, "quantizer.codebook")]
)
def test_damaged_bytes_of_a_tensor_are_refused_by_its_name(keys, damage, files, tmp_path, capsys):
    tensor = read(files[2])
    for key in keys:
        tensor = tensor[key]
    content, path = bytearray(files[2].read_bytes()), tmp_path / "damaged.ckpt"
    start = content.index(tensor.numpy().tobytes())
    if damage == "bit":
        content[start + 9] ^= 1
    else:
        content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    name = "/".join(map(str, keys))
    line = refused(path, capsys)
    assert f"{path}: damaged: {name} differs from its checksum: copy it again" in line


def test_a_flipped_bit_is_refused_or_changes_nothing(files, tmp_path):
    """Padding and dates in the archive mean nothing; every other bit is covered."""
    content, path = files[1].read_bytes(), tmp_path / "flipped.ckpt"
    right = str(read(files[1]))
    random = np.random.default_rng(0)
    ends = [*random.integers(8 * 12_000, size=20), *-random.integers(1, 8 * 9_000, size=20)]
    refusals = 0
    for bit in map(int, [*random.integers(8 * len(content), size=20), *ends]):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            Checkpoint.load(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refusals += 1
        else:
            is_right = str(read(path)) == right  # a difference of the texts takes pytest hours
            assert is_right, bit
    assert refusals > 30


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 0.5, 0.99])
def test_a_truncated_file_is_refused(size, files, tmp_path, capsys):
    content, path = files[2].read_bytes(), tmp_path / "truncated.ckpt"
    path.write_bytes(content[: size if isinstance(size, int) else int(size * len(content))])
    assert "damaged, or made by another program" in refused(path, capsys)


class Payload:
    """Makes a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("container", ["archive", "pickle", "tensor", "recursive", "deep"])
def test_a_crafted_pickle_is_refused_and_runs_nothing(container, files, tmp_path, capsys):
    path, trace = tmp_path / "crafted.ckpt", tmp_path / "trace"
    contents = read(files[2])
    if container == "pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    elif container == "recursive":
        contents["phases"]["more"] = contents
        torch.save(contents, path)
    elif container == "deep":
        inner = contents
        for _ in range(100):
            inner["phases"] = inner = {}
        torch.save(contents, path)
    else:
        inner = contents["phases"]["unet"]["module"] if container == "tensor" else contents
        inner["payload"] = Payload(trace)
        torch.save(contents, path)
    refused(path, capsys)
    assert not trace.exists()


def test_equal_contents_have_equal_bytes(files, tmp_path):
    """Also in another process, in whose memory other texts and tuples are the same object."""
    for stage in (1, 2):
        Checkpoint.load(files[stage]).save(tmp_path / "first.ckpt")
        Checkpoint.load(tmp_path / "first.ckpt").save(tmp_path / "second.ckpt")
        contents = read(tmp_path / "first.ckpt")
        contents["best"]["name"] = "".join(["lo", "ss"])
        write_contents(tmp_path / "third.ckpt", contents)
        for name in ("second", "third"):
            again = (tmp_path / f"{name}.ckpt").read_bytes()
            assert again == (tmp_path / "first.ckpt").read_bytes()


def test_a_file_that_does_not_fit_in_the_memory_is_not_called_damaged(files, monkeypatch):
    """A run would pass it over and go on from an older one."""

    def too_large(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(torch, "load", too_large)
    with pytest.raises(RuntimeError, match="can't allocate"):
        Checkpoint.load(files[1])


def test_weights_that_are_not_finite_are_not_written(files, tmp_path):
    checkpoint, path = Checkpoint.load(files[2]), tmp_path / "last.ckpt"
    checkpoint.save(path)
    before = path.read_bytes()
    checkpoint.phases["unet"].module["conv_in.bias"][1] = math.nan
    with pytest.raises(InputError, match="last.ckpt: not written: phases/unet/module/conv_in.bias"):
        checkpoint.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
