"""reconstruct, synthesize and the Python API: geometry, seeds, resuming, errors, and real CT."""

import inspect
import json
import os
import re
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from grids import oblique_affine
from runs import lines, run

from tubesynth import reconstruct, synthesize, train
from tubesynth.build.checkpoint import FORMATS, Checkpoint
from tubesynth.phantom.anatomy import make_phantom
from tubesynth.pipeline import Pipeline
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, read_volume, write_volume
from tubesynth.volume.grid import Volume


def test_reconstructions_have_the_affine_of_their_inputs(workplace, stage_1, tmp_path):
    images = workplace / "data" / "validation" / "images"
    run(reconstruct, "--input-dir", images, "--output-dir", tmp_path, "--model", stage_1)
    for case, path in find_cases(images).items():
        real, result = read_volume(path), read_volume(tmp_path / f"{case}.img.nii.gz")
        assert result.array.dtype == np.int16 and result.shape == (32, 32, 24)
        np.testing.assert_allclose(result.center_mm, real.center_mm, atol=1e-3)
        record = json.loads((tmp_path / f"{case}.json").read_text(encoding="utf-8"))
        assert record["settings"]["spacing"] == [5.5, 5.5, 5.5] and record["seconds"] > 0


def test_a_bright_ball_keeps_its_world_position_in_the_reconstruction(stage_1):
    """An oblique grid of another spacing: the ball's center of mass stays within half a voxel."""
    affine = oblique_affine([3.0, 3.5, 4.0], (0, 0, 17))
    shape = (50, 46, 34)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    center = affine[:3, :3] @ np.array([22.0, 26.0, 15.0]) + affine[:3, 3]
    ball = np.where(np.linalg.norm(world - center, axis=-1) < 22, 900, -900).astype(np.int16)
    pipeline = Pipeline.load(stage_1)
    on_grid = pipeline.grid.image(Volume(ball, affine))
    inside = np.argwhere(on_grid.array > 0)
    assert np.linalg.norm(on_grid.to_world(inside.mean(0)) - center) < 0.5 * 5.5
    # the result is on the same grid
    result = pipeline.reconstruct(Volume(ball, affine))
    np.testing.assert_allclose(result.affine, on_grid.affine)
    assert result.shape == on_grid.shape


def test_a_size_that_is_no_multiple_of_the_factor_is_reconstructed(stage_1):
    hu = np.random.default_rng(0).integers(-1000, 1000, (21, 30, 17), np.int16)
    volume = Volume(hu, np.diag([5.5, 5.5, 5.5, 1.0]))
    pipeline = Pipeline.load(stage_1)
    result = pipeline.reconstruct(volume, resolution=(21, 30, 17))
    assert result.shape == (21, 30, 17)
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-9)


def test_with_original_grid_the_result_is_on_the_grid_of_the_input(workplace, stage_1, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 1000, (19, 23, 11)).astype(np.int16)
    volume = Volume(hu, np.diag([7.0, 6.0, 9.0, 1.0]))
    write_volume(tmp_path / "in" / "a.nii.gz", volume, "int16")
    options = ["--input-dir", tmp_path / "in", "--output-dir", tmp_path / "out", "--model", stage_1]
    run(reconstruct, *options, "--original-grid")
    result = read_volume(tmp_path / "out" / "a.img.nii.gz")
    assert result.shape == volume.shape
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-5)


def test_the_original_grid_of_a_nifti_has_the_order_of_its_axes_too(stage_1, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 1000, (19, 23, 11)).astype(np.int16)
    affine = np.array([[0, 0, 7.0, 0], [-6, 0, 0, 9], [0, -9, 0, 4], [0, 0, 0, 1]])  # P, I, R
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "in" / "a.nii.gz")
    options = ["--input-dir", tmp_path / "in", "--output-dir", tmp_path / "out", "--model", stage_1]
    run(reconstruct, *options, "--original-grid")
    result = nib.load(tmp_path / "out" / "a.img.nii.gz")
    assert result.shape == hu.shape and nib.aff2axcodes(result.affine) == ("P", "I", "R")
    np.testing.assert_allclose(result.affine, affine, atol=1e-5)


