"""The one check made before MLX is used: that it has a backend to run on."""

import sys
from pathlib import Path


def require_backend() -> None:
    """Import MLX, or say which extra brings the backend that it lacks.

    On Linux the package ``mlx`` alone is only a front: its library ``libmlx`` comes with ``mlx-cpu`` or ``mlx-cuda``.

    Raises:
        ImportError: MLX is installed without a backend.
        SystemExit: The same, within the command ``pinvnn``: one line on standard error and exit code 2.
    """
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        if "libmlx" not in str(error):
            raise  # Broken in some other way, which the original message describes best.
        message = (
            f"MLX must have a backend, but got none ({error}). On Linux install one with "
            "`pip install 'pinvnn[cpu]'`, or `pip install 'pinvnn[cuda]'` for an NVIDIA GPU."
        )
        if _is_command():
            print(f"pinvnn: error: {message}", file=sys.stderr)
            raise SystemExit(2) from None
        raise ImportError(f"[pinvnn] {message}") from error


def _is_command() -> bool:
    """Whether this process is ``pinvnn`` or ``python -m pinvnn``, where no user wants a traceback."""
    name = (getattr(sys, "argv", None) or [""])[0]
    if name == "-m":  # what runs is not known yet
        return any(name in sys.orig_argv for name in ("pinvnn", "pinvnn.heads"))
    return Path(name).stem == "pinvnn"
