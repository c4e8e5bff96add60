"""The quantizer of one volume's latents, against the usual one with its N x K matrices.

Cases: eval (search and look-up) and train (the moving averages besides). The usual implementation
holds all distances, makes a one-hot row of every index, and multiplies with it; where its 16 bytes
a pair do not fit into memory, it gets fewer vectors, and `speedup` compares the time of one
vector. extra_mb is the peak memory beyond that of the process before the work.
"""

import math
import time

from parts.measure import PeakMemory, significant
from parts.options import GRID, add_device, add_repeats, check_options

CASES = ("eval", "train")
PEER_BYTES_PER_PAIR = 16  # distances, and one-hot rows as int64 and float32
SHARE_OF_MEMORY = 0.6  # of the free memory, for the peer, whose result needs more
DECAY = 0.5


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--latent", type=int, default=(64, 64, 32), help="cells", **GRID)
    add("--codes", type=int, default=8192)
    add("--channels", type=int, default=8)
    add("--peer-vectors", type=int, help="vectors that the usual quantizer gets; default: that fit")
    add_repeats(parser, 3, "runs of each side")
    add_device(parser)


def check(args) -> None:
    optional_counts = [] if args.peer_vectors is None else ["peer_vectors"]
    check_options(args, "latent", "codes", "channels", "repeats", *optional_counts)


def run_case(case: str, args) -> dict:
    """Both sides, one after the other: the JSON object."""
    import torch
    from parts.turns import device_of, in_turns, result_on

    from tubesynth.models.quantizers.codebook import EmaQuantizer
    from tubesynth.runtime.memory import free_bytes

    device = device_of(args.device)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    latents = torch.randn(1, args.channels, *args.latent).to(device)
    ours = EmaQuantizer(
        args.codes, args.channels, commitment=0.25, decay=DECAY, revive_after=0
    ).train(case == "train")
    ours, codebook = ours.to(device), torch.randn(args.codes, args.channels).to(device)

    def restart():
        ours.codebook.copy_(codebook)
        ours.ema_sum.copy_(codebook)
        ours.ema_count.fill_(1.0)
        ours.initialised.fill_(True)

    def quantize():
        restart()
        ours(latents)

    before = peak_before(device)
    (measured,) = in_turns([quantize], args.repeats, device)

    vectors = latents.movedim(1, -1).reshape(-1, args.channels)
    room = SHARE_OF_MEMORY * free_bytes(device) / PEER_BYTES_PER_PAIR / args.codes
    some = vectors[: args.peer_vectors or min(len(vectors), int(room))]
    before_peer = peak_before(device)
    (peer,) = in_turns(
        [lambda: usual_quantizer(some, codebook, case == "train")], args.repeats, device
    )

    restart()
    indices = ours(latents)[2].flatten()[: len(some)]
    same = (indices == usual_quantizer(some, codebook, False)[1]).double().mean().item()
    return result_on(
        device,
        measured,
        f"{'x'.join(map(str, args.latent))} x {args.codes} codes x {args.channels}",
        extra_mb=_difference(measured.peak_mb, before),
        peer="one-hot",
        peer_seconds=significant(peer.seconds),
        peer_peak_mb=peer.peak_mb and round(peer.peak_mb, 1),
        peer_extra_mb=_difference(peer.peak_mb, before_peer),
        peer_vectors=len(some),
        speedup=significant(peer.seconds / len(some) * math.prod(args.latent) / measured.seconds),
        memory_ratio=peer.peak_mb and significant(measured.peak_mb / peer.peak_mb),
        peer_cpu_seconds=peer.cpu_seconds and significant(peer.cpu_seconds),
        same_indices=same,
    )


def peak_before(device) -> float | None:
    """MB that the process holds without the work."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 1e6
    with PeakMemory() as memory:
        time.sleep(0.1)
    return memory.peak_mb


def usual_quantizer(vectors, codebook, follow: bool):
    """(N, D), (K, D) -> quantized (N, D), indices (N,), and the codebook, updated if follow is set.

    The usual code for van den Oord et al. 2017; the argument codebook does not change.
    """
    import torch.nn.functional as F

    distances = (
        vectors.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * vectors @ codebook.T
    )
    indices = distances.argmin(1)
    chosen = F.one_hot(indices, len(codebook)).to(vectors.dtype)
    quantized = chosen @ codebook
    if follow:
        count = DECAY + (1 - DECAY) * chosen.sum(0)
        total = DECAY * codebook + (1 - DECAY) * chosen.T @ vectors
        codebook = total / count[:, None]
    return quantized, indices, codebook


def _difference(peak_mb: float | None, before_mb: float | None) -> float | None:
    return None if peak_mb is None or before_mb is None else round(peak_mb - before_mb, 1)
