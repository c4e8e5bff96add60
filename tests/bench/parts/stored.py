"""What a training step stores between its forward and its backward pass."""

import gc
from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def stored_mb(step: Callable[[], None]) -> float:
    """The MB (1e6 bytes) of all tensors that autograd stores in a step, but parameters."""
    parameters = [each for each in gc.get_objects() if issubclass(type(each), nn.Parameter)]
    ignored = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return round(sum(sizes.values()) / 1e6, 1)
