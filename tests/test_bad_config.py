"""Any text is a config or an error of one line: odd ends of YAML, aliases, pipes, overrides."""

import math
import os
import time
import tracemalloc

import pytest
import refusals
from config_fuzzer import faults
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tubesynth.config.limits import RANGES
from tubesynth.config.loading import config_from_plain, load_config
from tubesynth.config.plain_yaml import DEEPEST, parse_yaml
from tubesynth.config.strict import flatten, to_plain
from tubesynth.runtime.errors import InputError, short
from tubesynth.train import main

BOMB = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{b}: &{b} {{" + ", ".join(f"k{i}: *{a}" for i in range(9)) + "}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def refusal(path, *overrides):
    message = refusals.refusal(lambda: load_config(path, overrides))
    assert len(message) < 400
    return message


def write(tmp_path, text):
    path = tmp_path / "c.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stage: 1\nseed: !!int abc\n", "line 2: not valid YAML ('abc' is no int)"),
        ("stage: 1\nseed: !!int ''\n", "line 2: not valid YAML ('' is no int)"),
        ("stage: 1\nseed: 0x_\n", "line 2: not valid YAML ('0x_' is no int)"),
        ("stage: 1\nseed: !!bool abc\n", "line 2: not valid YAML ('abc' is no bool)"),
        ("stage: 1\nseed: " + "1" * 5000, "line 2: not valid YAML ('1111"),
        ("stage: 1\nseed: 0x" + "1" * 5000, "too many digits"),
        ("stage: 1\nseed: !!python/object:os.system x\n", "values have no type"),
        ("stage: 1\nseed: !!set {a}\n", "values have no type"),
        ("stage: 1\nseed: 2001-99-99\n", "seed: expected a whole number, got '2001-99-99'"),
        ("stage: 1\nseed: =\n", "seed: expected a whole number, got '='"),
        ("stage: 1\n? [a, b]\n: 1\n", "line 2: not valid YAML (a key is a list or a section"),
        ("stage: 1\n<<: {seed: 1}\n", "unknown key '<<'"),
        ("stage: 1\nyes: 1\nyes: 1\n", "line 3: key 'yes' is repeated"),
        ("stage: 1\nseed: 1\0\n", "line 2: not valid YAML (character U+0000)"),
        ('stage: 1\ndata: {root: "a\\0"}\n', "line 2: not valid YAML (text with a character"),
        ('stage: 1\ndata: {root: "\\udce9"}\n', "line 2: not valid YAML (text with a character"),
        (b"stage: 1\nseed: \xe9\n", "byte 15 is no UTF-8 text"),
        ("stage: &s [*s]\n", "an anchor holds its own alias"),
        ("train: &t {self: *t, again: *t}\n", "an anchor holds its own alias"),
        ("seed: " + "[" * 3000 + "]" * 3000, f"nested over {DEEPEST} deep"),
        ("stage: 1\ntrain: {learning_rate: .inf}\n", "expected a finite number, got inf"),
        ("stage: 1\ntrain: {learning_rate: 1e999}\n", "expected a finite number, got '1e999'"),
        ("stage: 1\ndata: {hu_window: [.nan, 3]}\n", "data.hu_window[0]: expected a finite number"),
        ("stage: 1\n#" + "x" * 600_000, "over 524,288 bytes"),
    ],
)
def test_odd_ends_of_yaml_are_named_by_line_or_key(tmp_path, text, words):
    message = refusal(write(tmp_path, text))
    assert words in message and "c.yml" in message


def test_a_byte_order_mark_is_left_out(tmp_path):
    assert load_config(write(tmp_path, "\ufeffstage: 1\nseed: 5\n")).seed == 5


def test_aliases_are_read_and_a_bomb_of_aliases_is_refused_at_once(tmp_path):
    text = "stage: 1\ndata: {resolution: &r [64, 64, 64], crop: *r}\n"
    assert load_config(write(tmp_path, text)).data.crop == [64, 64, 64]
    path, start = write(tmp_path, BOMB), time.process_time()
    assert "too many values" in refusal(path)
    assert time.process_time() - start < 1
    tracemalloc.start()
    refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 3e7
    tracemalloc.stop()
    assert "too many values" in refusal(write(tmp_path, f"s: &s {'x' * 50_000}\nt: [{'*s,' * 99}]"))


