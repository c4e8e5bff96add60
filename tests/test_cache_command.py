"""The cache command: the entries that it builds, reports as damaged, lists and deletes."""

import nibabel as nib
import numpy as np
import pytest
import torch
from ranks import on_two_ranks

from tubesynth import cache
from tubesynth.build.checkpoint import Checkpoint, PhaseState
from tubesynth.build.networks import build_autoencoder
from tubesynth.config.loading import load_config
from tubesynth.data.store import Store
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.process_id import ProcessId

STAGE_1 = """stage: 1
data:
  root: {root}
  cache_dir: {cache}
  resolution: [16, 16, 8]
  spacing: [1.0, 1.0, 1.5]
autoencoder: {{channels: [4, 4], residual_channels: [4, 4], embedding_dim: 2, codebook_size: 8}}
"""
STAGE_2 = """stage: 2
data:
  root: {root}
  cache_dir: {cache}
  resolution: [16, 16, 8]
  spacing: [1.0, 1.0, 1.5]
  augment: {{flip: 0.5}}
latents: {{autoencoder: {autoencoder}, variants: 2}}
"""


@pytest.fixture
def project(tmp_path):
    """Three cases, a stage-1 and a stage-2 config, and an autoencoder that was never trained."""
    for i, split in enumerate(["training", "training", "validation"]):
        rng = np.random.default_rng(i)
        for kind, folder in (("img", "images"), ("label", "labels")):
            target = tmp_path / "data" / split / folder
            target.mkdir(parents=True, exist_ok=True)
            low, high, dtype = (0, 9, np.uint8) if kind == "label" else (-1000, 1000, np.int16)
            array = rng.integers(low, high, (12, 13, 9)).astype(dtype)
            image = nib.Nifti1Image(array, np.diag([1.3, 1.3, 1.4, 1]))
            nib.save(image, target / f"{i}.{kind}.nii.gz")
    names = {
        "root": tmp_path / "data",
        "cache": tmp_path / "cache",
        "autoencoder": tmp_path / "stage_1.ckpt",
    }
    (tmp_path / "one.yml").write_text(STAGE_1.format(**names))
    (tmp_path / "two.yml").write_text(STAGE_2.format(**names))
    save_autoencoder(tmp_path / "stage_1.ckpt", tmp_path / "one.yml", seed=0)
    return tmp_path


def save_autoencoder(path, config_path, seed):
    config = load_config(config_path)
    torch.manual_seed(seed)
    phase = PhaseState(build_autoencoder(config).state_dict(), None, {}, {})
    Checkpoint(config, None, None, {"autoencoder": phase}).save(path)


def run(*arguments):
    cache.main([str(a) for a in arguments])


def keys(project, kind):
    return {entry.key for entry in Store(project / "cache").entries(kind)}


def volume_files(project):
    return [path for path in (project / "cache" / "volumes").glob("*/*")]


def test_build_writes_every_volume_once_and_prints_the_count(project, capsys):
    run("build", "--config", project / "one.yml", "--workers", 1)
    assert "3 built, 0 existed" in capsys.readouterr().out
    run("build", "--config", project / "one.yml", "--workers", 1)
    assert "0 built, 3 existed" in capsys.readouterr().out
    assert len(keys(project, "volumes")) == 3


def test_a_changed_spacing_or_window_is_a_miss_and_a_changed_learning_rate_a_hit(project, capsys):
    expected = {
        "data.spacing=[1,1,2]": "3 built, 0 existed",
        "data.hu_window=[-500,500]": "3 built, 0 existed",
        "train.learning_rate=0.5": "0 built, 3 existed",
        "data.augment.flip=0.5": "0 built, 3 existed",
        "data.batch_size=2": "0 built, 3 existed",
    }
    run("build", "--config", project / "one.yml", "--workers", 1)
    for override, words in expected.items():
        capsys.readouterr()
        run("build", "--config", project / "one.yml", "--workers", 1, override)
        assert words in capsys.readouterr().out, override


def test_stage_2_builds_latents_too_and_another_autoencoder_is_a_miss(project, capsys):
    run("build", "--config", project / "two.yml", "--workers", 1)
    first = keys(project, "latents")
    assert len(first) == 2 * 2 + 1  # two variants of the training cases, one of the validation case
    run("build", "--config", project / "two.yml", "--workers", 1)
    assert keys(project, "latents") == first
    save_autoencoder(project / "stage_1.ckpt", project / "one.yml", seed=1)
    run("build", "--config", project / "two.yml", "--workers", 1)
    assert len(keys(project, "latents")) == 10
    assert len(keys(project, "volumes")) == 3


def build_two(rank: int, configs: list[str]) -> None:
    run("build", "--workers", 1, "--config", *configs)


@pytest.mark.slow
def test_ranks_build_the_entries_of_several_configs(project):
    on_two_ranks(project, build_two, [str(project / f"{name}.yml") for name in ("one", "two")])
    assert len(keys(project, "volumes")) == 3 and len(keys(project, "latents")) == 5