def test_a_field_of_view_smaller_than_the_ct_is_said_and_its_share_is_in_the_sidecar(
    stage_1, tmp_path, capsys
):
    """The grid of 32 x 32 x 24 voxels of 5.5 mm in a CT of twice its length along x."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (64, 32, 24)).astype(np.int16)
    write_volume(tmp_path / "in" / "a.nii.gz", Volume(hu, np.diag([5.5, 5.5, 5.5, 1])), "int16")
    options = ["--input-dir", tmp_path / "in", "--output-dir", tmp_path / "out", "--model", stage_1]
    run(reconstruct, *options)
    assert "the model's field of view cuts off 50 % of the CTs;" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "a.json").read_text())["cut_off"] == 0.5


def test_a_damaged_label_map_leaves_out_its_own_samples_alone(workplace, stage_2, tmp_path, capsys):
    for path in find_cases(workplace / "data" / "validation" / "labels").values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "bad.label.nii.gz").write_bytes(path.read_bytes()[:-200])
    common = ["--model", stage_2, "--input-dir", tmp_path, "--output-dir", tmp_path / "out"]
    with pytest.raises(InputError, match="bad.label.nii.gz: its gzip .*; all other cases are done"):
        run(synthesize, *common, "--num-samples", 2, "--batch-size", 3)
    names = {path.name.split("_s")[0] for path in (tmp_path / "out").glob("*.img.nii.gz")}
    assert names == set(find_cases(workplace / "data" / "validation" / "labels"))


def test_a_sample_depends_on_seed_case_and_sample_index_alone(workplace, stage_2, tmp_path):
    labels = workplace / "data" / "validation" / "labels"
    common = ["--model", stage_2, "--input-dir", labels]
    run(synthesize, *common, "--num-samples", 2, "--seed", 4, "--output-dir", tmp_path / "all")
    names = sorted(path.name for path in (tmp_path / "all").glob("*.nii.gz"))
    cases = sorted(find_cases(labels))
    assert names == sorted(f"{case}_s{k}.img.nii.gz" for case in cases for k in (0, 1))

    (tmp_path / "single").mkdir()
    path = find_cases(labels)[cases[1]]
    (tmp_path / "single" / path.name).write_bytes(path.read_bytes())
    single = ["--input-dir", tmp_path / "single", "--output-dir", tmp_path / "alone"]
    run(synthesize, "--model", stage_2, "--seed", 4, "--num-samples", 1, *single)
    name = f"{cases[1]}_s0.img.nii.gz"
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()

    images = [read_volume(tmp_path / "all" / name).array for name in names]
    differences = [np.abs(a - images[0].astype(int)).mean() for a in images[1:]]
    assert min(differences) > 0


def test_volumes_of_a_batch_equal_those_synthesized_singly(workplace, stage_2, tmp_path):
    """Three jobs in batches of two, the last of which is not full; other batch sizes resume."""
    common = ["--model", stage_2, "--unconditional", "--num-samples", 3, "--steps", 2]
    run(synthesize, *common, "--output-dir", tmp_path / "one")
    run(synthesize, *common, "--output-dir", tmp_path / "two", "--batch-size", 2)
    for k in range(3):
        name = f"unconditional_s{k}"
        single, batched = (read_volume(tmp_path / f / f"{name}.img.nii.gz") for f in ("one", "two"))
        assert np.abs(single.array - batched.array.astype(int)).max() <= 1
        record = json.loads((tmp_path / "two" / f"{name}.json").read_text(encoding="utf-8"))
        assert record["batch"] == (2 if k < 2 else 1) and record["evaluations"] == 4
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "two").glob("*.nii.gz"))]
    run(synthesize, *common, "--output-dir", tmp_path / "two", "--batch-size", 3)
    again = [path.stat().st_mtime_ns for path in sorted((tmp_path / "two").glob("*.nii.gz"))]
    assert stamps == again
    with pytest.raises(InputError, match="--batch-size 0"):
        run(synthesize, *common, "--output-dir", tmp_path / "two", "--batch-size", 0)


def test_a_missing_output_is_written_again(workplace, stage_2, tmp_path, capsys):
    common = ["--model", stage_2, "--output-dir", tmp_path, "--num-samples", 1]
    common += ["--input-dir", workplace / "data" / "validation" / "labels"]
    run(synthesize, *common)
    (first, second) = sorted((tmp_path / "labels").glob("*.nii.gz"))
    content = first.read_bytes()
    first.unlink()
    (tmp_path / f"{second.name.partition('.')[0]}.json").write_text("[]")
    run(synthesize, *common)
    assert "2 volumes" in capsys.readouterr().out.splitlines()[-1]
    assert first.read_bytes() == content
    run(synthesize, *common, "--save-process")  # the outputs of a new option are written
    assert len(list((tmp_path / "process").iterdir())) == 2
    with pytest.raises(InputError, match="--unconditional and --input-dir: give only one"):
        run(synthesize, *common, "--unconditional")


def test_a_refused_command_keeps_the_records_of_finished_volumes(
    workplace, stage_2, tmp_path, capsys
):
    labels = workplace / "data" / "validation" / "labels"
    command = ["--model", str(stage_2), "--input-dir", str(labels), "--output-dir", str(tmp_path)]
    synthesize.main([*command, "--steps", "1"])
    records = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert records
    capsys.readouterr()
    with pytest.raises(InputError, match="has no ControlNet"):
        synthesize.main([*command, "--steps", "2", "--control-scale", "2"])
    assert "replaced" not in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == records


PHANTOM = make_phantom(7, 1, (32, 32, 24), (5.5, 5.5, 5.5))
CT, HEART = PHANTOM.image, PHANTOM.labels
BACKGROUND = Volume(np.zeros(HEART.shape, np.uint8), HEART.affine)


def changed(volume: Volume, factor: complex) -> Volume:
    return Volume(volume.array * factor, volume.affine)


def shifted(volume: Volume, hu: int) -> Volume:
    return Volume(volume.array + np.int16(hu), volume.affine)


def moved(volume: Volume) -> Volume:
    return Volume(volume.array, volume.affine + 20 * np.eye(4, k=3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p.synthesize("1.nii.gz"), "labels is a str: give a Volume, as of Volume.from"),
        (lambda p: p.reconstruct(np.zeros((8, 8, 8))), "volume is a ndarray: give a Volume"),
        (lambda p: p.synthesize(None, seed="a"), "seed is 'a': give a whole number"),
        (lambda p: p.synthesize(None, seed=-1), "seed is -1: give a whole number"),
        (lambda p: p.synthesize(HEART, guidance_label="2"), "guidance_label is '2': give a num"),
        (lambda p: p.synthesize(HEART, spacing=1.25), "spacing 1.25: expected 3 positive"),
        (lambda p: p.synthesize(HEART, resolution=96), "resolution 96: expected 3 positive"),
        (lambda p: p.synthesize(HEART, resolution=(32.5, 32, 24)), "expected whole numbers"),
        (lambda p: p.synthesize(HEART, vessels=3), "vessels is a int: give those of trace"),
        (lambda p: p.synthesize(HEART, sampling={}), "sampling is a dict: give a SamplingConfig"),
        (lambda p: p.reconstruct(changed(CT, 1j)), "volume holds complex128 values: give a CT"),
        (lambda p: Volume(np.zeros((0, 3, 3)), np.eye(4)), "three axes with voxels, not shape"),
        (lambda p: p.synthesize(BACKGROUND), "labels has none of the structures"),
        (lambda p: p.synthesize(changed(HEART, 1j)), "labels holds complex128 values"),
        (lambda p: p.reconstruct(changed(CT, 0)), "volume: every voxel is 0"),
        (lambda p: p.reconstruct(shifted(CT, 1024)), "volume: "),
        (lambda p: p.reconstruct(HEART), "volume: "),
        (lambda p: p.reconstruct(CT, labels=moved(HEART)), "labels: grid of "),
        (lambda p: Pipeline.load("heart-phantom", tile=2.5), "tile is 2.5: give auto, None, or"),
        (lambda p: Pipeline.load("heart-phantom", tile=3), "tile is 3: give auto, None, or"),
        (lambda p: Pipeline.load("heart-phantom", ema="x"), "ema is 'x': give a number"),
        (lambda p: Pipeline.load(None), "path is None: give that of a checkpoint"),
        (lambda p: Volume.from_file("a.nii.gz", label_map={1: 8}), "give labels=True too"),
        (lambda p: Volume(CT.array, np.zeros((4, 4))), "an affine is finite"),
    ],
)
def test_wrong_arguments_of_the_api_are_refused_by_name(stage_2, call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call(Pipeline.load(stage_2, device="cpu"))


def test_the_api_logs_how_a_label_map_is_unlike_the_training(stage_2, caplog):
    pipeline = Pipeline.load(stage_2)
    without_myocardium = Volume(np.where(HEART.array == 1, 0, HEART.array), HEART.affine)
    with caplog.at_level("WARNING", logger="tubesynth"):
        pipeline.synthesize(without_myocardium, force=True)
        assert not caplog.messages
        pipeline.synthesize(without_myocardium)
    assert "labels: no myocardium, which all of " in caplog.text


def test_volumes_of_any_numbers_are_saved_and_are_equal_to_themselves_alone(tmp_path):
    for kind, stored in (
        (np.int64, np.uint8),
        (bool, np.uint8),
        (np.float16, np.float32),
        (np.int32, np.int32),
    ):
        volume = Volume((HEART.array > 0).astype(kind), HEART.affine)
        volume.save(tmp_path / "a.nii.gz")
        assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == stored
        assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, volume.array)
    low = Volume(np.where(HEART.array > 0, -70_000, 3), HEART.affine)
    low.save(tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.int32
    assert CT == CT and CT != HEART and len({CT, HEART}) == 2
    listed = Volume(CT.array.tolist(), CT.affine.tolist())
    assert np.array_equal(listed.array, CT.array)


def test_the_api_takes_volumes_in_any_orientation_and_classes_of_any_type(workplace, stage_2):
    """An array with other axes, and the affine that says so, is the same CT."""
    case = next(iter(find_cases(workplace / "data/validation/images").values()))
    label = next(iter(find_cases(workplace / "data/validation/labels").values()))
    ct, labels, pipeline = read_volume(case), read_labels(label), Pipeline.load(stage_2)

    def turned(volume: Volume, dtype=None) -> Volume:  # x, y, z -> z, -x, y
        order = np.zeros((4, 4))
        order[0, 1], order[1, 2], order[2, 0], order[3, 3] = -1, 1, 1, 1
        order[0, 3] = volume.shape[0] - 1
        array = np.ascontiguousarray(volume.array[::-1].transpose(2, 0, 1))
        return Volume(array if dtype is None else array.astype(dtype), volume.affine @ order)

    expected, result = pipeline.reconstruct(ct), pipeline.reconstruct(turned(ct))
    assert np.array_equal(expected.array, result.array)
    expected = pipeline.synthesize(labels, seed=3)
    for dtype in (None, np.float32, np.int64):
        result = pipeline.synthesize(turned(labels, dtype), seed=3)
        assert np.array_equal(expected.array, result.array)
        np.testing.assert_allclose(expected.affine, result.affine)
    for value in (0.5, -1, 300, np.nan):
        odd = Volume(np.where(labels.array == 1, value, labels.array.astype(float)), labels.affine)
        with pytest.raises(InputError, match="labels holds values that are no classes"):
            pipeline.synthesize(odd)
    hole = Volume(np.where(labels.array == 1, np.nan, ct.array), ct.affine)
    with pytest.raises(InputError, match="volume holds values that are not finite"):
        pipeline.reconstruct(hole)
    with pytest.raises(InputError, match="a volume has three axes with voxels"):
        Volume(np.zeros((4, 4)), np.eye(4))


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_torch_does_not_find_is_refused(stage_1, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"device is '{device}': .*give cpu"):
        Pipeline.load(stage_1, device=device)


def test_finished_cases_are_skipped_unless_their_settings_changed(
    workplace, stage_2, tmp_path, capsys
):
    common = ["--model", stage_2, "--output-dir", tmp_path]
    common += ["--input-dir", workplace / "data" / "validation" / "labels"]
    run(synthesize, *common)
    first = sorted(tmp_path.glob("*.nii.gz"))[0]
    os.utime(first, (0, 0))  # whatever the clock's tick, a new file is younger
    stamp, content = first.stat().st_mtime_ns, first.read_bytes()
    first.with_name(first.name.replace(".img.nii.gz", ".json")).unlink()  # as after a kill
    run(synthesize, *common)
    assert "1 volume," in capsys.readouterr().out.splitlines()[-1]
    assert first.stat().st_mtime_ns > stamp and first.read_bytes() == content
    run(synthesize, *common, "--steps", 3)
    assert "2 volumes" in capsys.readouterr().out
    assert (
        json.loads(sorted(tmp_path.glob("*.json"))[0].read_text(encoding="utf-8"))["evaluations"]
        == 6
    )
    other_folder = tmp_path / "others"  # with files of the same names
    shutil.copytree(workplace / "data" / "validation" / "labels", other_folder)
    run(synthesize, *common[:-1], other_folder, "--steps", 3)
    assert "2 volumes" in capsys.readouterr().out.splitlines()[-1]


def test_guidance_of_1_is_the_conditional_model_and_above_1_is_not(workplace, stage_2):
    pipeline = Pipeline.load(stage_2)
    labels = read_labels(next(iter(find_cases(workplace / "data/validation/labels").values())))
    # Eight steps hardly train the zero-initialized end of the label encoder.
    torch.manual_seed(0)
    torch.nn.init.normal_(pipeline.unet.label_encoder.layers[-1].weight)
    plain = pipeline.synthesize(labels, seed=1)
    assert np.array_equal(plain.array, pipeline.synthesize(labels, seed=1).array)
    guided = pipeline.synthesize(labels, seed=1, guidance_label=4.0)
    assert not np.array_equal(plain.array, guided.array)
    config = pipeline.config
    pipeline.config = replace(config, flow=replace(config.flow, label_dropout=0.0))
    with pytest.raises(InputError, match="label_dropout"):
        pipeline.synthesize(labels, guidance_label=2.0)


def test_the_process_of_an_unconditional_sample_is_saved(workplace, stage_2, tmp_path):
    common = ["--model", stage_2, "--output-dir", tmp_path, "--steps", 3]
    run(synthesize, *common, "--unconditional", "--save-process", "--num-samples", 2)
    names = [path.name for path in sorted(tmp_path.glob("*.nii.gz"))]
    assert names == ["unconditional_s0.img.nii.gz", "unconditional_s1.img.nii.gz"]
    states = sorted((tmp_path / "process" / "unconditional_s0").iterdir())
    assert [path.name[:6] for path in states] == ["t0.333", "t0.667", "t1.000"]
    last = read_volume(states[-1]).array
    assert np.array_equal(last, read_volume(tmp_path / names[0]).array)


def test_steps_that_are_close_together_have_files_of_their_own(stage_2, tmp_path):
    common = ["--model", stage_2, "--output-dir", tmp_path, "--unconditional", "--save-process"]
    run(synthesize, *common, "sampling.time_grid=[0, 0.0001, 0.0002, 1]")
    states = sorted((tmp_path / "process" / "unconditional_s0").iterdir())
    assert [path.name for path in states] == [
        f"t{t}.img.nii.gz" for t in ("0.000", "0.000200", "1.000")
    ]


@pytest.mark.parametrize("key", ["data", "sampling"])
def test_a_file_of_settings_changes_what_it_has_and_no_more(workplace, stage_2, tmp_path, key):
    """--config of synthesize: the other keys, and sections that it lacks, are the model's."""
    labels = workplace / "data" / "validation" / "labels"
    common = ["--model", stage_2, "--input-dir", labels]
    run(synthesize, *common, "--output-dir", tmp_path / "plain")
    given = {"data": {"label_map": {1: 1, 8: 8}}, "sampling": {"steps": 3}}[key]
    (tmp_path / "settings.yml").write_text(yaml.safe_dump({key: given}))
    config = ["--config", tmp_path / "settings.yml"]
    run(synthesize, *common, *config, "--output-dir", tmp_path / "changed")
    plain, changed = (
        json.loads(next((tmp_path / name).glob("*.json")).read_text(encoding="utf-8"))["settings"]
        for name in ("plain", "changed")
    )
    different = {name for name in plain if plain[name] != changed[name]}
    assert different == {"data": {"label_map"}, "sampling": {"sampling"}}[key]
    assert changed["sampling"]["steps"] == (3 if key == "sampling" else 2)
    assert changed["sampling"]["solver"] == plain["sampling"]["solver"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sampling: {stepps: 3}", "unknown key 'sampling.stepps': did you mean 'sampling.steps'"),
        ("sampling: 3", "sampling: expected keys and values"),
        ("train: {epochs: 3}", "train: expected the sections data and sampling alone, or"),
        ("stage: 1", "for stage 1, the model is of stage 2"),
    ],
)
def test_a_wrong_file_of_settings_is_named(stage_2, tmp_path, content, message):
    (tmp_path / "settings.yml").write_text(content)
    config = ["--config", tmp_path / "settings.yml"]
    with pytest.raises(InputError, match=f"settings.yml: {message}"):
        run(synthesize, "--model", stage_2, *config, "--output-dir", tmp_path / "out")


