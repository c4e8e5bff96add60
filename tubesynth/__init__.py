"""Synthetic CT that obeys a given anatomy, down to the coronary arteries."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubesynth.pipeline import Pipeline
    from tubesynth.volume.grid import Volume

__version__ = "0.2.0"
__all__ = ["Pipeline", "Volume", "__version__"]

# Imported at their first use: `import tubesynth` alone loads neither torch nor NumPy.
_MODULES = {"Pipeline": "tubesynth.pipeline", "Volume": "tubesynth.volume.grid"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tubesynth' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
