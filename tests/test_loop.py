"""The training loop on small networks: steps, skipped steps, means, best scores, checkpoints."""

import copy
import json
import math
import types
from dataclasses import replace
from itertools import pairwise, repeat

import pytest
import torch
from networks import randomize_zeros
from ranks import on_two_ranks
from runs import lines
from torch import nn

from tubesynth.build.base_models import require_base_models
from tubesynth.build.checkpoint import Best, Position
from tubesynth.config.loading import load_config
from tubesynth.config.schema import SwaConfig, TrainConfig
from tubesynth.metrics.training_log import loss_curve
from tubesynth.runtime import log
from tubesynth.runtime.compiler import require_compiler
from tubesynth.runtime.ema import Ema
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.kernels import choose_kernels
from tubesynth.runtime.run_log import RunLog
from tubesynth.runtime.seeding import generator
from tubesynth.train import make_stage
from tubesynth.training.bad_steps import suspects
from tubesynth.training.inputs import Volumes
from tubesynth.training.loop import Run, fit
from tubesynth.training.means import Interval, StepMeans
from tubesynth.training.phase import Phase
from tubesynth.training.step import StepResult, training_step

CPU = torch.device("cpu")
PLAIN = TrainConfig(epochs=6, learning_rate=1e-2, schedule="constant", log_every=1, panel_every=100)


def square_loss(forward, batch):
    return {"square": (forward(batch["x"]) - batch["y"]).square().mean()}


def linear_phase(name="net", loss=square_loss, train=PLAIN, **kwargs) -> Phase:
    torch.manual_seed(0)
    phase = Phase(name, nn.Linear(3, 1), loss, train.learning_rate, **kwargs)
    phase.place(CPU, train)
    return phase


def step_of(phase: Phase, batches: list[dict], step: int, train: TrainConfig) -> StepResult:
    """One optimizer step of a single phase."""
    return training_step([phase], batches, step, train).results[0]


def batch_of(index: int, size: int = 2) -> dict:
    random = generator(CPU, "toy", index)
    x = torch.randn(size, 3, generator=random)
    cases = [f"{index}{row}" for row in "abcdefgh"[:size]]
    return {"x": x, "y": x.sum(1, keepdim=True), "sample_index": index, "case": cases}


class Toy:
    """A stage with these phases and these validation scores."""

    progress_terms = ()
    printed_scores = ("loss",)

    def __init__(self, *phases, scores):
        self.phases, self.scores = list(phases), iter(scores)

    def batches(self, first, end):
        return (batch_of(index) for index in range(first, end))

    def validate(self):
        return next(self.scores)

    def preview(self):
        return {}


def run(stage, folder, best=None, position=None, train=PLAIN) -> list[tuple[str, int]]:
    """One case an epoch, so that a step is an epoch; the checkpoints (name, step) as written."""
    position, saved = position or Position(), []
    log.set_up()
    fit(
        Run(
            stage,
            train,
            seed=0,
            device=CPU,
            epoch_length=1,
            global_batch=1,
            position=position,
            best=best or Best("loss", "min"),
            log=RunLog(folder, "", "none", position.step),
            save=lambda name: saved.append((name, position.step)),
            interval=Interval(),
        )
    )
    return saved


def weights(phase: Phase) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in phase.module.parameters()])


def test_swa_is_the_mean_over_the_ends_of_epochs_at_its_own_learning_rate(tmp_path):
    """From epoch 3 of 6 on: the mean after epochs 3 to 6, at a rate that is annealed to 2."""
    train = replace(PLAIN, learning_rate=1.0, swa=SwaConfig(3, 2.0, annealing_epochs=2))
    phase = linear_phase(train=train)
    trained, rates = [], []

    class Recorded(Toy):
        def validate(self):
            trained.append(weights(phase))
            rates.append(phase.optimizer.param_groups[0]["lr"])
            return {"loss": 0.0}

    initial = weights(phase)
    run(Recorded(phase, scores=()), tmp_path, train=train)
    assert torch.equal(trained[0], initial) and rates[1:] == [1.0, 1.0, 1.0, 1.5, 2.0, 2.0]
    state = phase.state()
    mean = torch.cat([w.flatten() for w in state.weights().values()])
    torch.testing.assert_close(mean, torch.stack(trained[3:]).mean(0))
    assert state.swa.epochs == 4 and phase.sampled is phase.swa.module
    fresh = linear_phase(train=train)
    assert fresh.state().swa is None and fresh.sampled is fresh.module
    fresh.load(state)
    assert torch.equal(fresh.sampled.weight, phase.sampled.weight) and fresh.state().swa.epochs == 4


