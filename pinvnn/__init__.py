"""Differentiable pseudo-inverse, least squares, ridge and closed-form readout layers for MLX."""

from importlib.metadata import PackageNotFoundError, version

from ._backend import require_backend

require_backend()  # Before anything imports MLX: a missing backend is then explained.

try:
    __version__ = version("pinvnn")
except PackageNotFoundError:  # A source tree on the path that was never installed.
    __version__ = "0+unknown"
