"""What the examples share: their size, where pictures go, the digits."""

import os
from pathlib import Path

import matplotlib
import mlx.core as mx
import numpy as np

matplotlib.use("Agg")

SMALL = os.environ.get("PINVNN_EXAMPLE_SIZE") == "small"


def picture(name: str) -> Path:
    """The path of a picture, in the folder that PINVNN_EXAMPLE_OUTPUT names, or examples/output."""
    folder = Path(os.environ.get("PINVNN_EXAMPLE_OUTPUT", Path(__file__).parent / "output"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def digits(test: int, seed: int = 0):
    """scikit-learn's 1,797 handwritten digits, shuffled: images (rows, 8, 8, 1) in 0 .. 1 and labels.

    Returns:
        ``(x_train, y_train), (x_test, y_test)`` with ``test`` rows in the second.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x = mx.array(np.asarray(images)[order].reshape(-1, 8, 8, 1) / 16, mx.float32)
    y = mx.array(np.asarray(labels)[order], mx.int32)
    return (x[test:], y[test:]), (x[:test], y[:test])


def spread(values) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2g}"