@pytest.mark.parametrize(
    ("name", "mode", "steps"), [("loss", "min", [0, 1, 4]), ("psnr", "max", [0, 2, 3])]
)
def test_the_best_checkpoint_is_written_when_its_score_improves(name, mode, steps, tmp_path):
    losses = [3.0, 2.0, 2.0, math.nan, 1.0, 5.0, 4.0]
    psnrs = [20.0, 19.0, 21.0, 22.0, math.nan, 22.0, 5.0]
    scores = [{"loss": a, "psnr": b} for a, b in zip(losses, psnrs, strict=True)]
    best = Best(name, mode)
    saved = run(Toy(linear_phase(), scores=scores), tmp_path, best)
    assert [step for kind, step in saved if kind == "best"] == steps
    value = {"loss": 1.0, "psnr": 22.0}[name]
    assert best == Best(name, mode, value, steps[-1], without_improvement=6 - steps[-1])


def test_a_run_ends_when_its_patience_is_used_up_also_across_a_resume(tmp_path):
    """The best of steps 0 to 3 is at step 1; the count of a stopped run goes on at step 4."""
    scores = iter(
        [{"loss": value} for value in (3.0, 2.0, 2.0, math.nan, 2.5, 1.0, 5.0, 4.0, 3.0, 2.0)]
    )
    best, position, phase = Best("loss", "min"), Position(), linear_phase()

    def steps(patience):
        train = replace(PLAIN, patience=patience, epochs=20)
        run(Toy(phase, scores=scores), tmp_path, best, position, train)
        return position.step, best.without_improvement

    assert steps(2) == (3, 2)
    assert steps(2) == (3, 2)  # nothing is left to do
    assert steps(3) == (4, 3)
    assert steps(4) == (9, 4)  # the best was that of step 5


def test_a_resumed_run_keeps_its_best_score(tmp_path):
    """Resumed at step 3 with a best of 1.0: it needs a lower loss, and is not validated first."""
    scores = [{"loss": 1.5}, {"loss": 0.5}, {"loss": 0.7}]
    best = Best("loss", "min", 1.0, 2)
    saved = run(
        Toy(linear_phase(), scores=scores), tmp_path, best, Position(step=3, sample_index=3)
    )
    assert [step for kind, step in saved if kind == "best"] == [5]


def test_an_absent_score_is_refused_before_the_first_step(tmp_path):
    phase = linear_phase()
    before = weights(phase)
    with pytest.raises(InputError, match=r"train.best_score: .*no 'dice'.*'loss'"):
        run(Toy(phase, scores=[{"loss": 1.0}]), tmp_path, Best("dice", "max"))
    assert torch.equal(weights(phase), before)


def test_accumulated_batches_are_one_larger_batch():
    halves, whole = linear_phase(), linear_phase()
    batches = [batch_of(0), batch_of(1)]
    large_batch = {key: torch.cat([batch[key] for batch in batches]) for key in ("x", "y")}
    result = step_of(halves, batches, 0, PLAIN)
    expected = step_of(whole, [large_batch], 0, PLAIN)
    torch.testing.assert_close(result.values, expected.values)
    torch.testing.assert_close(weights(halves), weights(whole))


