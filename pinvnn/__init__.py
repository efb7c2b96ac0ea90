"""Differentiable pseudo-inverse, least squares, ridge and closed-form readout layers for MLX."""

from importlib import import_module

from ._backend import require_backend

require_backend()  # Before anything imports MLX: a missing backend is then explained.

from ._lstsq import lstsq as lstsq
from ._pinv import diagnose as diagnose
from ._pinv import matrix_rank as matrix_rank
from ._pinv import pinv as pinv
from ._ridge import ridge as ridge
from ._subspaces import null_space as null_space
from ._subspaces import orth as orth
from ._subspaces import penrose_residuals as penrose_residuals
from ._types import Diagnosis as Diagnosis
from ._types import LstsqResult as LstsqResult
from ._version import version


def __getattr__(name):
    """Subpackages and the version on first use: ``import pinvnn`` stays quick."""
    if name == "__version__":
        return version()
    if name in ("heads", "nn", "streaming", "testing", "varpro"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
