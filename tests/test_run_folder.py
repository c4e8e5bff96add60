"""The folder of a run: which checkpoint is resumed, and which are passed over or removed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import on_two_ranks
from refusals import refusal

from tubesynth.build import checkpoint_file
from tubesynth.build.checkpoint import Best, Checkpoint
from tubesynth.config.loading import load_config
from tubesynth.runtime.errors import EXIT_INPUT, InputError, run_command
from tubesynth.train import main
from tubesynth.training.checkpoint_files import remove_older
from tubesynth.training.resume import find_checkpoint, restore, starting_position
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, write_volume
from tubesynth.volume.grid import Volume


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change a byte in the middle, which is one of a tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.fixture
def run_dir(stage_1, tmp_path) -> Path:
    """A copy of a run of eight steps with epoch_00001.ckpt (step 4), others step 8."""
    shutil.copytree(stage_1.parent.parent, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def config(workplace):
    return load_config(workplace / "s1.yml")


def resumed(run_dir: Path, config, requested: str | None = None) -> tuple[str, int]:
    """(name, step) of the checkpoint that a run resumes."""
    checkpoint = find_checkpoint(requested, run_dir, config)
    assert checkpoint and checkpoint.path and checkpoint.position
    return checkpoint.path.name, checkpoint.position.step


def test_the_newest_is_chosen_by_its_step_whatever_the_times_of_the_files(run_dir, config):
    folder = run_dir / "checkpoints"
    (folder / "last.ckpt").unlink()
    os.utime(folder / "epoch_00002.ckpt", (1, 1))  # as cp -r may leave it
    assert resumed(run_dir, config) == ("epoch_00002.ckpt", 8)
    (folder / "epoch_00002.ckpt").rename(folder / "epoch_00000.ckpt")
    remove_older(folder, "epoch_*.ckpt", 1)
    assert [path.name for path in folder.glob("epoch_*.ckpt")] == ["epoch_00000.ckpt"]


def test_a_checkpoint_that_cannot_be_read_is_never_removed_as_an_old_one(run_dir):
    """It may be the newest, of which a file system fails to send the bytes for a moment."""
    folder = run_dir / "checkpoints"
    shutil.copy(folder / "epoch_00002.ckpt", folder / "epoch_00003.ckpt")
    truncate(folder / "epoch_00003.ckpt")
    remove_older(folder, "epoch_*.ckpt", 1)
    names = [path.name for path in sorted(folder.glob("epoch_*.ckpt"))]
    assert names == ["epoch_00002.ckpt", "epoch_00003.ckpt"]


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_checkpoints_are_named_and_passed_over(damage, run_dir, config, caplog, tmp_path):
    folder = run_dir / "checkpoints"
    for name in ("last.ckpt", "epoch_00002.ckpt"):
        damage(folder / name)
    with caplog.at_level("WARNING", logger="tubesynth"):
        assert resumed(run_dir, config) == ("epoch_00001.ckpt", 4)
    for name in ("last.ckpt", "epoch_00002.ckpt"):
        assert f"{folder / name}: " in caplog.text
    assert caplog.text.count("resuming from epoch_00001.ckpt instead") == 2
    damage(folder / "epoch_00001.ckpt")
    assert resumed(run_dir, config) == ("best.ckpt", 8)
    damage(folder / "best.ckpt")
    names = ("last", "best", "epoch_00001", "epoch_00002")
    refusal(
        lambda: find_checkpoint("auto", run_dir, config),
        "no checkpoint can be resumed",
        *(f"{folder / name}.ckpt: " for name in names),
    )


def _refusal(rank: int, run_dirs: list[Path], config) -> str:
    return refusal(lambda: find_checkpoint("auto", run_dirs[rank], config))


def test_ranks_that_find_different_checkpoints_are_refused_together(run_dir, config, tmp_path):
    """As where the shared file system of a cluster shows one machine an older folder."""
    older = tmp_path / "older"
    shutil.copytree(run_dir, older)
    for name in ("last", "best", "epoch_00002"):
        (older / "checkpoints" / f"{name}.ckpt").unlink()
    messages = on_two_ranks(tmp_path, _refusal, [run_dir, older], config)
    expected = "rank 0 resumes last.ckpt at step 8, rank 1 epoch_00001.ckpt at step 4: "
    assert all(expected in message for message in messages)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_best_checkpoint_prevents_no_resume(damage, run_dir, workplace, capsys):
    damage(run_dir / "checkpoints" / "best.ckpt")
    main(["--config", str(workplace / "s1.yml"), "--run-dir", str(run_dir), "--resume", "auto"])
    assert "best.ckpt: " in capsys.readouterr().err


def test_a_run_goes_back_to_its_own_checkpoint_once(run_dir, workplace, config):
    """The same command after a stop resumes what has come of it, although the file is pruned."""
    path = run_dir / "checkpoints" / "epoch_00001.ckpt"
    assert resumed(run_dir, config, str(path)) == ("epoch_00001.ckpt", 4)
    checkpoint = find_checkpoint(str(path), run_dir, config)
    assert checkpoint
    position = starting_position(checkpoint, config, run_dir)
    assert (position.rollbacks, position.resumed_from) == (1, "epoch_00001.ckpt")
    position.step += 1  # as the run saves it when it is stopped
    checkpoint.position = position
    checkpoint.save(run_dir / "checkpoints" / "last.ckpt")
    assert resumed(run_dir, config) == ("last.ckpt", 5)  # not step 8 of before
    path.unlink()
    assert resumed(run_dir, config, str(path)) == ("last.ckpt", 5)
    other = run_dir / "checkpoints" / "epoch_00009.ckpt"
    with pytest.raises(InputError, match="epoch_00009.ckpt: no such checkpoint in this run"):
        find_checkpoint(str(other), run_dir, config)


def test_a_restart_is_not_repeated_when_another_key_changes(run_dir, workplace):
    overrides = ["train.restart=[schedule]", "train.epochs=3"]
    config = load_config(workplace / "s1.yml", overrides)
    checkpoint = find_checkpoint("auto", run_dir, config)
    assert checkpoint and starting_position(checkpoint, config, run_dir).schedule_start == 8
    checkpoint.config = config
    checkpoint.save(run_dir / "checkpoints" / "last.ckpt")
    config = load_config(workplace / "s1.yml", [*overrides, "train.log_every=2"])
    checkpoint = find_checkpoint("auto", run_dir, config)
    assert checkpoint and starting_position(checkpoint, config, run_dir).schedule_start == 0


def test_changed_settings_are_named_and_scores_of_another_loss_do_not_compare(
    run_dir, workplace, capsys
):
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(run_dir), "--logger", "none"]
    main([*command, "--resume", "auto", "train.epochs=3"])
    text = capsys.readouterr().err
    assert "changed settings: train.epochs" in text and "restored best loss" not in text
    assert "best loss" in text.partition("restored")[2].splitlines()[0]
    main([*command, "--resume", "auto", "train.epochs=4", "losses.l1=3"])
    text = capsys.readouterr().err
    assert "changed settings: train.epochs, losses." in text
    assert "restarted best checkpoint" in text


def test_files_that_have_changed_since_the_run_began_are_named(
    run_dir, workplace, tmp_path, capsys
):
    """Also in a run that is finished: its scores are those of the earlier files."""
    data = tmp_path / "data"
    shutil.copytree(workplace / "data", data)
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path / "new")]
    command += ["--logger", "none", "train.epochs=1", f"data.root={data}"]
    command.append(f"data.cache_dir={tmp_path / 'cache'}")
    main(command)
    assert "are others than when" not in capsys.readouterr().err
    case, path = next(iter(find_cases(data / "validation" / "labels").items()))
    labels = read_labels(path)
    write_volume(path, Volume(labels.array[::-1], labels.affine), "uint8")
    for _ in range(2):
        main(command)
        text = capsys.readouterr().err
        assert f"files of case {case} are others than when this run began" in text
        assert "nothing was left to do" in text


def test_a_run_that_is_over_before_it_starts_is_refused(run_dir, workplace, tmp_path):
    start = run_dir / "checkpoints" / "last.ckpt"
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path / "new")]
    with pytest.raises(InputError, match="has had 2 epochs of this data, and train.epochs is 2"):
        main([*command, "--resume", str(start)])
    assert not (tmp_path / "new" / "checkpoints").exists()


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_finished_run_writes_its_damaged_last_checkpoint_again(damage, run_dir, workplace):
    last = run_dir / "checkpoints" / "last.ckpt"
    before = Checkpoint.load(last)
    damage(last)
    main(["--config", str(workplace / "s1.yml"), "--run-dir", str(run_dir)])
    after = Checkpoint.load(last)
    assert after.position == before.position
    for name, weight in before.weights().items():
        assert torch.equal(weight, after.weights()[name])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_ends_a_training_in_one_line_and_leaves_its_checkpoints(
    run_dir, workplace, monkeypatch, capsys
):
    checkpoints = run_dir / "checkpoints"
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    monkeypatch.setattr(
        checkpoint_file, "open", lambda path, mode: open("/dev/full", mode), raising=False
    )
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(run_dir)]
    with pytest.raises(SystemExit) as end:
        run_command(lambda: main([*command, "--resume", "auto", "train.epochs=3"]))
    assert end.value.code == EXIT_INPUT
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and "not written (No space left on device); free space" in errors[0]
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before
    monkeypatch.undo()
    main([*command, "--resume", "auto", "train.epochs=3"])
    position = Checkpoint.load(checkpoints / "last.ckpt").position
    assert position and position.step == 12


def test_a_pipe_in_the_folder_is_never_opened(run_dir, workplace, config):
    """Opening it would wait for a writer for ever."""
    last, log = run_dir / "checkpoints" / "last.ckpt", run_dir / "train.log"
    for path in (last, log):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    assert resumed(run_dir, config) == ("epoch_00002.ckpt", 8)
    with pytest.raises(InputError, match="train.log: a folder, a pipe or a device"):
        main(["--config", str(workplace / "s1.yml"), "--run-dir", str(run_dir)])


def test_equal_checkpoints_are_written_once_and_copied(workplace, tmp_path, monkeypatch):
    written, save = [], Checkpoint.save

    def counted(checkpoint, path):
        written.append(path.name)
        save(checkpoint, path)

    monkeypatch.setattr(Checkpoint, "save", counted)
    command = [
        "--config",
        str(workplace / "s1.yml"),
        "--run-dir",
        str(tmp_path),
        "--logger",
        "none",
    ]
    main([*command, "train.epochs=1", "train.panel_every=9"])
    folder = tmp_path / "checkpoints"
    names = ["best.ckpt", "last.ckpt", "epoch_00001.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    # before the first step, after the last, and when the periodic checkpoint is no longer due
    assert written == ["best.ckpt", "best.ckpt", "epoch_00001.ckpt"]
    _, last, periodic = ((folder / name).read_bytes() for name in names)
    assert last == periodic
    (folder / "epoch_00001.ckpt").write_bytes(b"damaged")  # in place
    assert Checkpoint.load(folder / "last.ckpt").position.step == 4


def test_train_restart_counts_for_the_checkpoint_of_another_run_of_the_same_config(
    run_dir, config, tmp_path
):
    checkpoint = Checkpoint.load(run_dir / "checkpoints" / "last.ckpt")
    restarting = replace(config, train=replace(config.train, restart=["epochs", "schedule"]))
    checkpoint = replace(checkpoint, config=restarting)
    other = starting_position(checkpoint, restarting, tmp_path / "other")
    assert (other.step, other.sample_index, other.schedule_start) == (8, 0, 8)
    own = starting_position(checkpoint, restarting, run_dir)
    assert (own.sample_index, own.schedule_start) == (8, 0)


def test_a_finished_run_with_another_setting_is_left_as_it_is(run_dir, workplace):
    command = ["--config", str(workplace / "s1.yml"), "--run-dir", str(run_dir), "--logger", "none"]
    names = ("metrics.jsonl", "config.yml", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
    before = [(run_dir / name).read_bytes() for name in names]
    main([*command, "--resume", "auto", "losses.l1=3"])
    assert [(run_dir / name).read_bytes() for name in names] == before


FOUR_CLASSES = (
    "labels={names: [background, heart, vessels, aorta], vessel: 2, heart: [1], aorta: 3}"
)


def test_weights_of_other_classes_are_refused_where_they_depend_on_them(
    stage_1, stage_2, workplace, tmp_path
):
    """An autoencoder without a condition knows no classes."""
    for stage, checkpoint in ((1, stage_1), (2, stage_2)):
        other = load_config(workplace / f"s{stage}.yml", [FOUR_CLASSES])
        arguments = (str(checkpoint), tmp_path / "run", other)
        if stage == 1:
            assert find_checkpoint(*arguments)
            continue
        text = "the number of classes is 9 in the checkpoint and 4 in this config: make them equal"
        assert text in refusal(lambda a=arguments: find_checkpoint(*a))


def test_another_window_or_noise_than_that_of_the_checkpoint_is_named(
    stage_2, workplace, tmp_path, caplog
):
    config = load_config(workplace / "s2.yml", ["flow.sigma_min=0.5"])
    checkpoint = find_checkpoint(str(stage_2), tmp_path / "run", config)
    assert checkpoint
    stage = SimpleNamespace(phases=[])
    with caplog.at_level("WARNING", logger="tubesynth"):
        restore(checkpoint, stage, Best("loss", "min"), config, tmp_path / "run")
    assert f"{stage_2}: trained with flow.sigma_min 1e-05, not 0.5" in caplog.text
