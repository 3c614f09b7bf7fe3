"""Generative models on Pyro and PyTorch: exact message passing, fast inference, missing data.

``import ppgen`` loads nothing else; each name below is loaded when it is first used.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.errors import DataError, FileError, FitError, PpgenError
    from ppgen.laws.laws import check
    from ppgen.model import Conjugate, Model
    from ppgen.results.fit import Fit, load

__all__ = [
    "Conjugate",
    "DataError",
    "FileError",
    "Fit",
    "FitError",
    "Model",
    "PpgenError",
    "__version__",
    "check",
    "load",
]

__version__ = version("ppgen")

_HOMES = {
    "Conjugate": "ppgen.model",
    "DataError": "ppgen.errors",
    "FileError": "ppgen.errors",
    "Fit": "ppgen.results.fit",
    "FitError": "ppgen.errors",
    "Model": "ppgen.model",
    "PpgenError": "ppgen.errors",
    "check": "ppgen.laws.laws",
    "load": "ppgen.results.fit",
}
_PACKAGES = (
    "collapsed",
    "data",
    "diagnostics",
    "distributions",
    "emissions",
    "families",
    "inference",
    "messages",
    "models",
    "plots",
    "pose",
    "results",
)


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public name)
    if name in _PACKAGES:
        return importlib.import_module(f"ppgen.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ppgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