def test_the_gradient_is_clipped_to_its_norm():
    free, clipped = linear_phase(), linear_phase()
    norm = step_of(free, [batch_of(0)], 0, PLAIN).values["net_gradient_norm"].item()
    limit = norm / 4
    result = step_of(clipped, [batch_of(0)], 0, replace(PLAIN, gradient_clip=limit))
    assert result.values["net_gradient_norm"].item() == pytest.approx(norm)  # before clipping
    gradient = torch.cat([p.grad.flatten() for p in clipped.module.parameters()])
    assert gradient.norm().item() == pytest.approx(limit, rel=1e-4)


def test_an_overflow_at_the_smallest_scale_is_a_fault():
    """The loss is finite and its gradient never is: the scaler stops probing at a scale of 1."""
    train = replace(PLAIN, precision="16-mixed")

    def broken(forward, batch):
        return {"root": forward(batch["x"]).float().mul(0).abs().sqrt().mean()}

    phase = linear_phase("net", broken, train)
    results = [step_of(phase, [batch_of(0)], step, train) for step in range(20)]
    probes = int(math.log2(65536))
    problems = [result.problem for result in results]
    assert problems == [None] * probes + ["the gradient"] * (20 - probes)
    assert not any(result.updated for result in results)


def _problem(rank):
    """That of a step of a phase whose loss is not finite on rank 0 alone."""
    train = replace(PLAIN, precision="16-mixed")

    def loss(forward, batch):
        factor = math.nan if rank == 0 else 1.0
        return {"square": factor * forward(batch["x"]).float().square().mean()}

    return step_of(linear_phase("net", loss, train), [batch_of(rank)], 0, train).problem


def test_all_ranks_skip_a_step_that_was_not_finite_on_one_rank(tmp_path):
    """In fp16 a rank that began the next phase alone would wait for ever for the other rank."""
    assert on_two_ranks(tmp_path, _problem) == ["loss square", "the gradient"]


def test_each_optimizer_has_a_scaler_of_its_own():
    """In fp16 an overflow halves the scale of its own phase and skips its step, no other."""
    train = replace(PLAIN, precision="16-mixed")

    def scaled(factor):
        return lambda forward, batch: {"scaled": factor * forward(batch["x"]).float().mean()}

    calm = linear_phase("calm", scaled(1e-2), train)
    wild = linear_phase("wild", scaled(1e2), train)
    before = weights(wild)
    scale = calm.scaler.get_scale()
    results = training_step([calm, wild], [batch_of(0)], 0, train).results
    for phase, result in zip((calm, wild), results, strict=True):
        assert result.problem is None  # an overflow at this scale is the scaler's probe
        assert result.updated == (phase is calm)
    assert calm.scaler.get_scale() == scale and wild.scaler.get_scale() == scale / 2
    assert not torch.equal(weights(calm), before) and torch.equal(weights(wild), before)
    for step in range(1, 20):
        step_of(wild, [batch_of(0)], step, train)
    assert not torch.equal(weights(wild), before)  # the scaler has reached a scale that fits


def poisoned(indices):
    """A loss whose second term is NaN for these sample indices."""

    def loss(forward, batch):
        bad = math.nan if batch["sample_index"] in indices else 0.0
        return {**square_loss(forward, batch), "second": bad * forward.weight.sum()}

    return loss


def test_a_non_finite_step_changes_nothing_and_training_continues(tmp_path, capsys):
    phase = linear_phase(loss=poisoned({2, 3}), ema_half_life=10)
    seen = []

    def validate():
        state = phase.state()
        moments = [m for each in state.optimizer["state"].values() for m in each.values()]
        tensors = [*state.module.values(), *state.ema[10].values(), *moments]
        seen.append([tensor.tolist() for tensor in tensors])
        return {"loss": 1.0}

    stage = Toy(phase, scores=())
    stage.validate = validate
    run(stage, tmp_path, train=replace(PLAIN, max_bad_steps=2))
    same = [before == after for before, after in pairwise(seen)]
    assert same == [False, False, True, True, False, False]
    assert phase.optimizer.state_dict()["state"][0]["step"] == 4
    warning = "step 2, net: loss second is not finite (case 2a, 2b): the step is skipped"
    assert warning in capsys.readouterr().err


