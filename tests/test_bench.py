"""tests/bench/bench.py: stable keys of its JSON lines, and measures of known work."""

import json
import math
import mmap
import multiprocessing
import time

import bench
import pytest
import torch
from conftest import REPOSITORY
from networks import make_ema_quantizer
from parts.codebook import usual_quantizer
from parts.kernels_alone import Recorder, TensorLike, kernels_alone
from parts.measure import PeakMemory, measure, significant

from tubesynth.models.spade import one_hot
from tubesynth.runtime.errors import InputError

KEYS = "bench case seconds spread peak_mb size device threads commit".split()
CROSSATTN = REPOSITORY / "configs" / "demo" / "stage_2_crossattn.yml"
FLOAT_ON_THE_CPU = (torch.float32, torch.device("cpu"))
TINY = (
    "--volumes 2 --resolution 16 16 16 --spacing 8 8 8 --crop 8 8 8 --scans 1"
    " --scan-resolution 24 24 20 --repeats 1 --workers 1"
).split()


def printed(capfd) -> list[dict]:
    """The lines of JSON on standard output."""
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.fixture
def forked(monkeypatch):
    """Cases run in processes that are forked from one with torch, not in new interpreters."""
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(bench, "get_context", lambda method: context)


def test_every_line_is_a_json_object_with_the_promised_keys(tmp_path, capfd, forked):
    bench.main(["data", "--data-dir", str(tmp_path), "--case", "stage2", "cold", *TINY])
    lines = printed(capfd)
    assert [line["case"] for line in lines] == ["stage2", "cold"]
    for line in lines:
        assert set(KEYS) <= line.keys()
        assert line["bench"] == "data" and line["seconds"] > 0 and line["spread"] >= 0
    assert lines[0]["size"] == "2 x 16x16x16"
    assert lines[1]["size"] == "1 x 24x24x20 to 16x16x16"
    # int16 and uint8, in steps of 0.01
    assert lines[1]["cache_mb"] == pytest.approx(16**3 * 3 / 1e6, abs=0.005)


def test_both_quantizers_of_the_codebook_bench_choose_the_same_codes(capfd):
    bench.main("codebook --latent 8 8 8 --codes 300 --peer-vectors 256 --repeats 1".split())
    lines = printed(capfd)
    assert [line["case"] for line in lines] == ["eval", "train"]
    for line in lines:
        assert set(KEYS) <= line.keys() and line["peer_vectors"] == 256
        assert line["same_indices"] == 1.0
        ratio = (line["peer_seconds"] / 256) / (line["seconds"] / 512)
        assert line["speedup"] == pytest.approx(ratio, rel=0.002)  # of four digits each
        assert line["memory_ratio"] == pytest.approx(line["peak_mb"] / line["peer_peak_mb"], 0.01)


def test_the_reference_quantizer_of_the_bench_updates_its_codes_as_ours_does():
    ours, vectors = make_ema_quantizer(8, 3, decay=0.5).train(), torch.randn(50, 3)
    ours(vectors.T[None])  # starts from the data
    start = ours.codebook.clone()
    ours.ema_sum.copy_(start)
    ours.ema_count.fill_(1.0)
    quantized, _, indices = ours(vectors.T[None])
    expected = usual_quantizer(vectors, start, follow=True)
    torch.testing.assert_close(quantized[0].T, expected[0])
    assert torch.equal(indices[0], expected[1])
    torch.testing.assert_close(ours.codebook, expected[2])


def test_the_kernels_of_a_step_are_recorded_forward_and_backward():
    images, layer = torch.rand(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3)
    weights = torch.rand(144, 5, requires_grad=True)

    def work():
        rows = layer(images).relu().flatten(1)
        queries = (rows[:, :144] @ weights).reshape(2, 1, 5, 1)
        torch.nn.functional.scaled_dot_product_attention(queries, queries, queries).sum().backward()

    with Recorder() as recorder:
        work()
    names = [operator.overloadpacket.__name__ for operator, _, _ in recorder.calls]
    assert names[:2] == ["convolution", "mm"] and names[-1] == "convolution_backward"
    assert sum("attention" in name for name in names) == 2 and names.count("mm") == 3
    assert recorder.calls[0][1][0] == TensorLike((2, 3, 8, 8), (192, 64, 8, 1), *FLOAT_ON_THE_CPU)
    with Recorder() as again:
        kernels_alone(work)()
    replayed = again.calls[len(names) :]  # after those of work() itself
    assert [call[:2] for call in replayed] == [call[:2] for call in recorder.calls]