def test_a_config_that_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yml")
    (tmp_path / "folder.yml").mkdir()
    assert "pipe or a device" in refusal(tmp_path / "pipe.yml")
    assert "pipe or a device" in refusal("/dev/zero")
    assert "a folder, no config file" in refusal(tmp_path / "folder.yml")


@pytest.mark.parametrize(
    ("items", "start", "words"),
    [
        (["train.epochs=abc"], "command line, 'train.epochs=abc': ", "train.epochs: expected a wh"),
        (["train.epochs=0"], "command line, 'train.epochs=0': ", "must be at least 1"),
        (["train={epochs: 0}"], "command line, 'train={epochs: 0}': ", "train.epochs: 0: must be"),
        (["train.epoch=1"], "command line, 'train.epoch=1': ", "did you mean 'train.epochs'?"),
        (
            ["train.batch_size=2"],
            "command line, 'train.batch_size=2': ",
            "did you mean 'data.batch_size'?",
        ),
        (
            ["data.learning_rate=2"],
            "command line, 'data.learning_rate=2': ",
            "did you mean 'train.learning_rate'?",
        ),
        (["data.crop=[8, x, 8]"], "command line, 'data.crop=[8, x, 8]': ", "data.crop[1]: expect"),
        (["seed=2001-99-99"], "command line, 'seed=2001-99-99': ", "expected a whole number"),
        (["seed=[1"], "command line, 'seed=[1', line 1: ", "not valid YAML"),
        (["seed=\x07"], "command line, 'seed=\\x07', line 1: ", "not valid YAML"),
        (["train.epochs"], "command line, 'train.epochs': ", "expected key=value"),
        (["seed.x=1"], "command line, 'seed.x=1': ", "'seed' is a value, not a section"),
        (["seed=1", "seed=2"], "command line, 'seed=2': ", "'seed=1' sets it too"),
        (["train={}", "train.keep=1"], "command line, 'train.keep=1': ", "'train={}' sets it too"),
        (["train.keep=1", "train={}"], "command line, 'train={}': ", "'train.keep=1' sets it too"),
        (["labels.vessel=99"], "command line, 'labels.vessel=99': ", "labels.vessel: 99"),
        (["stage=7"], "command line, 'stage=7': ", "stage: expected one of"),
        (
            ["train.swa.from_epoch=1"],
            "command line, 'train.swa.from_epoch=1': ",
            "key 'train.swa.learning_rate' is missing",
        ),
        (
            ["seed=2", "train.learning_rate=1e-9", "train.learning_rate_min=1e-4"],
            "command line, 'train.learning_rate=1e-9', 'train.learning_rate_min=1e-4': ",
            "train.learning_rate_min: 0.0001",
        ),
        (["unet.channels=[3]"], "command line, 'unet.channels=[3]': ", "is of stage 2 or 3"),
        (["train.keep=0"], "command line, 'train.keep=0': ", "null for all"),
    ],
)
def test_an_error_of_an_item_of_the_command_line_names_it(tmp_path, items, start, words):
    names = "labels: {names: [a, b], vessel: 1}\n"
    message = refusal(write(tmp_path, "stage: 1\nseed: 1\n" + names), *items)
    assert message.startswith(start) and words in message


def test_an_error_of_the_file_names_the_file_and_a_contradiction_names_both(tmp_path):
    path = write(tmp_path, "stage: 1\ndata: {crop: [64, 64, 64]}\ntrain: {epochs: 0}\n")
    assert refusal(path, "seed=1").startswith(f"{path}: train.epochs: ")
    path = write(tmp_path, "stage: 1\ndata: {crop: [64, 64, 64]}\n")
    both = refusal(path, "seed=1", "data.resolution=[32, 32, 32]")
    assert both.startswith(f"{path}, command line, 'data.resolution=[32, 32, 32]': data.crop: ")


def test_a_flag_is_named_as_it_was_written(tmp_path):
    path = write(tmp_path, "stage: 1\n")
    with pytest.raises(InputError) as caught:
        main(["--config", str(path), "--latent-mode", "flow", "seed=1"])
    assert str(caught.value).startswith("--latent-mode flow: unknown key 'latent_mode' in a config")
    path = write(tmp_path, "stage: 2\nsampling: {solver: heun}\n")
    with pytest.raises(InputError) as caught:
        main(["--config", str(path), "--latent-mode", "diffusion"])
    assert str(caught.value).startswith(f"{path}, --latent-mode diffusion: sampling.solver: heun")


