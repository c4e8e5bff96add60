"""The linear window between HU and the range [0, 1] of the models, for arrays and tensors."""

import numpy as np


def hu_to_unit(hu, window=(-1000.0, 1000.0)):
    """HU of any shape and type -> float32 in [0, 1]: clip((hu - low) / (high - low), 0, 1)."""
    low, high = map(float, window)
    # int16 would overflow in the subtraction
    hu = hu.float() if hasattr(hu, "float") else np.asarray(hu, dtype=np.float32)
    return ((hu - low) / (high - low)).clip(0, 1)


def unit_to_hu(unit, window=(-1000.0, 1000.0)):
    """[0, 1] of any shape -> float32 HU, clip(unit, 0, 1) * (high - low) + low."""
    low, high = map(float, window)
    unit = unit.float() if hasattr(unit, "float") else np.asarray(unit, dtype=np.float32)
    return unit.clip(0, 1) * (high - low) + low