def test_settings_of_the_solver_that_contradict_or_have_no_effect_are_named(
    stage_2, tmp_path, capsys
):
    common = ["--model", stage_2, "--output-dir", tmp_path, "--unconditional"]
    run(synthesize, *common, "sampling.guidance_interval=[0.2, 0.8]")
    assert "guidance_interval has no effect without another guidance" in capsys.readouterr().err
    for flag, value, item in (
        ("--steps", 3, "sampling.time_grid=[0, 1]"),
        ("--steps", 3, "sampling.steps=2"),
        ("--solver", "heun", "sampling.solver=euler"),
    ):
        with pytest.raises(InputError, match=f"{flag} and {item.partition('=')[0]}: give one"):
            run(synthesize, *common, flag, value, item)
    with pytest.raises(InputError, match="--precision 32 and --amp: give one of them"):
        run(synthesize, *common, "--precision", 32, "--amp")
    pipeline = Pipeline.load(stage_2)
    for steps in (2.5, "4", True):
        with pytest.raises(InputError, match=f"sampling.steps: {steps!r} must be a whole number"):
            pipeline.synthesize(None, steps=steps)


def test_a_tiled_reconstruction_equals_that_of_the_whole_volume(workplace, stage_1):
    images = workplace / "data" / "validation" / "images"
    volume = read_volume(next(iter(find_cases(images).values())))
    whole = Pipeline.load(stage_1, tile=None).reconstruct(volume).array.astype(int)
    tiled = Pipeline.load(stage_1, tile=12).reconstruct(volume).array.astype(int)
    # 1 HU of rounding, except where rounding changes the code of a latent vector
    assert np.mean(np.abs(tiled - whole) > 1) < 0.01
    rounded = Pipeline.load(stage_1, tile=9).reconstruct(volume).array  # up to a multiple of 4
    assert np.array_equal(rounded, tiled)


