"""Flow matching on a straight path (Lipman et al. 2023, arXiv 2210.02747).

t = 0 is noise and t = 1 is data: x_t = (1 - (1 - sigma_min) t) x_0 + t x_1 (eq. 22), and the
velocity to be learned is x_1 - (1 - sigma_min) x_0 (eq. 23). The network is any callable
velocity(x_t, t).
"""

from collections.abc import Callable

from torch import Tensor


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1)."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def path(noise: Tensor, data: Tensor, t: Tensor, sigma_min: float) -> tuple[Tensor, Tensor]:
    """Noise and data (B, C, ...), t (B,) -> the point x_t and the velocity there."""
    t = expand(t, data)
    x_t = (1 - (1 - sigma_min) * t) * noise + t * data
    velocity = data - (1 - sigma_min) * noise
    return x_t, velocity


def matching_loss(
    velocity: Callable[[Tensor, Tensor], Tensor],
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    sigma_min: float,
    norm: str = "l1",
) -> Tensor:
    """Mean l1 or l2 distance between the network's velocity and that of the path: (B,), a case
    each.
    """
    x_t, target = path(noise, data, t, sigma_min)
    error = velocity(x_t, t).float() - target
    error = error.abs() if norm == "l1" else error.square()
    return error.flatten(1).mean(1)
