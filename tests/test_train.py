"""Training end to end: runs, exact resume, several ranks, logs, refused input."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import train_on_two_ranks
from refusals import refusal, refused_command
from runs import lines

from tubesynth.build.base_models import require_base_models
from tubesynth.build.checkpoint import Checkpoint, Position
from tubesynth.config.loading import load_config
from tubesynth.config.schema import STAGES
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.run_lock import locked
from tubesynth.train import main, make_stage
from tubesynth.training.autoencoder import AutoencoderStage
from tubesynth.training.inputs import Volumes
from tubesynth.volume.files import read_labels, write_volume
from tubesynth.volume.grid import Volume

STEPS = 8  # two epochs of four cases


def checkpoint_of(run_dir: Path, name: str = "last") -> dict:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def flat(state, prefix=""):
    """Every leaf of a nested state, by its path."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        yield prefix, state
        return
    for key, value in items:
        yield from flat(value, f"{prefix}/{key}")


def assert_same_state(first: dict, second: dict, tolerance: float = 0.0):
    first, second = dict(flat(first)), dict(flat(second))
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor) and tolerance:
            torch.testing.assert_close(value, second[key], atol=tolerance, rtol=tolerance)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_writes_its_log_panels_and_checkpoints(stage, stage_1, stage_2):
    run_dir = (stage_1 if stage == 1 else stage_2).parent.parent
    assert (run_dir / "config.yml").exists() and (run_dir / "environment.json").exists()
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert [row["step"] for row in lines(run_dir, "training")] == list(range(1, STEPS + 1))
    validation = lines(run_dir, "validation")
    assert [row["step"] for row in validation] == [0, 4, 8]
    assert validation[-1]["loss"] < validation[0]["loss"]
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        "best.ckpt",
        "epoch_00001.ckpt",
        "epoch_00002.ckpt",
        "last.ckpt",
    ]
    (panel,) = (run_dir / "panels").glob("validation_*_step0000008.png")
    assert panel.stat().st_size > 10_000
    state = checkpoint_of(run_dir)
    best = dict(name="loss", mode="min", value=validation[-1]["loss"], step=8)
    assert state["best"] == {**best, "without_improvement": 0}
    assert state["position"] == vars(Position(step=8, sample_index=8))
    assert state["config"]["stage"] == stage


@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    stage, stage_1, stage_2, workplace, tmp_path
):
    done = (stage_1 if stage == 1 else stage_2).parent.parent
    config = str(workplace / f"s{stage}.yml")
    half = done / "checkpoints" / "epoch_00001.ckpt"
    main(["--config", config, "--run-dir", str(tmp_path), "--resume", str(half)])
    finished = checkpoint_of(tmp_path)
    finished["position"]["started_from"] = None
    assert_same_state(checkpoint_of(done), finished)
    assert lines(tmp_path, "validation")[-1]["loss"] == lines(done, "validation")[-1]["loss"]