def test_the_example_of_the_readme_runs(workplace, stage_2, tmp_path, monkeypatch):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    labels = next(iter(find_cases(workplace / "data/validation/labels").values()))
    # its model and its label map, by those of the tests
    example, num_models = re.subn(r'load\("[^"]+"', f'load("{stage_2}"', example)
    example, num_maps = re.subn(r'from_file\("[^"]+"', f'from_file("{labels}"', example)
    assert num_models == num_maps == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    written = read_volume(tmp_path / "new.img.nii.gz")
    assert written.array.dtype == np.int16 and written.shape == (32, 32, 24)


API = [Pipeline.load, Pipeline.reconstruct, Pipeline.synthesize, Pipeline.sample]


@pytest.mark.parametrize("function", [*API, Pipeline.sample_batch], ids=lambda f: f.__name__)
def test_every_option_of_the_api_is_in_its_signature_with_type_and_default(function):
    parameters = inspect.signature(function).parameters.values()
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert options
    for option in options:
        assert option.annotation is not option.empty and option.default is not option.empty


@pytest.mark.parametrize("function", API[:3], ids=lambda f: f.__name__)
def test_every_option_of_the_api_is_in_its_docstring(function):
    for name in inspect.signature(function).parameters:
        assert name in ("path", "self", "cls") or re.search(rf"\b{name}\b.*: ", function.__doc__)