def test_the_vessel_benches_time_both_variants(capfd, forked):
    tiny = "--size 6 6 4 --tokens 20 --channels 32 --head-channels 32 --repeats 2".split()
    bench.main(["vessel_attention", *tiny])
    tiny = "--resolution 16 16 16 --tokens 20 --repeats 2 --case guided --batch-size 2".split()
    bench.main(["sample", "--config", str(CROSSATTN), *tiny])
    lines = printed(capfd)
    assert [line["case"] for line in lines] == ["forward", "training", "guided"]
    for line in lines:
        assert {*KEYS, "peer", "peer_seconds", "speedup", "memory_ratio"} <= line.keys()
        assert line["repeats"] == 2 and line["seconds"] > 0 and line["peer_seconds"] > 0
    assert lines[2]["size"] == "2 x 16x16x16, 20 tokens, 6 rows"
    assert math.isclose(lines[2]["seconds_per_case"], lines[2]["seconds"] / 2, rel_tol=2e-3)
    seconds, peer_seconds = lines[2]["seconds"], lines[2]["peer_seconds"]
    saved = peer_seconds - seconds
    assert math.isclose(lines[2]["saved_seconds"], saved, abs_tol=1e-3 * peer_seconds)


@pytest.mark.parametrize(
    "name", ["stage_1", "stage_2_crossattn", "stage_3_controlnet", "segmenter"]
)
def test_the_step_bench_runs_every_stage_and_counts_its_flops(name, capfd, forked):
    folder = "heart_phantom" if name == "segmenter" else "demo"
    config = str(REPOSITORY / "configs" / folder / f"{name}.yml")
    size = "data.crop" if name in ("stage_1", "segmenter") else "data.resolution"
    arguments = ["step", "--config", config, "--set", f"{size}=[16, 16, 16]", "--repeats", "1"]
    bench.main([*arguments, "--tokens", "20"])
    lines = printed(capfd)
    assert [line["case"] for line in lines] == ["step", "kernels"]
    for line in lines:
        assert line["size"] == "2 x 16x16x16" and line["flops"] > 1e8
        rate = line["flops"] / line["seconds"] / 1e12
        assert math.isclose(line["tflops_per_second"], rate, rel_tol=2e-3)


def test_short_times_keep_their_digits():
    numbers = [significant(x) for x in (0.0000123456, 0.5, 12.34567, 123456.0)]
    assert numbers == [1.235e-05, 0.5, 12.35, 123500.0]


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("data --resolution 16 16 16 --crop 32 8 8", "--crop"),
        ("data --repeats 0", "--repeats"),
        ("data --case nothing", "--case"),
        ("codebook --latent 0 8 8", "--latent"),
        ("vessel_attention --device gpu", "--device"),
        (f"sample --config {CROSSATTN} --resolution 30 32 32", "--resolution"),
    ],
)
def test_wrong_arguments_are_refused_with_their_flag(command, flag):
    with pytest.raises(InputError, match=flag):
        bench.main(command.split())


def test_seconds_are_the_median_of_the_repeats_and_the_warm_up_does_not_count(monkeypatch):
    durations, clock = iter([0.3, 0.02, 0.06, 0.04]), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def work():
        clock[0] += next(durations)

    measured = measure(work, repeats=3)
    assert measured.times == pytest.approx([0.02, 0.06, 0.04])
    assert measured.seconds == pytest.approx(0.04)
    assert measured.spread == pytest.approx((0.06 - 0.02) / 0.04)


def test_cpu_seconds_count_work_and_not_waiting():
    def work():
        time.sleep(0.3)
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    measured = measure(work, repeats=1)
    if measured.cpu_seconds is None:
        pytest.skip("no /proc")
    # On a busy machine the seconds grow and the CPU seconds do not.
    assert 0.17 <= measured.cpu_seconds <= measured.seconds - 0.2 and measured.seconds >= 0.5


def test_peak_memory_sees_an_allocation_that_is_gone_afterwards():
    with PeakMemory() as idle:
        time.sleep(0.1)
    if idle.peak_mb is None:
        pytest.skip("no /proc/self/smaps_rollup")
    with PeakMemory() as busy:
        memory = mmap.mmap(-1, 50_000_000)  # outside the heap, which may have free pages
        for _ in range(50):
            memory.write(b"1" * 1_000_000)
        deadline = time.monotonic() + 60  # of the next sample
        while (busy.peak_mb or 0) < idle.peak_mb + 45 and time.monotonic() < deadline:
            time.sleep(0.01)
        memory.close()
    assert 45 < busy.peak_mb - idle.peak_mb < 70


def test_one_hot_equals_torchs_own():
    labels = torch.randint(0, 9, (2, 4, 5, 3), dtype=torch.uint8)
    expected = torch.nn.functional.one_hot(labels.long(), 9).movedim(-1, 1)
    for dtype in (torch.uint8, torch.float32):
        classes = one_hot(labels, 9, dtype)
        assert classes.dtype == dtype and torch.equal(classes, expected.to(dtype))


def test_evaluation_is_timed_by_pairs(tmp_path, capfd, forked):
    tiny = "--pairs 2 --resolution 24 24 20 --spacing 7 7 7 --repeats 1 --workers 1".split()
    bench.main(["evaluate", "--data-dir", str(tmp_path), *tiny])
    lines = printed(capfd)
    assert [line["case"] for line in lines] == ["pairs", "tokens"]
    for line in lines:
        assert set(KEYS) <= line.keys() and line["size"] == "2 x 24x24x20"
        assert math.isclose(line["seconds_per_pair"], line["seconds"] / 2, abs_tol=0.001)
