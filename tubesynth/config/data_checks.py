"""Checks of the section data: folders, grid, window, batches and augmentation."""

from tubesynth.config.limits import Require
from tubesynth.config.schema import DataConfig

LEAST_WINDOW = 100  # HU; a smaller window of int16 values would show steps of gray


def check_data(data: DataConfig, dim: int, require: Require) -> None:
    """Folders, grid, window, batches and augmentation."""
    for kind in ("image", "label"):
        of_training, of_validation = (getattr(data, f"{kind}_{s}_dir") for s in ("train", "val"))
        require(
            (of_training is None) == (of_validation is None),
            f"data.{kind}_train_dir, {kind}_val_dir: give both, or neither",
        )
    check_spacing(data, dim, require)
    for key in ("resolution", "crop"):
        value = getattr(data, key)
        if value is not None:
            require(
                len(value) == dim and min(value) > 0,
                f"data.{key}: expected {dim} positive numbers (the dim), got {value}",
            )
    require(
        data.crop is None or all(c <= n for c, n in zip(data.crop, data.resolution, strict=True)),
        f"data.crop: {data.crop} is larger than data.resolution {data.resolution}: make it smaller",
    )
    low, high = data.hu_window if len(data.hu_window) == 2 else (0, 0)
    require(low < high, f"data.hu_window: expected [low, high], got {data.hu_window}")
    require(
        high - low >= LEAST_WINDOW and -(2**15) <= low and high < 2**15,
        f"data.hu_window: {data.hu_window}: images are stored as int16: set a window of at least"
        f" {LEAST_WINDOW} within -32768 to 32767, and scale the images to it",
    )
    require(
        data.token_step_mm is None or dim == 3,
        "data.token_step_mm: vessels are traced in volumes: leave it out where dim is 2",
    )
    sides = data.crop or data.resolution
    require(
        data.augment.convention == "per_axis"
        or data.augment.rotate90 == 0
        or data.batch_size == 1
        or min(sides) == max(sides),
        f"data.augment.convention: published turns exchange the sides {sides} of a sample, but a"
        " batch has one shape: set data.batch_size=1, data.augment.rotate90=0 or a cubic data.crop",
    )


def check_spacing(data: DataConfig, dim: int, require: Require) -> None:
    """A spacing, a range of spacings, or null."""
    spacing, is_range = data.spacing, False
    if spacing is None:
        return
    if any(isinstance(item, list) for item in spacing):
        is_range = len(spacing) == 2 and all(isinstance(item, list) for item in spacing)
        require(
            is_range,
            f"data.spacing: {spacing}: a range is two lists of numbers: the smallest and the"
            " largest",
        )
    low, high = data.spacing_range or ((), ())
    for ends in (low, high):
        require(
            len(ends) == dim and min(ends) > 0,
            f"data.spacing: expected {dim} positive numbers (the dim), got {list(ends)}",
        )
        require(
            all(1e-3 <= size <= 1e3 for size in ends),
            f"data.spacing: {list(ends)}: expected 0.001 to 1000 mm",
        )
    require(
        all(a <= b for a, b in zip(low, high, strict=True)),
        f"data.spacing: {spacing}: give the smallest spacing of the range first",
    )


def check_multiples(data: DataConfig, factor: int, reason: str, require: Require) -> None:
    """Every side of a volume and of a crop is a multiple of the factor."""
    for key in ("resolution", "crop"):
        value = getattr(data, key)
        require(
            value is None or all(n % factor == 0 for n in value),
            f"data.{key}: {value} must be multiples of {factor} ({reason})",
        )
