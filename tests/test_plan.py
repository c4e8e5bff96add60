"""tubesynth plan: the costs of configs, and settings that fit a GPU."""

import re
import time

import cost_table
import pytest
from conftest import REPOSITORY

from tubesynth import train
from tubesynth.config.length import PEAK_FLOPS as GPUS
from tubesynth.config.loading import load_config
from tubesynth.config.schema import AutoencoderConfig
from tubesynth.data.store import Store
from tubesynth.doctor.config_rules import case_bytes
from tubesynth.doctor.training_memory import estimate
from tubesynth.plan import LINKS, SOURCES, entries_of_case, main
from tubesynth.runtime.errors import InputError
from tubesynth.volume.digest import _SETTLED_SECONDS

NARROW = ["unet.channels=[32, 32]", "data.resolution=[64, 64, 48]"]


def test_a_row_has_the_steps_memory_and_hours_of_its_config(capsys):
    main(["demo/stage_1", "train.epochs=7", "--cases", "101", "--precision", "32"])
    head, row, _, note, *_ = capsys.readouterr().out.splitlines()
    config = load_config("demo/stage_1", ["train.epochs=7"])
    needed = estimate(config)
    steps = -(-7 * 101 // (config.data.batch_size * config.train.accumulate))
    cells = re.split(r" {2,}", row)
    assert cells[0] == "demo/stage_1" and cells[4] == f"{steps:,}"
    assert float(cells[1].removesuffix(" M")) == round(needed.parameters / 1e6, 1)
    assert float(cells[3]) == pytest.approx(needed.flops / 1e12, rel=5e-3)
    slowest = float(cells[5].split(" to ")[1].removesuffix(" h"))
    hours = steps * needed.flops / (0.07 * GPUS["H100"]) / 3600
    assert slowest == pytest.approx(hours, rel=0.06)
    assert re.split(r" {2,}", head)[5:] == [*GPUS, "cache"] and "101 training cases" in note


@pytest.mark.filterwarnings("error")
def test_the_settings_that_fit_are_the_first_that_do(capsys):
    name, sizes = "demo/stage_2", AutoencoderConfig()
    whole = load_config(name, [*NARROW, "data.batch_size=4", "train.precision=bf16-mixed"])
    needed = estimate(whole, sizes).training
    main([name, *NARROW, "data.batch_size=4", "latents.autoencoder=null", "--fit", "100GB"])
    assert capsys.readouterr().out.endswith("with --precision bf16-mixed\n")
    main(
        [name, *NARROW, "data.batch_size=4", "latents.autoencoder=null", "--fit", f"{needed / 1e9}"]
    )
    text = capsys.readouterr().out
    assert "data.batch_size=1 train.accumulate=" in text and "checkpointing" not in text
    with pytest.raises(SystemExit) as end:
        main([name, *NARROW, "latents.autoencoder=null", "--fit", "0.1"])
    least = "does not fit into 0.1 GB: .* with --precision bf16-mixed .*=true; a smaller"
    assert end.value.code == 2 and re.search(least, capsys.readouterr().out.strip())


def test_the_all_reduce_is_that_of_a_ring_and_hours_are_those_of_fewer_steps(capsys):
    main(["demo/stage_1", "train.accumulate=2", "--cases", "100", "--gpus", "4"])
    head, _, *rows = capsys.readouterr().out.splitlines()[:5]
    config = load_config("demo/stage_1", ["train.accumulate=2"])
    needed, batch = estimate(config), 4 * 2 * config.data.batch_size
    assert needed.gradients == 4 * needed.parameters
    steps, alone = (-(-100 * config.train.epochs // n) for n in (batch, batch // 4))
    assert f": {steps:,} steps of {batch} samples (on one GPU {alone:,})," in head
    fastest, slowest = (needed.flops / (share * GPUS["H100"]) for share in (0.19, 0.07))
    for row, (link, bandwidth) in zip(rows, LINKS.items(), strict=True):
        name, _, text, share, hours, overlapped, gpu_hours = re.split(r" {2,}", row)
        reduce = 2 * (3 / 4) * needed.gradients / bandwidth
        assert name == link
        assert numbers(text) == pytest.approx([1e3 * reduce], rel=0.06)
        shares = [100 * reduce / (seconds + reduce) for seconds in (slowest, fastest)]
        assert numbers(share) == pytest.approx(shares, rel=0.06)
        summed = [steps * (seconds + reduce) / 3600 for seconds in (fastest, slowest)]
        assert numbers(hours) == pytest.approx(summed, rel=0.06)
        longer = [steps * max(seconds, reduce) / 3600 for seconds in (fastest, slowest)]
        assert numbers(overlapped) == pytest.approx(longer, rel=0.06)
        assert numbers(gpu_hours) == pytest.approx([4 * longer[0], 4 * summed[1]], rel=0.06)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", text)]


def test_one_gpu_reduces_nothing(capsys):
    main(["demo/stage_1", "--gpus", "1"])
    rows = capsys.readouterr().out.splitlines()[2:5]
    assert all("  0 ms  " in row and "  0 to 0 %  " in row for row in rows)


def test_the_files_and_bytes_of_a_case_are_those_of_a_cache(workplace, stage_1, tmp_path):
    settings = [f"data.cache_dir={tmp_path / 'cache'}", "data.token_step_mm=4.0", "train.epochs=1"]
    settings += ["unet.vessel_fields=true"]
    config = ["--config", str(workplace / "s2.yml"), "--run-dir", str(tmp_path / "run")]
    time.sleep(_SETTLED_SECONDS + 0.1)  # digests of younger files are not stored
    train.main([*config, *settings])
    store, cases = Store(tmp_path / "cache"), 6
    loaded = load_config(workplace / "s2.yml", settings)
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert len(files) == cases * (entries_of_case(loaded) + SOURCES)
    sizes = load_config(workplace / "s1.yml").autoencoder
    for kind, counted in zip(("volumes", "latents"), case_bytes(loaded, sizes), strict=True):
        arrays = [entry.arrays() for entry in store.entries(kind)]
        large = ("image", "label", "latent", "fields")  # tokens and moments grow with no grid
        assert sum(a[n].nbytes for a in arrays for n in large if n in a) == cases * counted


def documented_costs() -> dict[str, list[str]]:
    """The rows of the table in docs/gpu.md by the name of the config."""
    text = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
    section = text.split("## What the configs cost")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if "| `" in line]
    return {cells[0].strip("`"): cells for cells in rows}


def test_the_documented_costs_are_those_of_all_configs_and_computed():
    documented = documented_costs()
    assert list(documented) == cost_table.names()
    for name in ("heart_stage_1", "stage_1_3d_f4", "as_published/stage_2_2d_f4_lfm_base"):
        assert documented[name] == cost_table.row(name)


def test_the_documented_all_reduce_is_the_computed_one(capsys):
    main(["heart_stage_2", "latents.autoencoder=null", "--gpus", "8"])
    rows = capsys.readouterr().out.splitlines()[2:5]
    text = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {' | '.join(re.split(' {2,}', row))} |" in text


def test_the_costs_of_the_readme_are_the_documented_ones():
    documented = documented_costs()
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.split("## Requirements")[1].split("\n## ")[0]
    rows = re.findall(r"\| `(\w+)`.* \| (\S.*) \| (\S.*) hours \|", section)
    assert len(rows) == 7
    for name, memory, hours in rows:
        row = documented[name]
        peak, _, checkpointing = memory.rstrip(")").partition(" (checkpointing: ")
        if "computed: " in peak:
            assert peak == f"computed: {row[3]}"
        else:
            assert float(peak.split()[0]) == pytest.approx(float(row[4].split()[0]), abs=0.051)
        if "computed: " in peak and checkpointing:
            settings = ["train.checkpointing=true", "train.precision=bf16-mixed"]
            counted = estimate(load_config(name, settings)).training / 1e9
            assert float(checkpointing) == pytest.approx(counted, abs=0.051)
        if "computed: " in hours:
            assert f"{hours} h" == f"computed: {row[6]}"
        else:
            measured = float(hours.split()[-1])
            assert measured == pytest.approx(float(row[7].split()[0]), rel=0.15)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["demo/stage_1", "--cases", "0"], "--cases 0: must be at least 1"),
        (["demo/stage_1", "--fit", "8MB"], "'8MB' is no number of GB: give 24 or 24GB"),
        (["demo/stage_1", "--fit", "-1"], "--fit -1.0: must be a positive number"),
        (["demo/stage_1", "--gpus", "0"], "--gpus 0: must be at least 1"),
        (["demo/stage_1", "--gpus", "2", "--fit", "8"], "--fit and --gpus: give one of them"),
        (["train.epochs=2"], "name a config"),
        (["demo/stage_0"], "did you mean demo/stage_"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(arguments)


def test_settings_may_stand_behind_options(capsys):
    settings, outputs = ["train.epochs=3", "latents.autoencoder=null"], []
    for items in ([*settings, "--cases", "7"], ["--cases", "7", *settings]):
        main(["demo/stage_2", *items])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and "demo/stage_2" in outputs[0]
