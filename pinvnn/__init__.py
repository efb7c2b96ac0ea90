"""Differentiable pseudo-inverse, least squares, ridge and closed-form readout layers for MLX."""

from importlib.metadata import PackageNotFoundError, version

from ._backend import require_backend

require_backend()  # Before anything imports MLX: a missing backend is then explained.

from ._lstsq import lstsq as lstsq  # noqa: E402
from ._pinv import diagnose as diagnose, matrix_rank as matrix_rank, pinv as pinv  # noqa: E402
from ._ridge import ridge as ridge  # noqa: E402
from ._subspaces import null_space as null_space, orth as orth, penrose_residuals as penrose_residuals  # noqa: E402
from ._types import Diagnosis as Diagnosis, LstsqResult as LstsqResult  # noqa: E402

try:
    __version__ = version("pinvnn")
except PackageNotFoundError:  # A source tree on the path that was never installed.
    __version__ = "0+unknown"
