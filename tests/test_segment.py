"""The segmenter learns the vessels, scores cases and seeds, and writes masks on the CT's grid."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import lines, run

from tubesynth import cache, evaluate, segment, synthesize
from tubesynth.config.loading import load_config
from tubesynth.losses.segmentation import dice_loss
from tubesynth.models.segmenter import SegmentationUNet
from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError, Stopped
from tubesynth.training import segmentation
from tubesynth.training.inputs import Volumes
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, read_volume

CONFIG = """
stage: segmenter
data:
  root: {root}/data
  cache_dir: {root}/cache
  resolution: [32, 32, 24]
  spacing: [5.5, 5.5, 5.5]
  vessel_class: 6
  num_workers: 0
segmenter: {{channels: [4, 8]}}
train: {{epochs: 10, learning_rate: 1e-2, log_every: 5, validate_every: 5}}
"""


@pytest.fixture(scope="module")
def config(workplace, tmp_path_factory):
    """A segmenter of the aorta (class 6), which is wide enough for a grid of 5.5 mm."""
    path = tmp_path_factory.mktemp("segmenter") / "segment.yml"
    path.write_text(CONFIG.format(root=workplace))
    return path


def test_validation_scores_the_averaged_weights_that_apply_uses(config):
    settings = load_config(config, ["train.ema_half_life=5"])
    stage = segmentation.SegmentationStage(settings, Volumes.find(settings), torch.device("cpu"))
    head = stage.phases[0].averages[0].module.head
    for bias, expected in ((100.0, True), (-100.0, False)):
        torch.nn.init.constant_(head.bias, bias)
        assert all(mask.all() == mask.any() == expected for _, mask, _ in stage.masks())


def test_dice_loss_is_one_minus_dice():
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., :4] = 1
    assert dice_loss(1000 * (target - 0.5), target).item() == pytest.approx(0, abs=1e-3)
    assert dice_loss(-1000 * (target - 0.5), target).item() == pytest.approx(1, abs=1e-2)
    half = torch.full_like(target, -1000.0)
    half[..., :2] = 1000  # half of the target, nothing else: Dice 2/3
    assert dice_loss(half, target).item() == pytest.approx(1 / 3, abs=1e-2)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_network_can_overfit_one_image(dim):
    torch.manual_seed(0)
    net = SegmentationUNet(dim, (4, 8))
    image = torch.rand(1, 1, *[16] * dim)
    target = (image > 0.5).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = net(image)
        (dice_loss(logits, target) + F.binary_cross_entropy_with_logits(logits, target)).backward()
        optimizer.step()
    assert dice_loss(net(image), target) < 0.1


def test_a_case_without_vessels_leaves_out_itself_and_not_its_seed():
    groups = [[{"dice": 0.5}, {"dice": math.nan}, {"dice": 0.7}], [{"dice": math.nan}]]
    assert segment.group_means(groups, "dice") == [pytest.approx(0.6)]


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run(segment, "train", "--config", config, "--run-dir", folder, "--seeds", 0, 1)
    return folder


@pytest.mark.slow
def test_another_run_of_a_later_seed_is_refused_before_the_first_seed_trains(trained, config):
    command = ("train", "--config", config, "--run-dir", trained, "--seeds", 2, 1)
    with pytest.raises(InputError, match="seed_1: holds another run already"):
        run(segment, *command, "train.learning_rate=0.5")
    assert not (trained / "seed_2").exists()


@pytest.mark.slow
def test_scores_are_of_held_out_cases_over_cases_and_seeds(trained):
    result = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert result["over_cases"]["dice"]["n"] == 2 and result["over_seeds"]["dice"]["n"] == 2
    assert result["over_cases"]["dice"]["mean"] > 0.5
    rows = (trained / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 4 and "cldice" in rows[0]


@pytest.mark.slow
def test_a_signal_stops_the_scoring_and_the_same_command_resumes_it(config, tmp_path, monkeypatch):
    """The signal arrives with the first score; the second run scores the trained model."""
    scored, original = [], segmentation.centreline_overlap

    def with_signal(*arguments):
        scored.append(arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    options = ["train", "--config", config, "--run-dir", tmp_path, "--logger", "none"]
    options += ["--set", "train.epochs=1"]
    monkeypatch.setattr(segmentation, "centreline_overlap", with_signal)
    with pytest.raises(Stopped, match="not all cases are scored"):
        run(segment, *options)
    assert len(scored) == 1 and not (tmp_path / "metrics.json").exists()
    monkeypatch.undo()
    run(segment, *options)
    rows = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 2


@pytest.mark.slow
def test_masks_have_the_grid_of_the_ct_and_overlap_the_vessel(
    trained, workplace, tmp_path, monkeypatch
):
    model = trained / "seed_0" / "checkpoints" / "last.ckpt"
    images = workplace / "data" / "validation" / "images"
    run(segment, "apply", "--model", model, "--input-dir", images, "--output-dir", tmp_path)
    for case, path in find_cases(images).items():
        mask, ct = read_labels(tmp_path / f"{case}.label.nii.gz"), read_volume(path)
        np.testing.assert_allclose(mask.affine, ct.affine)
        truth = read_labels(workplace / f"data/validation/labels/{case}.label.nii.gz").array == 6
        assert set(np.unique(mask.array)) == {0, 6}  # a label map of the vessel class alone
        vessels = mask.array == 6
        assert 2 * (vessels & truth).sum() / (vessels.sum() + truth.sum()) > 0.5
    made = {path: path.stat().st_mtime_ns for path in find_cases(tmp_path).values()}
    first = next(iter(made))
    first.unlink()  # the same command makes what is missing
    run(segment, "apply", "--model", model, "--input-dir", images, "--output-dir", tmp_path)
    again = [path for path, time_ns in made.items() if path.stat().st_mtime_ns != time_ns]
    assert again == [first]
    # Ranks share the cases.
    monkeypatch.setattr(dist, "rank", lambda: 1)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    out = tmp_path / "of_rank_1"
    run(segment, "apply", "--model", model, "--input-dir", images, "--output-dir", out)
    assert list(find_cases(out)) == list(find_cases(images))[1::2]


@pytest.mark.slow
def test_a_ct_that_cannot_be_read_is_left_out_and_a_mask_that_cannot_be_written_is_not(
    trained, workplace, tmp_path
):
    images = find_cases(workplace / "data" / "validation" / "images")
    first, last = images
    for case, path in images.items():
        (tmp_path / "in" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(b"" if case == first else path.read_bytes())
    model, out = trained / "seed_0" / "checkpoints" / "last.ckpt", tmp_path / "out"
    options = ["--model", model, "--input-dir", tmp_path / "in", "--output-dir", out]
    with pytest.raises(InputError, match=f"{images[first].name}.*; all other cases are done"):
        run(segment, "apply", *options)
    assert list(find_cases(out)) == [last]
    (out / f"{last}.label.nii.gz").unlink()
    (out / f"{last}.label.nii.gz").mkdir()
    with pytest.raises(InputError, match=f"{last}.label.nii.gz: (?!.*other cases)"):
        run(segment, "apply", *options)


@pytest.mark.slow
def test_masks_are_not_written_over_label_maps(trained, workplace):
    part = workplace / "data" / "validation"
    common = ["--model", trained / "seed_0" / "checkpoints" / "last.ckpt"]
    for out in (part / "images", part / "labels"):
        with pytest.raises(InputError, match="choose another"):
            options = ["--input-dir", part / "images", "--output-dir", out]
            run(segment, "apply", *common, *options)


@pytest.mark.slow
def test_evaluate_scores_the_masks_of_the_segmenter(trained, workplace, tmp_path):
    model = trained / "seed_0" / "checkpoints" / "last.ckpt"
    real = workplace / "data" / "validation"
    common = ["--real", real / "images", "--labels", real / "labels", "--segmenter", model]
    common += ["--reconstruction", real / "images", "--vessel-class", 6]
    run(evaluate, *common, "--output-dir", tmp_path, "--workers", 2, "--no-distribution")
    vessels = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["vessels"]
    mask = trained.parent / "masks"
    run(segment, "apply", "--model", model, "--input-dir", real / "images", "--output-dir", mask)
    scores = []
    for case in find_cases(mask):
        predicted = read_labels(mask / f"{case}.label.nii.gz").array > 0
        truth = read_labels(real / "labels" / f"{case}.label.nii.gz").array == 6
        scores.append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
    assert vessels["real"]["segmenter_dice"]["mean"] >= np.mean(scores) > 0.5
    assert vessels["real"]["segmenter_dice"] == vessels["reconstruction"]["segmenter_dice"]
    with pytest.raises(InputError, match="metrics.json"):
        run(evaluate, *common[:4], "--segmenter", trained / "metrics.json", "--output-dir", mask)


@pytest.mark.slow
def test_synthetic_cases_are_added_to_the_training_cases_and_to_their_cache(
    config, workplace, stage_2, tmp_path, capsys
):
    labels = workplace / "data" / "training" / "labels"
    run(synthesize, "--model", stage_2, "--input-dir", labels, "--output-dir", tmp_path / "new")
    pairs = [find_cases(tmp_path / "new"), find_cases(tmp_path / "new" / "labels")]
    assert list(pairs[0]) == list(pairs[1]) and len(pairs[0]) == 4
    common = ["train", "--config", config, "--synthetic", tmp_path / "new", "--logger", "none"]
    common += ["--set", "train.epochs=1", f"data.cache_dir={tmp_path / 'cache'}"]
    for name, options, steps in (("both", [], 8), ("alone", ["--without-real"], 4)):
        run(segment, *common, "--run-dir", tmp_path / name, *options)
        assert lines(tmp_path / name / "seed_0")[-1]["step"] == steps
    with pytest.raises(InputError, match="holds another run already .*without_real"):
        run(segment, *common, "--run-dir", tmp_path / "alone")
    synthetic, cache_dir = f"synthetic=[{tmp_path / 'new'}]", f"data.cache_dir={tmp_path / 'cache'}"
    for options, unused in (([synthetic], 0), ([], 4)):
        capsys.readouterr()
        run(cache, "prune", "--dry-run", "--config", config, cache_dir, *options)
        assert f"{unused} entries" in capsys.readouterr().out


@pytest.mark.slow
def test_a_synthesis_of_a_validation_case_is_refused_for_training(
    config, workplace, stage_2, tmp_path
):
    labels = workplace / "data" / "validation" / "labels"
    run(synthesize, "--model", stage_2, "--input-dir", labels, "--output-dir", tmp_path / "new")
    with pytest.raises(InputError, match="a synthesis of the label map .*/validation/labels/"):
        options = ["--synthetic", tmp_path / "new", "--run-dir", tmp_path / "run"]
        run(segment, "train", "--config", config, *options)
    assert not (tmp_path / "run").exists()


def test_wrong_configs_and_models_are_refused(config, workplace, stage_1, tmp_path):
    with pytest.raises(InputError, match="not segmenter"):
        run(segment, "train", "--config", workplace / "s1.yml", "--run-dir", tmp_path)
    with pytest.raises(InputError, match="there is nothing to train on"):
        run(segment, "train", "--config", config, "--run-dir", tmp_path, "--without-real")
    with pytest.raises(InputError, match="stage segmenter is needed"):
        out = ["--input-dir", workplace / "data/validation/images", "--output-dir", tmp_path]
        run(segment, "apply", "--model", stage_1, *out)
