"""A training step of stage 1 at the published widths, and its convolutions alone.

Cases:
  step          generator and discriminator: forward, losses, backward, clipping, both optimisers
  convolutions  every convolution of that step, forward and backward for what the step asks of it
                (input, weights or both), and nothing between them
The batch is random: what is measured is the step, not the loader. --set takes what a config takes,
e.g. train.checkpointing=true losses.vessel_weight=10.
"""

from tubesynth.benchmarks.measure import measure, result
from tubesynth.errors import InputError

CASES = ("step", "convolutions")


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--case", nargs="+", choices=CASES, default=list(CASES))
    add("--crop", type=int, nargs="+", default=(64, 64, 64), help="voxels a side")
    add("--batch", type=int, default=1)
    add("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    add("--repeats", type=int, default=5, help="timed steps, after one to warm up")
    add("--device", default="cpu", help="cpu or cuda")


def check(args) -> None:
    for key in ("batch", "repeats"):
        if getattr(args, key) < 1:
            raise InputError(f"--{key} {getattr(args, key)}: must be at least 1")
    if args.device != "cpu":
        import torch

        if args.device != "cuda" or not torch.cuda.is_available():
            raise InputError(f"--device {args.device}: not there; take cpu")
    config_of(args)


def lines(case: str, args) -> list[None]:
    return [None]


def prepare(case: str, args) -> None:
    """Nothing: weights and batch are made where they are used."""


def config_of(args):
    """Published sizes and losses that need no weights, with --set on top."""
    from tubesynth.config_loading import config_from_plain
    from tubesynth.strict import apply_overrides

    data = {"crop": list(args.crop)}
    if len(args.crop) == 2:
        data |= {"resolution": [256, 256], "spacing": [0.7, 0.7]}
    plain = {"stage": 1, "dim": len(args.crop), "data": data}
    return config_from_plain(apply_overrides(plain, args.overrides), "--set")


def run_case(case: str, args, _) -> dict:
    """One case, measured: its JSON object."""
    import torch

    step, stage = training_step(args)
    if case == "convolutions":
        step = bare(recorded_convolutions(stage, step))
    cuda = args.device == "cuda"

    def work():
        step()
        if cuda:
            torch.cuda.synchronize()

    work()  # allocations, autotuning; the codebook takes its first codes
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    measured = measure(work, args.repeats)
    line = result(
        "autoencoder",
        case,
        measured,
        f"{args.batch} x {'x'.join(map(str, args.crop))}",
        device=torch.cuda.get_device_name() if cuda else "cpu",
        threads=torch.get_num_threads(),
        settings=args.overrides,
    )
    if cuda:
        line["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return line


def training_step(args):
    """(a function of one optimiser step of both phases, the stage that it trains)."""
    import torch

    from tubesynth.training.autoencoder import AutoencoderStage
    from tubesynth.training.loop import Position, optimise

    config, device = config_of(args), torch.device(args.device)
    torch.manual_seed(0)
    stage = AutoencoderStage(config, None, Position(step=10**9), device)
    shape = (args.batch, *args.crop)
    batch = {
        "image": torch.rand(shape)[:, None].to(device),
        "label": torch.randint(config.data.num_classes, shape, dtype=torch.uint8).to(device),
        "draw": list(range(args.batch)),
    }

    def step():
        for phase in stage.phases:
            optimise(phase, [batch], 0, config.train)

    return step, stage


def recorded_convolutions(stage, step) -> list[tuple]:
    """(layer, shape of its input, does that need a gradient?, do its weights?) for each call."""
    import torch

    calls, handles = [], []

    def record(layer, inputs):
        (x,) = inputs
        calls.append((layer, x.shape, x.requires_grad, layer.weight.requires_grad))

    for phase in stage.phases:
        for layer in phase.module.modules():
            if isinstance(layer, torch.nn.modules.conv._ConvNd):
                handles.append(layer.register_forward_pre_hook(record))
    step()
    for handle in handles:
        handle.remove()
    return calls


def bare(calls: list[tuple]):
    """A function that runs these convolutions forward and backward, one by one."""
    import torch

    work = []
    for layer, shape, for_input, for_weights in calls:
        x = torch.randn(shape, device=layer.weight.device, requires_grad=for_input)
        with torch.no_grad():
            gradient = torch.randn_like(layer(x))
        wanted = [x] if for_input else []
        wanted += list(layer.parameters()) if for_weights else []
        work.append((layer, x, gradient, wanted))

    def run():
        for layer, x, gradient, wanted in work:
            torch.autograd.grad(layer(x), wanted, gradient)

    return run