def test_too_many_non_finite_steps_stop_the_run_with_step_and_loss(tmp_path):
    phase = linear_phase(loss=poisoned({1, 2, 3, 4, 5}))
    stage = Toy(phase, scores=repeat({"loss": 1.0}))
    with pytest.raises(
        InputError,
        match=r"step 3, net: loss second is not finite \(case 3a, 3b\), 3 steps in a row",
    ):
        run(stage, tmp_path, train=replace(PLAIN, max_bad_steps=2))
    assert weights(phase).isfinite().all()


def test_an_average_halves_its_distance_to_the_weights_in_a_half_life():
    module, ema = nn.Linear(2, 1, bias=False), None
    nn.init.zeros_(module.weight)
    ema = Ema(module, half_life=8)
    nn.init.ones_(module.weight)
    for step in range(80, 88):  # from 10 half-lives on the half-life is not shortened
        ema.update(module, step)
    torch.testing.assert_close(ema.module.weight, torch.full((1, 2), 0.5))


def test_several_averages_are_stored_by_their_half_lives():
    phase = linear_phase(ema_half_life=[2.0, 50.0])
    alone = {steps: linear_phase(ema_half_life=steps) for steps in (2.0, 50.0)}
    for step in range(30):
        for each in (phase, *alone.values()):
            step_of(each, [batch_of(step)], step, PLAIN)
    state = phase.state()
    assert list(state.ema) == [2.0, 50.0]
    for steps, each in alone.items():
        torch.testing.assert_close(state.ema[steps], each.state().ema[steps], atol=0, rtol=0)
        assert state.weights(steps) is state.ema[steps]
    assert not torch.equal(state.ema[2.0]["weight"], state.ema[50.0]["weight"])
    assert state.weights() is state.ema[2.0] and phase.sampled is phase.averages[0].module
    with pytest.raises(InputError, match="half-life of 7 steps.*2, 50"):
        state.weights(7.0)
    bare = linear_phase().state()
    assert bare.weights() is bare.module

    other = linear_phase(ema_half_life=[50.0, 9.0])  # 50 is in the checkpoint, 9 is new
    other.load(state)
    loaded = other.state().ema
    assert torch.equal(loaded[50.0]["weight"], state.ema[50.0]["weight"])
    assert torch.equal(loaded[9.0]["weight"], state.module["weight"])


def stage_of(number: int, workplace, *overrides):
    config = load_config(workplace / f"s{number}.yml", list(overrides))
    volumes = Volumes.find(config)
    models = require_base_models(config)
    torch.manual_seed(config.seed)
    return make_stage(config, volumes, models, Position(), None, CPU)


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_is_one_forward_of_each_wrapper(number, workplace, stage_1):
    """A second forward before the backward pass would break the synchronization of gradients."""
    stage = stage_of(number, workplace)
    calls = []
    for phase in stage.phases:

        def counted(*args, phase=phase, forward=phase.forward, **kwargs):
            calls.append(phase.name)
            return forward(*args, **kwargs)

        phase.forward = counted
    batch = next(stage.batches(0, 1))
    training_step(stage.phases, [batch], 0, stage.config.train)
    assert calls == [phase.name for phase in stage.phases]


def after_two_steps(number: int, workplace, *overrides):
    stage = stage_of(number, workplace, *overrides)
    batches = stage.batches(0, 2)
    for step in range(2):
        torch.manual_seed(step)
        batch = next(batches)
        training_step(stage.phases, [batch], step, stage.config.train)
    return stage


VESSELS = (
    "data.token_step_mm=4",
    "unet.vessel_attention=distance",
    "unet.vessel_fields=true",
    "unet.head_channels=16",
)
VARIANTS = [
    pytest.param(1, (), id="codebook"),
    pytest.param(1, ("autoencoder.quantizer=kl",), id="kl"),
    pytest.param(2, (), id="labels"),
    pytest.param(2, VESSELS, id="vessels"),
    pytest.param(2, (*VESSELS, "unet.spade=shared"), id="shared hidden maps"),
]