@pytest.mark.parametrize(
    ("stage", "ranks", "options"),
    [
        (1, 1, ["autoencoder.revive_after=2"]),
        (1, 2, ["autoencoder.revive_after=2", "data.num_workers=2"]),
        (1, 1, ["train.precision=16-mixed", "train.accumulate=2", "train.epochs=4"]),
        (2, 1, ["train.precision=bf16-mixed", "unet.dropout=0.2", "data.num_workers=2"]),
        (2, 2, ["train.ema_half_life=[4, 8]", "unet.dropout=0.2"]),
        (2, 1, ["train.swa={from_epoch: 1, learning_rate: 1e-2}", "train.patience=9"]),
    ],
)
def test_a_resumed_run_writes_the_metrics_of_the_uninterrupted_one(
    stage, ranks, options, workplace, stage_1, tmp_path
):
    """Killed between two lines of the log, and after a later best.ckpt: the same bytes."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [*options, "train.log_every=3"]

    def run(folder):
        command = ["--config", str(workplace / f"s{stage}.yml"), "--run-dir", str(folder)]
        command += options
        main(command) if ranks == 1 else train_on_two_ranks(tmp_path, *command)

    run(whole)
    shutil.copytree(whole, resumed)
    checkpoints = resumed / "checkpoints"
    for path in [checkpoints / "last.ckpt", *sorted(checkpoints.glob("epoch_*.ckpt"))[1:]]:
        path.unlink()
    with open(resumed / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "ep')
    run(resumed)
    for name in ("last", "best"):
        assert_same_state(*(checkpoint_of(f, name) for f in (whole, resumed)))
    texts = [(folder / "metrics.jsonl").read_bytes() for folder in (whole, resumed)]
    assert texts[0] == texts[1] and texts[0].count(b"gradient_norm") > 1
    assert len((resumed / "timing.jsonl").read_text().splitlines()) == len(lines(whole, "training"))


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_again(workplace, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "epoch": 0, "split": "validation"}\n')
    main(["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path), "train.epochs=1"])
    assert [row["step"] for row in lines(tmp_path, "validation")] == [0, 4]


def test_the_same_command_again_changes_nothing(stage_1, workplace, capsys):
    before = stage_1.read_bytes()
    main(["--config", str(workplace / "s1.yml"), "--run-dir", str(workplace / "s1")])
    assert "nothing was left to do" in capsys.readouterr().err
    assert stage_1.read_bytes() == before


def test_a_run_killed_between_two_validations_resumes_from_its_newest_checkpoint(
    stage_2, workplace, tmp_path, capsys
):
    """The run was validated at the start only, so there is no last.ckpt yet."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copy2(stage_2.parent / "epoch_00001.ckpt", tmp_path / "checkpoints")
    command = ["--config", str(workplace / "s2.yml"), "--run-dir", str(tmp_path)]
    with pytest.raises(InputError, match="holds another run already"):
        main([*command, "train.learning_rate=1.0"])
    main(command)
    assert "epoch_00001.ckpt at step" in capsys.readouterr().err
    assert_same_state(checkpoint_of(stage_2.parent.parent), checkpoint_of(tmp_path))