def test_verify_removes_damaged_entries_and_exits_with_1(project, capsys):
    run("build", "--config", project / "one.yml", "--workers", 1)
    run("verify", "--config", project / "one.yml")
    assert "3 entries match their checksums" in capsys.readouterr().out
    file = next((project / "cache" / "volumes").glob("*/*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)
    name = f"{file.parent.name}/{file.name}"
    with pytest.raises(SystemExit) as end:
        run("verify", "--config", project / "one.yml")
    assert end.value.code == 1
    assert f"damaged: volumes/{name}: label differs from its checksum" in capsys.readouterr().out
    run("build", "--config", project / "one.yml", "--workers", 1)
    assert "1 built, 2 existed" in capsys.readouterr().out


def test_files_that_are_not_entries_are_never_changed(project, capsys):
    """A wrong --cache-dir may hold data or a run; neither is a damaged cache."""
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    for folder in (project, project / "data"):
        run("verify", "--cache-dir", folder)
        assert "0 entries" in capsys.readouterr().out
    for path, content in before.items():
        assert path.read_bytes() == content


def test_tokens_and_latents_of_other_settings_are_deleted(project):
    run("build", "--config", project / "two.yml", "--workers", 1)
    referenced = keys(project, "latents")
    changed = ["data.token_step_mm=2.0", "latents.variants=1"]
    run("build", "--config", project / "two.yml", "--workers", 1, *changed)
    assert len(keys(project, "tokens")) == 3 and len(keys(project, "latents")) > len(referenced)
    run("prune", "--config", project / "two.yml")
    assert keys(project, "latents") == referenced and not keys(project, "tokens")


def test_list_shows_the_content_and_bytes_of_each_entry(project, capsys):
    run("build", "--config", project / "two.yml", "--workers", 1)
    capsys.readouterr()
    run("list", "--cache-dir", project / "cache")
    out = capsys.readouterr().out
    assert "case 2: image 16x16x8 i2, label 16x16x8 u1, 1x1x1.5 mm, HU -1000 to 1000" in out
    assert "latent 2x4x4x2 f2" in out and "variant 1" in out
    size = 16 * 16 * 8 * 3  # int16 and uint8
    assert f"volumes: 3 entries, {3 * size / 1e6:.1f} MB" in out


def test_prune_deletes_entries_that_no_config_refers_to_and_a_dry_run_deletes_none(project, capsys):
    run("build", "--config", project / "two.yml", "--workers", 1)
    referenced = keys(project, "volumes"), keys(project, "latents")
    run("build", "--config", project / "one.yml", "--workers", 1, "data.spacing=[1,1,2]")
    folder = next((project / "cache" / "volumes").iterdir())
    (folder / f".x.{ProcessId.own()._replace(pid=2**22)}.12345678.tmp").write_bytes(b"half")
    (project / "cache" / "volumes" / ("0" * 32)).mkdir()  # an entry of version 0.2.0
    capsys.readouterr()
    for command in ("build", "verify", "list"):
        with pytest.raises(InputError, match="only prune"):
            run(command, "--config", project / "two.yml", "--dry-run")
    run("prune", "--config", project / "two.yml", "--dry-run")
    assert "would free" in (out := capsys.readouterr().out)
    assert "3 entries, 1 unfinished builds, 1 files of an older form of the cache" in out
    assert len(keys(project, "volumes")) == 6
    run("prune", "--config", project / "two.yml")
    assert (keys(project, "volumes"), keys(project, "latents")) == referenced
    assert all(path.suffix == ".safetensors" for path in volume_files(project))


def test_prune_keeps_the_entries_of_every_config(project):
    run("build", "--config", project / "two.yml", "--workers", 1)
    other = (
        (project / "one.yml")
        .read_text(encoding="utf-8")
        .replace("[1.0, 1.0, 1.5]", "[1.0, 1.0, 2.0]")
    )
    (project / "other.yml").write_text(other)
    run("build", "--config", project / "other.yml", "--workers", 1)
    run("prune", "--config", project / "two.yml", project / "other.yml")
    assert len(keys(project, "volumes")) == 6 and len(keys(project, "latents")) == 5
    run("prune", "--config", project / "other.yml")
    assert len(keys(project, "volumes")) == 3 and len(keys(project, "latents")) == 0


def test_latents_of_a_missing_autoencoder_are_not_pruned(project):
    run("build", "--config", project / "two.yml", "--workers", 1)
    (project / "stage_1.ckpt").unlink()
    with pytest.raises(InputError, match="stage_1.ckpt"):
        run("prune", "--config", project / "two.yml")
    assert len(keys(project, "latents")) == 5


def test_a_build_without_a_config_is_refused(project):
    with pytest.raises(InputError, match="--config"):
        run("build")
