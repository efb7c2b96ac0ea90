"""The one check made before MLX is used: that it has a backend to run on."""


def require_backend() -> None:
    """Import MLX, or say which extra brings the backend that it lacks.

    On Linux the package ``mlx`` alone is only a front: its library ``libmlx`` comes with ``mlx-cpu`` or ``mlx-cuda``.

    Raises:
        ImportError: MLX is installed without a backend.
    """
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        if "libmlx" not in str(error):
            raise  # Broken in some other way, which the original message describes best.
        raise ImportError(
            f"[pinvnn] MLX must have a backend, but got none ({error}). On Linux install one with "
            "`pip install 'pinvnn[cpu]'`, or `pip install 'pinvnn[cuda]'` for an NVIDIA GPU."
        ) from error