def test_a_run_resumed_from_its_best_or_killed_in_its_panels_makes_the_files_of_that_epoch(
    workplace, stage_1, tmp_path, monkeypatch
):
    """The panels and the periodic checkpoint that were due after the validation are made too."""
    whole, from_best, killed = (tmp_path / name for name in ("whole", "from_best", "killed"))
    options = ["--config", str(workplace / "s1.yml"), "train.panel_every=1", "--run-dir"]
    main([*options, str(whole)])
    shutil.copytree(whole, from_best)
    assert checkpoint_of(whole, "best")["position"]["step"] == STEPS
    removed = [from_best / "checkpoints" / f"{name}.ckpt" for name in ("last", "epoch_00002")]
    for path in [*removed, *from_best.glob(f"panels/*{STEPS:07d}.png")]:
        path.unlink()
    (from_best / "checkpoints" / "epoch_00001.ckpt").unlink()  # best.ckpt is the last resort
    main([*options, str(from_best)])

    preview = AutoencoderStage.preview

    def fail(stage):
        if stage.position.step == STEPS:
            raise KeyError("as by kill -9")
        return preview(stage)

    with monkeypatch.context() as patched, pytest.raises(KeyError):
        patched.setattr(AutoencoderStage, "preview", fail)
        main([*options, str(killed)])
    main([*options, str(killed)])
    for folder in (from_best, killed):
        for name in ("last", "best", "epoch_00002"):
            assert_same_state(checkpoint_of(whole, name), checkpoint_of(folder, name))
        panels = [sorted(path.glob("panels/*.png")) for path in (whole, folder)]
        assert [path.name for path in panels[0]] == [path.name for path in panels[1]]
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*panels, strict=True))
        assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_loader_workers_change_nothing(stage_1, workplace, tmp_path):
    done = checkpoint_of(stage_1.parent.parent)
    main(["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path), "data.num_workers=2"])
    assert_same_state(done["phases"], checkpoint_of(tmp_path)["phases"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_ranks_train_like_one_with_twice_the_batch(stage, stage_1, workplace, tmp_path):
    """The ranks of stage 2 are started by torchrun."""
    config = ["--config", workplace / f"s{stage}.yml", "--run-dir"]
    options = ["train.epochs=2", "train.validate_every=2"]
    options.append("train.adam_eps=1e-6")  # Adam divides a gradient near 0, all rounding, by itself
    if stage == 1:  # the first codes, and those that are revived, come from the batch of all ranks
        options += ["autoencoder.revive_after=2", "data.crop=[16,16,16]"]
    else:
        options += ["unet.dropout=0.2"]
    main([str(item) for item in (*config, tmp_path / "one", "data.batch_size=2", *options)])
    if stage == 1:
        train_on_two_ranks(tmp_path, *config, tmp_path / "two", *options)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc-per-node=2", "-m", "tubesynth.train"]
        command += map(str, (*config, tmp_path / "two", *options))
        result = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        assert result.returncode == 0, result.stderr[-2000:]
    single, double = checkpoint_of(tmp_path / "one"), checkpoint_of(tmp_path / "two")
    assert single["position"] == double["position"]
    name = "autoencoder" if stage == 1 else "unet"
    weights = [state["phases"][name]["module"] for state in (single, double)]
    assert_same_state(*weights, tolerance=1e-5)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(workplace, stage_2, tmp_path):
    """A kill -9 at a random step is followed by the same command."""
    step = random.randrange(1, STEPS)
    print(f"killed at step {step}")  # pytest prints it if the test fails
    command = ["--config", str(workplace / "s2.yml"), "--run-dir", str(tmp_path)]
    program = [sys.executable, "-m", "tubesynth.train"]
    process = subprocess.Popen([*program, *command], stderr=subprocess.DEVNULL)
    reached = f'{{"step": {step}, '
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and reached in metrics.read_text(encoding="utf-8"):
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert reached in metrics.read_text(encoding="utf-8")
    main(command)
    assert_same_state(checkpoint_of(stage_2.parent.parent), checkpoint_of(tmp_path))
    steps = [row["step"] for row in lines(tmp_path, "training")]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 1), (signal.SIGUSR1, 2)]
)
def test_a_signal_saves_and_ends_with_75(number, processes, workplace, stage_1, tmp_path):
    command = [sys.executable, "-m", "tubesynth.train", "--config", str(workplace / "s1.yml")]
    command += ["--run-dir", str(tmp_path), "train.epochs=10000", "train.validate_every=10000"]
    process = subprocess.Popen(
        [*command, "--gpus", str(processes)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 1200
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and '"training"' in metrics.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    else:
        process.kill()
        pytest.fail(f"no step before the deadline: {process.communicate()[1]}")
    process.send_signal(number)
    _, message = process.communicate(timeout=600)
    assert process.returncode == 75, message
    assert "Traceback" not in message and "stopped: " in message
    assert checkpoint_of(tmp_path)["position"]["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("stage", [1, 2])
def test_mixed_precision_checkpointing_clipping_and_accumulation_train(
    stage, precision, stage_1, workplace, tmp_path
):
    switches = ["train.checkpointing=true", "train.accumulate=2", "train.epochs=6"]
    switches += ["train.validate_every=6", "train.panel_every=6", "train.save_every=6"]
    if stage == 1:  # whole volumes, as they are validated
        switches.append("data.crop=null")
    main(
        ["--config", str(workplace / f"s{stage}.yml"), "--run-dir", str(tmp_path)]
        + ["--precision", precision, "--gradient-clip", "1.0", "--logger", "none", *switches]
    )
    validation = lines(tmp_path, "validation")
    assert validation[-1]["step"] == 12
    assert validation[-1]["loss"] < validation[0]["loss"]


def test_phase_two_restores_weights_and_restarts_its_schedule(stage_1, workplace, tmp_path, capsys):
    main(
        ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path), "--epochs", "3"]
        + ["--resume", str(stage_1), "data.crop=null", "train.restart=[schedule]"]
    )
    logged = capsys.readouterr().err.splitlines()
    (printed,) = [x for x in logged if " resumed " in x]
    assert [x for x in logged if "length: " in x and x.endswith("; 2 epochs are done")]
    assert printed.endswith(
        "at step 8: restored weights, epochs, optimizers; restarted schedule (2 steps of warm-up,"
        " then cosine), best checkpoint"
    )
    state = checkpoint_of(tmp_path)
    start = dict(schedule_start=8, started_from=str(stage_1))
    assert state["position"] == vars(Position(step=12, sample_index=12, **start))
    assert lines(tmp_path, "validation")[0]["step"] == 8  # the weights that it begins with
    first = lines(tmp_path, "training")[0]
    assert first["step"] == 9
    assert first["learning_rate"] == pytest.approx(5e-4 / 2)  # the first of two warm-up steps


def test_a_run_skips_non_finite_steps_and_then_stops_with_the_loss(workplace, stage_1, tmp_path):
    """The learning rate is far too high."""
    with pytest.raises(InputError, match=r"step \d+, autoencoder: .*not finite.*learning_rate"):
        main(
            ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path), "--epochs", "200"]
            + ["train.learning_rate=1e30", "train.max_bad_steps=3", "train.warmup_steps=0"]
        )