@pytest.mark.parametrize("number", [1, 2])
def test_a_validation_has_the_precision_of_the_training(number, workplace, stage_1):
    losses = []
    for precision in ("32", "bf16-mixed"):
        stage = stage_of(number, workplace, f"train.precision={precision}")
        randomize_zeros(stage.phases[0].sampled, 0.05)
        losses.append(stage.validate()["loss"])
    exact, rounded = losses
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_a_checkpoint_of_an_unfused_optimizer_resumes_with_a_fused_one():
    phase, other = linear_phase(), linear_phase()
    step_of(phase, [batch_of(0)], 0, PLAIN)
    state = copy.deepcopy(phase.state())
    for group in state.optimizer["param_groups"]:
        group["fused"] = None  # as in version 0.1.0
    other.load(state)
    assert other.optimizer.param_groups[0]["fused"] is True
    for each in (phase, other):
        step_of(each, [batch_of(1)], 1, PLAIN)
    assert torch.equal(weights(phase), weights(other))


def test_the_epsilon_of_adam_is_that_of_the_config_and_its_moments_those_of_the_file():
    phase, other = linear_phase(), linear_phase()
    step_of(phase, [batch_of(0)], 0, PLAIN)
    other.place(CPU, replace(PLAIN, adam_eps=1e-3))
    other.load(copy.deepcopy(phase.state()))
    assert other.optimizer.param_groups[0]["eps"] == 1e-3
    moments = [each.optimizer.state[each.module.weight]["exp_avg"] for each in (phase, other)]
    assert torch.equal(*moments) and moments[0].any()


@pytest.mark.parametrize("restart", [[], ["epochs"]])
def test_the_mean_of_swa_restarts_with_the_epochs_that_it_counts(restart):
    phase, other = (linear_phase(), linear_phase())
    for each in (phase, other):
        each.place(CPU, replace(PLAIN, swa=SwaConfig(from_epoch=1, learning_rate=0.1)))
    phase.swa.update_parameters(phase.module)
    other.load(copy.deepcopy(phase.state()), restart)
    assert int(other.swa.n_averaged) == (0 if restart else 1)
    assert (other.sampled is other.module) == bool(restart)


@pytest.mark.parametrize("layouts", [(False, True), (True, False)])
def test_moments_of_another_memory_layout_resume_as_those_of_their_own(layouts):
    def phase_of(channels_last: bool) -> Phase:
        torch.manual_seed(0)
        phase = Phase("net", nn.Conv3d(2, 3, 3), lambda net, b: {"l": net(b["x"]).mean()}, 0.1)
        phase.place(CPU, replace(PLAIN, channels_last=channels_last))
        return phase

    def step(phase: Phase, index: int) -> None:
        x = torch.randn(1, 2, 4, 4, 4, generator=generator(CPU, "moments", index))
        step_of(phase, [{"x": x, "case": ["a"]}], index, PLAIN)

    trained, results = phase_of(layouts[0]), []
    step(trained, 0)
    for channels_last in layouts:
        resumed = phase_of(channels_last)
        resumed.load(copy.deepcopy(trained.state()))
        for index in (1, 2, 3):
            step(resumed, index)
        results.append(resumed.module.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_the_kernels_of_a_gpu_are_fast_or_deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    gpu, cudnn = torch.device("cuda"), torch.backends.cudnn
    try:
        assert "not deterministic" in choose_kernels(gpu, deterministic=False)
        assert cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
        assert choose_kernels(gpu, deterministic=True).startswith("deterministic")
        assert not cudnn.benchmark and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.benchmark = False
    assert choose_kernels(CPU, deterministic=False) == "deterministic"


@pytest.mark.parametrize(("number", "overrides"), VARIANTS)
def test_channels_last_trains_the_same_weights_in_another_layout(
    number, overrides, workplace, stage_1
):
    plain = after_two_steps(number, workplace, *overrides)
    other = after_two_steps(number, workplace, *overrides, "train.channels_last=true")
    for a, b in zip(plain.phases, other.phases, strict=True):
        laid_out = [p for p in b.module.parameters() if p.ndim == 5 and min(p.shape[1:3]) > 1]
        assert laid_out
        assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in laid_out)
        torch.testing.assert_close(a.state().module, b.state().module, atol=1e-4, rtol=1e-3)
        state = a.state()  # a checkpoint of one layout resumes in the other
        b.load(state)
        torch.testing.assert_close(b.state().module, state.module, atol=0, rtol=0)
        assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in laid_out)


