"""The loss of the vessel segmenter."""

from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of the whole batch (Milletari et al. 2016); target: {0, 1}, shape of logits."""
    probability, target = logits.float().sigmoid(), target.float()
    overlap = 2 * (probability * target).sum()
    return 1 - (overlap + 1) / (probability.sum() + target.sum() + 1)
