"""The linear window between HU and the [0, 1] of the models, for NumPy arrays and tensors alike."""

import numpy as np


def hu_to_unit(hu, window=(-1000.0, 1000.0)):
    """HU of any shape and type -> float in [0, 1], clipped at the window's ends."""
    low, high = map(float, window)
    # to float first: int16 would overflow in the subtraction
    hu = hu.float() if hasattr(hu, "float") else np.asarray(hu, dtype=np.float32)
    return ((hu - low) / (high - low)).clip(0, 1)


def unit_to_hu(unit, window=(-1000.0, 1000.0)):
    """[0, 1] -> HU as float; values beyond [0, 1] are clipped, so the window is never left."""
    low, high = map(float, window)
    unit = unit.float() if hasattr(unit, "float") else np.asarray(unit, dtype=np.float32)
    return unit.clip(0, 1) * (high - low) + low