@pytest.mark.parametrize(("number", "overrides"), VARIANTS)
def test_a_compiled_stage_trains_the_weights_of_the_plain_one(
    number, overrides, workplace, stage_1, monkeypatch
):
    """The backend "eager" runs the traced graphs op by op, without built kernels."""
    compiled, compiler = [], torch.compile

    def traced(module):
        compiled.append(module)
        return compiler(module, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    plain = after_two_steps(number, workplace, *overrides)
    assert not compiled
    other = after_two_steps(number, workplace, *overrides, "train.compile=true")
    assert compiled == [phase.module for phase in other.phases]
    for a, b in zip(plain.phases, other.phases, strict=True):
        torch.testing.assert_close(
            vars(a.state()), vars(b.state()), atol=1e-6, rtol=1e-5
        )  # names and values


def test_a_gradient_that_overflows_is_not_reported_as_a_loss(tmp_path):
    def steep(forward, batch):
        x = forward(batch["x"])
        return {"root": (x - x.detach()).abs().sqrt().sum()}  # finite, its slope is not

    stage = Toy(linear_phase(loss=steep), scores=repeat({"loss": 1.0}))
    with pytest.raises(InputError, match="step 0, net: the gradient is not finite"):
        run(stage, tmp_path, train=replace(PLAIN, max_bad_steps=0))


@pytest.mark.slow
def test_a_compiled_phase_agrees_with_the_plain_one():
    """The kernels are built, which needs a compiler."""
    try:
        require_compiler(for_gpu=False)
    except InputError as missing:
        pytest.skip(str(missing))
    plain, built = linear_phase(), linear_phase(train=replace(PLAIN, compile=True))
    for step in range(2):
        step_of(plain, [batch_of(step)], step, PLAIN)
        step_of(built, [batch_of(step)], step, PLAIN)
    torch.testing.assert_close(vars(plain.state()), vars(built.state()), atol=1e-6, rtol=1e-5)


def constant_stage(values, scores=None) -> Toy:
    """A stage whose loss in step n is values[n], whatever the weights."""

    def loss(forward, batch):
        value = values[batch["sample_index"]]
        return {"term": value + 0 * value * forward(batch["x"]).sum()}  # a finite slope is 0

    return Toy(linear_phase(loss=loss), scores=scores or repeat({"loss": 1.0}))


def test_a_log_line_has_the_means_over_the_steps_since_the_last_line(tmp_path):
    train = replace(PLAIN, epochs=7, log_every=3)
    run(constant_stage([1.0, 2.0, 6.0, 0.5, 0.25, 0.0, 7.0]), tmp_path, train=train)
    rows = lines(tmp_path, "training")
    assert [(row["step"], row["term"]) for row in rows] == [(3, 3.0), (6, 0.25), (7, 7.0)]
    assert rows[0]["net_gradient_norm"] == 0.0
    assert rows[0]["learning_rate"] == rows[0]["learning_rate_net"] == 1e-2
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timing] == [3, 6, 7] and timing[0]["peak_memory_mb"] > 10
    assert 0 <= timing[0]["waiting"] <= 1 and timing[0]["seconds_per_step"] > 0


def test_a_case_whose_input_is_not_finite_is_named_alone():
    batch = {"case": ["7", "8"], "latent": torch.ones(2, 3), "reconstruction": torch.ones(2) / 0}
    assert suspects([batch]) == "case 7, 8"
    batch["latent"][1, 2] = math.inf
    assert suspects([batch, batch]) == "input of case 8"