def test_a_training_that_has_diverged_does_not_end_as_if_it_were_done(workplace, tmp_path):
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path), "--epochs", "1"]
    with pytest.raises(InputError, match="the training has diverged, its last validation loss is"):
        main([*command, "train.learning_rate=1e30", "train.warmup_steps=0"])
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def refused(*arguments) -> str:
    return refusal(lambda: main([str(argument) for argument in arguments]))


def test_bad_input_is_refused_by_name(workplace, stage_1, stage_2, tmp_path):
    s1, s2 = workplace / "s1.yml", workplace / "s2.yml"
    fresh = ["--run-dir", tmp_path / "run"]
    assert "train.epochs" in refused("--config", s1, *fresh, "train.epoch=3")
    line = refused("--config", s2, *fresh, "--resume", stage_1)
    assert "is of stage 1, where a checkpoint of stage 2 is needed" in line
    assert "--stage 2" in refused("--config", s1, *fresh, "--stage", "2")
    assert "['loss'" in refused("--config", s1, *fresh, "train.best_score=pnsr")
    assert "['loss']" in refused("--config", s2, *fresh, "train.best_score=psnr")
    line = refused("--config", s1, "--run-dir", workplace / "s1", "seed=4")
    assert "holds another run already (seed: 3 in its checkpoint, 4 in this command)" in line
    line = refused("--config", s1, *fresh, "--resume", stage_1, "autoencoder.codebook_size=64")
    assert "codebook_size is 32 in the checkpoint and 64" in line
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(stage_1.read_bytes()[:5000])
    assert "broken.ckpt" in refused("--config", s1, *fresh, "--resume", broken)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_a_newer_setting_resumes_with_the_default(
    workplace, stage_2, tmp_path
):
    config = ["--config", str(workplace / "s2.yml"), "--run-dir", str(tmp_path)]
    main([*config, "train.epochs=1"])
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    del state["config"]["unet"]["label_map_vessels"]
    torch.save(state, path)
    main([*config, "train.epochs=1"])  # the same run, and nothing left to do
    main([*config, "--resume", "auto"])
    assert Checkpoint.load(path).position.step == STEPS


def test_another_autoencoder_is_refused_before_anything_is_encoded(
    workplace, stage_1, stage_2, tmp_path
):
    other = Checkpoint.load(stage_1)
    next(iter(other.weights().values())).add_(1)
    other.save(tmp_path / "other.ckpt")
    options = ["--config", workplace / "s2.yml", "--run-dir", tmp_path / "run"]
    options += ["--resume", stage_2, f"latents.autoencoder={tmp_path / 'other.ckpt'}"]
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    assert "trained on latents of autoencoder" in refused(*options, cache)
    assert not (tmp_path / "cache").exists()


def test_bad_data_is_refused_by_name(workplace, tmp_path):
    def broken(change) -> str:
        shutil.rmtree(tmp_path, ignore_errors=True)
        shutil.copytree(workplace / "data", tmp_path / "data")
        change(tmp_path / "data" / "training")
        options = [f"data.root={tmp_path / 'data'}", f"data.cache_dir={tmp_path / 'cache'}"]
        line = refused("--config", workplace / "s1.yml", "--run-dir", tmp_path / "run", *options)
        assert not (tmp_path / "run").exists()
        return line

    def first(folder: Path) -> Path:
        return sorted(folder.iterdir())[0]

    assert "no such folder" in broken(lambda d: shutil.rmtree(d / "images"))
    assert "holds no volumes" in broken(lambda d: [p.unlink() for p in (d / "images").iterdir()])
    assert "unpaired" in broken(lambda d: first(d / "labels").unlink())

    def relabel(folder):
        path = first(folder / "labels")
        volume = read_labels(path)
        write_volume(path, Volume(np.full_like(volume.array, 9), volume.affine), "uint8")

    assert "outside the classes 0 to 8" in broken(relabel)

    def shift(folder):
        path = first(folder / "labels")
        volume = read_labels(path)
        affine = volume.affine.copy()
        affine[0, 3] += 20
        write_volume(path, Volume(volume.array, affine), "uint8")

    assert "grid" in broken(shift)