def test_a_wrong_argument_is_a_type_error_that_names_the_right_one(stage_1):
    pipeline = Pipeline.load(stage_1)
    with pytest.raises(TypeError, match="no argument 'guidance_lable': did you mean 'guidance_la"):
        pipeline.synthesize(None, guidance_lable=2.0)
    with pytest.raises(TypeError, match="no argument 'tiles': did you mean 'tile'"):
        Pipeline.load(stage_1, tiles=32)
    with pytest.raises(InputError, match="a stage-1 checkpoint cannot synthesize"):
        pipeline.synthesize(None)


def test_samples_come_from_the_averaged_weights(stage_2):
    phase = torch.load(stage_2, weights_only=True)["phases"]["unet"]
    loaded = Pipeline.load(stage_2).unet.state_dict()
    name = "conv_out.weight"
    assert torch.equal(loaded[name], phase["ema"][10.0][name])
    assert not torch.equal(loaded[name], phase["module"][name])


def test_wrong_models_and_folders_are_refused(workplace, stage_1, stage_2, tmp_path):
    labels = workplace / "data" / "validation" / "labels"
    out = ["--output-dir", tmp_path / "out"]
    with pytest.raises(InputError, match="a checkpoint of stage 2 or 3"):
        run(synthesize, "--model", stage_1, "--input-dir", labels, *out)
    with pytest.raises(InputError, match="none.ckpt: no such file"):
        run(reconstruct, "--model", tmp_path / "none.ckpt", "--input-dir", labels, *out)
    with pytest.raises(InputError, match="no such folder"):
        run(reconstruct, "--model", stage_1, "--input-dir", tmp_path / "none", *out)
    with pytest.raises(InputError, match="--resolution 30 32 24: .* multiple of 4"):
        run(synthesize, "--model", stage_2, "--input-dir", labels, *out, "--resolution", 30, 32, 24)
    with pytest.raises(InputError, match="--spacing 5.0 5.0: expected 3 positive numbers"):
        run(synthesize, "--model", stage_2, "--input-dir", labels, *out, "--spacing", 5, 5)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("config", [None, 3, {"seed": 0}])