def test_a_section_as_a_whole_is_refused_where_it_would_reset_keys(tmp_path):
    text = "stage: 1\ntrain: {epochs: 3}\ndata: {label_map: {5: 1}, augment: {flip: 0.5}}\n"
    path = write(tmp_path, text)
    for item, reset in (
        ("train={}", "train.epochs"),
        ("train={learning_rate: 1e-3}", "train.epochs"),
        ("data={augment: {rotate90: 0.1}, label_map: {5: 1}}", "data.augment.flip"),
    ):
        message = f"command line, {short(item)}: would reset {reset} too"
        assert refusal(path, item).startswith(message)
    changed = load_config(path, ["data.label_map={7: 2}", "data.augment={flip: 0.1}", "losses={}"])
    assert changed.data.label_map == {7: 2} and changed.data.augment.flip == 0.1
    assert load_config(path, ["train={epochs: 5, keep: 1}"]).train.epochs == 5


def test_a_checkpoint_that_kept_no_periodic_one_is_still_read():
    content = {"stage": 1, "train": {"keep": 0}}
    assert config_from_plain(content, "old.ckpt").train.keep == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "3", "train.epochs=4"], "'train.epochs=4' sets it too"),
        (["data.root=caf\udce9"], "the name is no UTF-8"),
    ],
)
def test_flags_and_items_that_contradict_each_other_are_refused(tmp_path, capsys, flags, words):
    path = write(tmp_path, "stage: 1\n")
    command = ["--config", str(path), "--dry-run", *flags]
    line = refusals.refused_command(lambda: main(command), capsys)
    assert words in line or words.replace("4' sets", "3' sets") in line


def test_of_a_flag_that_is_there_twice_the_last_counts_and_a_note_says_so(tmp_path, capsys):
    path = write(tmp_path, "stage: 1\n")
    main(["--config", str(path), "--dry-run", "--seed", "1", "--seed", "2"])
    captured = capsys.readouterr()
    assert captured.err == "note: --seed is there twice: 2 counts\n" and "seed: 2\n" in captured.out


@pytest.mark.parametrize("key", RANGES)
def test_numbers_beyond_either_end_of_their_range_are_refused(tmp_path, key):
    low, high, low_open, high_open = RANGES[key]
    text = f"{'at least' if not low_open else 'above'} {low:g}"
    bad = {low if low_open else low - 1: text}
    if high < math.inf:
        bad[high if high_open else 10 * high] = f"{'below' if high_open else 'at most'} {high:.10g}"
    stages = (2,) if ".swa." in key else (1, 2, "segmenter")
    stage = next(s for s in stages if _has(tmp_path, s, key))
    path = write(tmp_path, f"stage: {stage}\n{SWA if '.swa.' in key else ''}")
    is_list = isinstance(flatten(to_plain(load_config(path))).get(key), list)
    for value, words in bad.items():
        line = refusal(path, f"{key}={[value] * 3 if is_list else value}")
        assert f"{key}: " in line and f"must be {words}" in line
    if is_list:
        assert "2000 numbers: give 1 to 12" in refusal(path, f"{key}={[64] * 2000}")


SWA = "train: {swa: {from_epoch: 1, learning_rate: 1.0e-5}}\n"


def _has(tmp_path, stage, key):
    return hasattr(load_config(write(tmp_path, f"stage: {stage}\n")), key.split(".")[0])


def test_mutated_configs_end_with_a_plan_or_one_line(tmp_path):
    assert faults(100, 1, tmp_path) == {}


# Characters that YAML reads as syntax, some text, and any character at all.
yaml_text = st.text(st.sampled_from("[]{}:,&*!|>%'\"#-?=<~ \n\tab01._xe") | st.characters())


@few
@given(yaml_text | st.lists(yaml_text, max_size=5).map("\n".join))
def test_any_text_is_plain_values_or_an_input_error(text):
    try:
        value = parse_yaml(text, "c.yml")
    except InputError as error:
        assert str(error).startswith("c.yml")
    else:
        assert_plain(value)


def assert_plain(value):
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        for item in value.values():
            assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or type(value) in (bool, int, float, str)


@settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["seed", "train", "train.epochs", "data.root", "data.crop", "x.y", "stage"]),
    yaml_text,
)
def test_any_value_of_an_item_is_taken_or_refused_by_its_name(tmp_path, key, text):
    try:
        load_config(write(tmp_path, "stage: 1\n"), [f"{key}={text}"])
    except InputError as error:
        assert "command line, " in str(error)