def test_a_refusal_is_one_line_and_code_2(workplace, tmp_path, capsys):
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path / "run")]
    line = refused_command(lambda: main([*command, "data.root=nowhere"]), capsys)
    assert line.startswith("data.root: nowhere: no such folder")


def test_a_dry_run_shows_the_plan_of_the_published_configs(capsys, tmp_path):
    configs = Path(__file__).parent.parent / "configs"
    main(
        ["--config", str(configs / "stage_1_3d_f4.yml"), "--dry-run", "--stage", "1", "--dim", "3"]
    )
    text = capsys.readouterr().out
    assert "5,537,673 (5.54 M)" in text and "8192 x 8" in text and "8 x 64 x 64 x 32" in text
    main(["--config", str(configs / "stage_2_3d_f4_lfm_base.yml"), "--dry-run", "--epochs", "7"])
    text = capsys.readouterr().out
    assert "(238.89 M)" in text and "8 x 64 x 64 x 32" in text and "epochs: 7" in text


@pytest.mark.parametrize("stage", [1, 2])
def test_every_score_that_may_choose_the_best_is_one_of_validation(stage, stage_1, stage_2):
    run_dir = (stage_1 if stage == 1 else stage_2).parent.parent
    scores = lines(run_dir, "validation")[0]
    assert STAGES[stage].BEST_SCORES.keys() <= scores.keys()


def test_a_resumed_run_keeps_its_best_score(workplace, stage_1, tmp_path):
    """The score does not improve after the resume."""
    config, options = workplace / "s1.yml", ["--run-dir", str(tmp_path), "train.best_score=psnr"]
    main(["--config", str(config), *options])
    checkpoints = tmp_path / "checkpoints"
    best = (checkpoints / "best.ckpt").read_bytes()
    value = max(row["psnr"] for row in lines(tmp_path, "validation"))
    assert checkpoint_of(tmp_path, "best")["best"]["value"] == value
    state = checkpoint_of(tmp_path)
    state["best"]["value"] = 99.0
    torch.save(state, checkpoints / "last.ckpt")
    main(["--config", str(config), *options, "--resume", "auto", "train.epochs=3"])
    assert checkpoint_of(tmp_path)["best"]["value"] == 99.0
    assert (checkpoints / "best.ckpt").read_bytes() == best


def test_panels_are_of_fixed_cases_from_fixed_noise(workplace, stage_1, stage_2):
    config = load_config(workplace / "s2.yml", ["train.panel_cases=9"])
    volumes = Volumes.find(config)
    models, checkpoint = require_base_models(config), Checkpoint.load(stage_2)
    stage = make_stage(config, volumes, models, Position(), checkpoint, torch.device("cpu"))
    stage.phases[0].load(checkpoint.phases["unet"], ["optimizers"])
    torch.manual_seed(1)
    first = stage.preview()
    torch.manual_seed(2)
    again = stage.preview()
    assert list(first) == [f"validation_{case.id}" for case in volumes.validation]  # of all cases
    assert len(first) == 2
    for name, picture in first.items():
        assert np.array_equal(picture, again[name])


def test_compiling_without_a_compiler_is_refused_in_one_line(workplace, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(
        "--config", workplace / "s1.yml", "--run-dir", tmp_path / "run", "train.compile=true"
    )
    assert "train.compile" in line and "no-such-compiler" in line
    assert not (tmp_path / "run").exists()


def test_preprocess_trains_a_profile_shows_each_part_and_keep_null_keeps_all(workplace, tmp_path):
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path / "run")]
    main([*command, "--preprocess", "--profiler", "simple", "train.epochs=3", "train.keep=null"])
    assert len(list((tmp_path / "run" / "checkpoints").glob("epoch_*.ckpt"))) == 3
    table = (tmp_path / "run" / "profile.txt").read_text()
    assert all(line in (tmp_path / "run" / "train.log").read_text() for line in table.splitlines())
    rows = {row[0]: row[1:] for row in map(str.split, table.splitlines()[1:])}
    shares = {name: float(row[0].rstrip("%")) for name, row in rows.items()}
    assert abs(sum(shares.values()) - 200) < 1  # with the total
    # Two phases in each of 12 steps; best.ckpt, last.ckpt and epoch_*.ckpt; a validation more.
    assert [rows[name][2] for name in ("data", "forward", "backward")] == ["12", "24", "24"]
    assert rows["validation"][2] == "4" and int(rows["checkpoints"][2]) >= 7
    assert shares["backward"] > shares["data"]