def test_skipped_steps_are_counted_and_do_not_enter_the_means(tmp_path):
    train = replace(PLAIN, epochs=6, log_every=3)
    values = [1.0, math.nan, 3.0, math.inf, math.inf, math.inf]
    run(constant_stage(values), tmp_path, train=train)
    first, second = lines(tmp_path, "training")
    assert (first["term"], first["skipped_steps"]) == (2.0, 1)
    assert "term" not in second and second["skipped_steps"] == 3


def test_a_resumed_run_logs_the_means_of_the_uninterrupted_one(tmp_path):
    """No sum is lost if the checkpoint falls on a line of the log."""
    values, train = [float(2**n) for n in range(6)], replace(PLAIN, log_every=3)
    run(constant_stage(values), tmp_path / "whole", train=train)
    best, position = Best("loss", "min", 1.0, 0), Position(step=3, sample_index=3)
    run(constant_stage(values), tmp_path / "resumed", best, position, train)
    (line,) = lines(tmp_path / "resumed", "training")
    expected = lines(tmp_path / "whole", "training")[1]
    same = ("step", "epoch", "term", "net_gradient_norm", "learning_rate", "skipped_steps")
    assert [line[name] for name in same] == [expected[name] for name in same]
    assert loss_curve(tmp_path / "whole" / "metrics.jsonl") == [(n, 1.0) for n in range(7)]


def _means(rank):
    means = StepMeans()
    for step in range(3):
        means.add({"term": torch.tensor(10.0 * rank + step)})
    means.add({"term": torch.tensor(9.0), "later": torch.tensor(4.0 * rank)})
    return means.of_this_rank(), means.read(), means.read()


def test_the_means_are_over_all_ranks(tmp_path):
    results = on_two_ranks(tmp_path, _means)
    # Rank 0 adds 0, 1, 2, 9 and rank 1 adds 10, 11, 12, 9; `later` begins with the fourth step.
    everywhere = {"term": 54 / 8, "later": 2.0}
    assert results[0] == ({"term": 3.0, "later": 0.0}, everywhere, {})
    assert results[1] == ({"term": 10.5, "later": 4.0}, everywhere, {})


def _means_of_one_rank(rank):
    """As after a resume of seven steps of one rank, in whose last a term began."""
    means, stored = StepMeans(), StepMeans()
    for step in range(7):
        stored.add({"term": torch.tensor(1.0)} | ({"later": torch.tensor(4.0)} if step else {}))
    if rank == 0:
        means.add_state(stored.state(), CPU)
    for _ in range(3):
        means.add({"term": torch.tensor(1.0)})
    return means.read()


def test_the_means_after_a_resume_on_more_ranks_count_every_step_once(tmp_path):
    assert on_two_ranks(tmp_path, _means_of_one_rank) == [{"term": 1.0, "later": 4.0}] * 2


def test_a_phase_that_has_not_begun_is_no_step():
    result = step_of(linear_phase(loss=lambda forward, batch: {}), [batch_of(0)], 0, PLAIN)
    assert result == StepResult({})


def test_a_run_logs_a_dated_line_at_least_once_a_minute(tmp_path, capsys, monkeypatch):
    """The steps take 25 seconds, and there is no terminal."""
    clock = types.SimpleNamespace(seconds=0.0)
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(f"tubesynth.training.loop.time.{name}", lambda: clock.seconds)

    def slow_loss(forward, batch):
        clock.seconds += 25.0
        return square_loss(forward, batch)

    stage = Toy(linear_phase(loss=slow_loss), scores=repeat({"loss": 1.0}))
    stage.progress_terms = ("square",)
    train = replace(PLAIN, epochs=6, log_every=4, validate_every=6)
    run(stage, tmp_path, train=train)
    shown = [line[20:] for line in capsys.readouterr().err.splitlines() if ": square " in line]
    assert [line.split(":")[0] for line in shown] == [f"epoch {n}/6, step {n}/6" for n in (1, 3, 5)]
    assert ", 25 s a step, 0:01:15 left, " in shown[1] and shown[1].endswith(" GiB")