def test_tensors_of_another_program_are_refused_as_a_checkpoint(tmp_path, config):
    torch.save({"format": FORMATS[1], "config": config}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="not a tubesynth checkpoint"):
        Checkpoint.load(tmp_path / "a.ckpt")


def test_a_checkpoint_of_another_format_is_refused(stage_2, tmp_path):
    state = torch.load(stage_2, weights_only=True)
    torch.save({**state, "format": 4}, tmp_path / "older.ckpt")
    message = "older.ckpt: format 4 of stage 2, this version reads 5 and 6"
    with pytest.raises(InputError, match=message):
        Pipeline.load(tmp_path / "older.ckpt")


def test_an_unusable_output_folder_is_refused(workplace, stage_2, tmp_path):
    labels = tmp_path / "set" / "labels"
    shutil.copytree(workplace / "data" / "validation" / "labels", labels)
    before = sorted(labels.iterdir())
    common = ["--model", stage_2, "--input-dir", labels]
    for out in (labels, labels.parent):
        with pytest.raises(InputError, match="is the folder of the label maps"):
            run(synthesize, *common, "--output-dir", out)
    assert sorted(labels.iterdir()) == before
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"--output-dir {out}: .*file is no folder to write"):
            run(synthesize, *common, "--output-dir", out)
        with pytest.raises(InputError, match=f"{out}: not written"):
            config = ["--config", workplace / "s1.yml", "--run-dir", out]
            run(train, *config)


