"""Hidden states of every layer of an mlx-lm decoder model, pooled to one vector a text.

How it hooks in, for every architecture alike: ``model.layers`` (what mlx-lm's caches and LoRA rely on) names the
decoder layers. For the length of one forward pass each of them, and each module around and beside them, is given a
subclass of its own class whose call also reports what went in and out. The embedding is the input of the first layer,
layer i is the output of the i-th call, and the final norm is the last thing of a state's shape that comes after the
layers. MLX is lazy: states that nobody asks for, and the logits, are never computed.

Padding goes to the right. The models are causal, so no state of a text depends on what comes after it, and pooling
never reads beyond the text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Pooling = str | int

# What the configurations of mlx-lm's models call the longest context.
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")


@cache
def _reporter(cls: type) -> type:
    """A subclass of a module's class that tells the module's ``_report`` what each call was given and returned."""

    def call(self, *args, **kwargs):
        result = cls.__call__(self, *args, **kwargs)
        self._report(self, args, kwargs, result)
        return result

    return type(cls.__name__, (cls,), {"__call__": call})


@contextmanager
def _reporting(modules: Sequence[nn.Module], report: Callable[[nn.Module, tuple, dict, Any], None]) -> Iterator[None]:
    """While open, each call of one of ``modules`` is reported with its arguments and its result."""
    classes = {id(module): (module, type(module)) for module in modules}
    try:
        for module, cls in classes.values():
            module._report = report
            module.__class__ = _reporter(cls)
        yield
    finally:
        for module, cls in classes.values():
            module.__class__ = cls
            vars(module).pop("_report", None)


def _path_to(module: Any, target: nn.Module) -> list[nn.Module] | None:
    """The modules from ``module`` down to the one that holds ``target``, the outermost first."""
    if module is target:
        return []
    children = module.values() if isinstance(module, dict) else module if isinstance(module, list | tuple) else ()
    for child in children:
        below = _path_to(child, target)
        if below is not None:
            return [module, *below] if isinstance(module, nn.Module) else below
    return None


def _first_array(tree: Any) -> mx.array | None:
    """The first array among arguments or results; layers may return (state, cache, ...)."""
    values = [tree] if isinstance(tree, mx.array) else tree if isinstance(tree, list | tuple) else []
    return next((value for value in values if isinstance(value, mx.array)), None)


def hidden_states(model: nn.Module, tokens: mx.array) -> list[mx.array]:
    """Hidden states of every layer, differentiable and lazy.

    Args:
        model (nn.Module): A decoder model as ``mlx_lm.load`` returns it.
        tokens (array): Token ids of shape ``(batch, length)``, padded to the right.

    Returns:
        list(array): The embedding, the output of each decoder layer and, last, of the final norm: arrays of shape
        ``(batch, length, dims)`` in the model's dtype.

    Raises:
        ValueError: The model is no decoder of mlx-lm, or its layers pass something else than one state a token.
    """
    layers = [layer for layer in getattr(model, "layers", []) if layer is not None]
    around = _path_to(model, layers[0]) if layers else None
    if not around:
        raise ValueError(
            "[pinvnn.heads] the model must have its decoder layers in `model.layers`, as mlx-lm's models do, "
            f"but got {type(model).__name__}."
        )
    states: list[Any] = []
    after: list[Any] = []  # what modules beside and around the layers returned since the last layer
    inner = {id(layer) for layer in layers}
    beside = [child for module in around[1:] for child in module.values() if isinstance(child, nn.Module)]

    def report(module, args, kwargs, result):
        if id(module) not in inner:
            after.append(_first_array(result))
            return
        if not states:
            states.append(_first_array([*args, *kwargs.values()]))
        states.append(_first_array(result))
        after.clear()

    with _reporting([*layers, *beside, *around[1:]], report):
        model(tokens)
    for i, state in enumerate(states):
        if state is None or state.ndim != 3 or state.shape[:2] != tokens.shape:
            raise ValueError(
                f"[pinvnn.heads] layer {i} of {type(model).__module__} must pass a state of shape (batch, length, "
                f"dims), but got {None if state is None else state.shape}. Such models are not supported."
            )
    # Logits have another shape, and a module that only hands the last state on returns that very array.
    final = [out for out in after if out is not None and out.shape == states[-1].shape and out is not states[-1]]
    return states + final[-1:]


def pool(state: mx.array, lengths: mx.array, pooling: Pooling = "last") -> mx.array:
    """One vector a text from the states of its tokens.

    Args:
        state (array): Shape ``(batch, length, dims)``, of texts padded to the right.
        lengths (array): Number of tokens of each text, shape ``(batch,)``.
        pooling (str or int): ``"last"`` token, ``"mean"`` of the tokens, or the position of a token; a negative one
          counts from the end of the text.

    Returns:
        array: Shape ``(batch, dims)``, float32. Exactly independent of the padding.
    """
    if pooling == "mean":
        inside = mx.arange(state.shape[1])[None, :, None] < lengths[:, None, None]
        # `where` and not a product: 0 * nan would let a padded position through.
        return mx.where(inside, state.astype(mx.float32), 0.0).sum(axis=1) / lengths[:, None]
    position = -1 if pooling == "last" else int(pooling)
    index = lengths + position if position < 0 else mx.full(lengths.shape, position, dtype=lengths.dtype)
    return mx.take_along_axis(state, index[:, None, None], axis=1).squeeze(1).astype(mx.float32)


def check_pooling(pooling: Pooling) -> Pooling:
    """Returns ``pooling``, a position given as text as a number."""
    if isinstance(pooling, str) and pooling not in ("last", "mean"):
        try:
            return int(pooling)
        except ValueError:
            raise ValueError(
                f'[pinvnn.heads] pooling must be "last", "mean" or a token position, but got {pooling!r}.'
            ) from None
    return pooling


def tokens_needed(pooling: Pooling) -> int:
    """The fewest tokens that a text must have to be pooled."""
    if isinstance(pooling, str):
        return 1
    return -pooling if pooling < 0 else pooling + 1


def pad(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[mx.array, mx.array]:
    """Token ids of shape ``(batch, longest)`` padded to the right, and the lengths of shape ``(batch,)``."""
    longest = max(len(row) for row in rows)
    tokens = [list(row) + [padding] * (longest - len(row)) for row in rows]
    return mx.array(tokens, dtype=mx.int32), mx.array([len(row) for row in rows], dtype=mx.int32)


def context_length(model: nn.Module) -> int | None:
    """The longest context that the model's configuration names, or None."""
    args = getattr(model, "args", None)
    text = getattr(args, "text_config", None)
    named = {**(vars(args) if hasattr(args, "__dict__") else {}), **(text if isinstance(text, dict) else {})}
    return next((int(named[name]) for name in _CONTEXT_NAMES if isinstance(named.get(name), int)), None)
