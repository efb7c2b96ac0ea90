"""Differentiable pseudo-inverse, least squares, ridge and closed-form readout layers for MLX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._backend import require_backend

require_backend()  # Before anything imports MLX: a missing backend is then explained.

from ._causal import causal_ridge, causal_ridge_step
from ._diagnose import diagnose, matrix_rank
from ._factorize import Factorization, factorize
from ._lstsq import lstsq
from ._nnls import lsq_linear, nnls
from ._penrose import penrose_residuals
from ._pinv import pinv
from ._ridge import ridge
from ._subspaces import null_space, orth
from ._types import CausalState, Diagnosis, LstsqResult
from ._version import version

if TYPE_CHECKING:  # At run time a subpackage is imported at its first use: see __getattr__.
    from . import heads as heads
    from . import nn as nn
    from . import streaming as streaming
    from . import surgery as surgery
    from . import testing as testing
    from . import varpro as varpro

    __version__: str

__all__ = [
    "CausalState",
    "Diagnosis",
    "Factorization",
    "LstsqResult",
    "causal_ridge",
    "causal_ridge_step",
    "diagnose",
    "factorize",
    "lsq_linear",
    "lstsq",
    "matrix_rank",
    "nnls",
    "null_space",
    "orth",
    "penrose_residuals",
    "pinv",
    "ridge",
]


if not TYPE_CHECKING:  # A type checker then sees what is above, and nothing else.

    def __getattr__(name: str) -> Any:
        """Subpackages and the version on first use: ``import pinvnn`` stays quick."""
        if name == "__version__":
            return version()
        if name in ("heads", "nn", "streaming", "surgery", "testing", "varpro"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
