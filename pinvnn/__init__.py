"""Differentiable pseudo-inverse, least squares, ridge and closed-form readout layers for MLX."""

from importlib import import_module

from ._backend import require_backend

require_backend()  # Before anything imports MLX: a missing backend is then explained.

from ._lstsq import lstsq
from ._pinv import diagnose, matrix_rank, pinv
from ._ridge import ridge
from ._subspaces import null_space, orth, penrose_residuals
from ._types import Diagnosis, LstsqResult
from ._version import version

__all__ = [
    "Diagnosis",
    "LstsqResult",
    "diagnose",
    "lstsq",
    "matrix_rank",
    "null_space",
    "orth",
    "penrose_residuals",
    "pinv",
    "ridge",
]


def __getattr__(name):
    """Subpackages and the version on first use: ``import pinvnn`` stays quick."""
    if name == "__version__":
        return version()
    if name in ("heads", "nn", "streaming", "testing", "varpro"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
