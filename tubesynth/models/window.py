"""A box of a grid of cells: where a network that works tile by tile is in the whole grid."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Window:
    """size: cells of the whole grid. box: the cells of the window, a slice of each axis."""

    size: tuple[int, ...]
    box: tuple[slice, ...]

    @classmethod
    def of(cls, size: "tuple[int, ...] | Window") -> "Window":
        """The window itself, or that of a whole grid of this size."""
        return size if isinstance(size, Window) else cls(size, tuple(slice(0, n) for n in size))

    @property
    def shape(self) -> tuple[int, ...]:
        """The cells of the window along each axis."""
        return tuple(axis.stop - axis.start for axis in self.box)

    def halved(self) -> "Window":
        """The window after a convolution of stride 2; it must begin at even cells."""
        box = tuple(slice(axis.start // 2, (axis.stop + 1) // 2) for axis in self.box)
        return Window(tuple((n + 1) // 2 for n in self.size), box)

    def crop(self, x: Tensor, factor: int = 1) -> Tensor:
        """The window of (..., factor X, ...), with `factor` voxels along each side of a cell."""
        return x[(..., *[slice(factor * axis.start, factor * axis.stop) for axis in self.box])]
