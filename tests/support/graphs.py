"""The operations of a lazy graph, by name, as ``mx.export_to_dot`` writes them."""

import io
import re

import mlx.core as mx


def operations(*outputs: mx.array) -> list[str]:
    """The names of all operations that ``outputs`` need, as ``["Cholesky", "Matmul", ...]``."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    return re.findall(r'label ="([^"]+)", shape=rectangle', text.getvalue())