def test_reconstructions_are_not_written_among_their_inputs(workplace):
    part = workplace / "data" / "validation"
    common = ["--model", "none.ckpt", "--input-dir", part / "images", "--labels", part / "labels"]
    for name, out in (("input-dir", part / "images"), ("labels", part / "labels")):
        with pytest.raises(InputError, match=f"--output-dir {out}: is the folder of --{name}:"):
            run(reconstruct, *common, "--output-dir", out)


@pytest.mark.parametrize("name", ["label", "vessel"])
def test_a_guidance_weight_that_is_not_finite_or_negative_is_refused(
    workplace, stage_2, tmp_path, name
):
    common = ["--input-dir", workplace / "data/validation/labels", "--output-dir", tmp_path / "out"]
    for weight in ("nan", "-1"):
        message = f"--guidance-{name} is {float(weight)}: give a finite number from 0 on"
        with pytest.raises(InputError, match=message):
            run(synthesize, "--model", stage_2, *common, f"--guidance-{name}={weight}")
    with pytest.raises(InputError, match="'sampling.eta=1': not read, since sampling.solver is"):
        run(synthesize, "--model", stage_2, *common, "sampling.eta=1")
    for pairs, message in (("1=9", "a class from 0 to 8"), ("1=2 1=3", "1 has two classes")):
        with pytest.raises(InputError, match=message):
            run(synthesize, "--model", stage_2, *common, "--label-map", *pairs.split())