def test_the_log_of_a_run_has_a_head_dated_lines_and_an_end(stage_1):
    """There is no terminal; a resumed run appends to the file."""
    run_dir = stage_1.parent.parent
    log_lines = (run_dir / "train.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in log_lines)
    messages = [line[20:] for line in log_lines]
    head = "\n".join(messages[:5])
    for text in (
        f"torch {torch.__version__}, stage 1, seed 3",
        "device: cpu, ",
        "processes: 1; ",
        "4 training and 2 validation cases",
        "2 epochs, 8 steps, 4 steps an epoch; samples a step: 1",
        f"run folder: {run_dir}; log file: {run_dir / 'train.log'}",
    ):
        assert text in head
    end = [message for message in messages if message.startswith("step 8")]
    assert end[0].startswith("step 8/8, validation: loss ") and "; best loss " in end[0]
    assert end[1:4] == [f"step 8: saved {name}.ckpt" for name in ("best", "last", "epoch_00002")]
    first = next(m for m in messages if m.startswith("epoch 1/2, step 1/8: l1 "))
    assert " s a step, " in first and first.endswith(" GiB")
    assert any(m.startswith(f"done: {stage_1} (step 8; loss ") for m in messages)


def test_a_cpu_in_place_of_a_gpu_is_a_warning_that_device_cpu_silences(
    workplace, stage_1, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("tubesynth.training.run.run_stage", lambda *arguments: None)
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path)]

    def warnings(*options) -> list[str]:
        main([*command, *options])
        return [x for x in capsys.readouterr().err.splitlines() if " warning: " in x]

    (warning,) = warnings("--gpus", "1", "--precision", "16-mixed")
    assert "TRAINS ON THE CPU" in warning and "--device cpu" in warning
    assert len(warnings("--precision", "16-mixed")) == 1
    assert warnings("--gpus", "1", "--precision", "16-mixed", "--device", "cpu") == []
    assert warnings() == []


def test_device_cuda_without_a_gpu_is_refused(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run_dir = tmp_path / "run"
    options = ("--config", workplace / "s1.yml", "--run-dir", run_dir)
    assert "--device cuda: torch finds no GPU" in refused(*options, "--device", "cuda")
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "none.ckpt"], "none.ckpt: no such"),
        (["--resume", "{stage_1}", "autoencoder.codebook_size=64"], "codebook_size is 32"),
        (["--run-dir", "{s1}", "seed=4"], "holds another run already"),
        (["--run-dir", "{live}"], "a run is writing to it"),
        (["--run-dir", "{stage_1}/run"], r"run: not written \(Not a directory\)"),
        (["--logger", "wandb"], "the package wandb is not installed"),
        (["--gpus", "3"], "process 2 of this machine has no GPU: it has 2"),
        (["data.image_val_dir={empty}", "data.image_train_dir={images}"], "holds no volumes"),
        (["losses.perceptual_files=[none.pth]"], "none.pth: no such weights file"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses_at_its_start(
    options, message, stage_1, workplace, tmp_path, monkeypatch
):
    """Nothing is written before."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    if "--gpus" in options:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    live, empty, cache = (tmp_path / name for name in ("live", "empty", "cache"))
    empty.mkdir()
    images = workplace / "data" / "training" / "images"
    paths = {"stage_1": stage_1, "s1": workplace / "s1", "images": images}
    options = [option.format(**paths, live=live, empty=empty) for option in options]
    config = ["--config", str(workplace / "s1.yml"), f"data.cache_dir={cache}"]
    config += [] if "--run-dir" in options else ["--run-dir", str(tmp_path / "run")]
    config += ["data.crop=null", "data.resolution=[32, 32, 32]", "losses.perceptual=0.1"]
    with locked(live):
        messages = [refused(*config, *options, *more) for more in ([], ["--dry-run"])]
    assert messages[0] == messages[1] and re.search(message, messages[0])
    assert not (tmp_path / "run").exists() and not cache.exists()