def test_the_label_map_of_the_config_counts_unless_the_command_line_has_one(
    workplace, stage_2, tmp_path
):
    case, path = next(iter(find_cases(workplace / "data/validation/labels").items()))
    labels = read_labels(path)
    for folder, factor in (("classes", 1), ("tens", 10)):
        array = factor * labels.array
        write_volume(tmp_path / folder / path.name, Volume(array, labels.affine), "uint8")
    tens = {10 * value: value for value in range(1, 9)}
    wrong = "data.label_map={10: 1}"
    results = {}
    for name, folder, options in (
        ("plain", "classes", []),
        ("config", "tens", [f"data.label_map={json.dumps(tens)}"]),
        ("option", "tens", [wrong, "--label-map", *(f"{k}={v}" for k, v in tens.items())]),
        ("none", "classes", [wrong, "--label-map"]),
    ):
        run(
            synthesize,
            *("--model", stage_2, "--input-dir", tmp_path / folder, "--steps", 1),
            *("--output-dir", tmp_path / name, *options),
        )
        results[name] = (tmp_path / name / f"{case}_s0.img.nii.gz").read_bytes()
    assert len(set(results.values())) == 1


def test_real_ct_keeps_its_world_position_in_the_reconstruction(real_ct, stage_1, tmp_path):
    images = real_ct / "images"
    run(reconstruct, "--input-dir", images, "--output-dir", tmp_path, "--model", stage_1)
    for case, path in find_cases(images).items():
        real, result = read_volume(path), read_volume(tmp_path / f"{case}.img.nii.gz")
        np.testing.assert_allclose(result.center_mm, real.center_mm, atol=0.01)
        turned = result.affine[:3, :3] / result.spacing
        np.testing.assert_allclose(turned, real.affine[:3, :3] / real.spacing, atol=1e-4)


def test_real_label_maps_are_synthesized_through_a_translation(real_ct, stage_2, tmp_path):
    labels = real_ct / "labels"
    common = ["--model", stage_2, "--output-dir", tmp_path, "--input-dir", labels]
    with pytest.raises(InputError, match="outside the classes"):
        run(synthesize, *common)
    translation = ["--label-map", "1=3", "2=7", "3=6", "4=6", "52=6"]
    with pytest.raises(InputError, match="case lumbar: its label map has none of the structures"):
        run(synthesize, *common, *translation)
    assert not list(tmp_path.glob("*.img.nii.gz"))
    run(synthesize, *common, *translation, "--force")
    for case, path in find_cases(labels).items():
        result = read_volume(tmp_path / f"{case}_s0.img.nii.gz")
        np.testing.assert_allclose(result.center_mm, read_labels(path).center_mm, atol=0.01)


def test_stage_1_trains_on_real_ct(real_ct, workplace, tmp_path):
    from tubesynth.train import main

    for split in ("training", "validation"):
        for kind in ("images", "labels"):
            folder = tmp_path / "data" / split / kind
            folder.mkdir(parents=True)
            for path in (real_ct / kind).iterdir():
                (folder / path.name).symlink_to(path)
    main(
        ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path / "run"), "--epochs", "1"]
        + [f"data.root={tmp_path / 'data'}", f"data.cache_dir={tmp_path / 'cache'}"]
        + ["data.num_classes=118"]
    )
    losses = [line["loss"] for line in lines(tmp_path / "run", "validation")]
    assert losses[-1] < losses[0]
