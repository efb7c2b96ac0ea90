"""Hidden states of every layer of an mlx-lm decoder model, pooled to one vector for each text.

How it hooks in, for every architecture alike: ``model.layers`` (what mlx-lm's caches and LoRA rely on) names the
decoder layers. For the length of one forward pass each of them, and each module around and beside them, is given a
subclass of its own class whose call also reports what went in and out. The embedding is the input of the first layer,
layer i is the output of the i-th call, and the final norm is the last thing of a state's shape that comes after the
layers. MLX is lazy: states that nobody asks for, and the logits, are never computed.

Padding goes to the right. The models are causal, so no state of a text depends on what comes after it, and pooling
never reads beyond the text.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from .._mlx import fail

#: How a text becomes one vector: its last token, the mean of its tokens, or a token position.
Pooling: TypeAlias = Literal["last", "mean"] | int
#: Called after each call of a module: the module, its arguments, its keyword arguments, its result.
Report: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]

# Names of the longest context in the configurations of mlx-lm's models.
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")


@cache
def _reporter(cls: type) -> type:
    """A subclass of a module's class that passes the arguments and result of each call to the module's ``_report``."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.__call__(self, *args, **kwargs)
        self._report(self, args, kwargs, result)
        return result

    return type(cls.__name__, (cls,), {"__call__": call})


@contextmanager
def reporting(modules: Sequence[nn.Module], report: Report) -> Iterator[None]:
    """Context in which ``report`` is called after each call of one of ``modules``."""
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


def path_to(module: Any, target: nn.Module) -> list[nn.Module] | None:
    """The modules from ``module`` down to the one that holds ``target``, the outermost first."""
    if module is target:
        return []
    children = module.values() if isinstance(module, dict) else module if isinstance(module, list | tuple) else ()
    for child in children:
        below = path_to(child, target)
        if below is not None:
            return [module, *below] if isinstance(module, nn.Module) else below
    return None


def first_array(tree: Any) -> mx.array | None:
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
        ValueError: The model has no ``layers`` as mlx-lm's decoders have, or they do not pass one state for each token.
    """
    layers = [layer for layer in getattr(model, "layers", []) if layer is not None]
    around = path_to(model, layers[0]) if layers else None
    if not around:
        rule = "the model must have its decoder layers in `model.layers`, as mlx-lm's models do"
        fail("heads", rule, type(model).__name__, "Load it with `mlx_lm.load`.")
    states: list[Any] = []
    after: list[Any] = []  # what modules beside and around the layers have returned since the last layer was called
    inner = {id(layer) for layer in layers}
    beside = [child for module in around[1:] for child in module.values() if isinstance(child, nn.Module)]

    def report(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if id(module) not in inner:
            after.append(first_array(result))
            return
        if not states:
            states.append(first_array([*args, *kwargs.values()]))
        states.append(first_array(result))
        after.clear()

    with reporting([*layers, *beside, *around[1:]], report):
        model(tokens)
    for i, state in enumerate(states):
        if state is None or state.ndim != 3 or state.shape[:2] != tokens.shape:
            rule = f"layer {i} of {type(model).__module__} must pass a state of shape (batch, length, dims)"
            fail("heads", rule, None if state is None else state.shape, "Such models are not supported.")
    # Logits have another shape, and a module that only hands the last state on returns that very array.
    final = [out for out in after if out is not None and out.shape == states[-1].shape and out is not states[-1]]
    return states + final[-1:]


def pool(state: mx.array, lengths: mx.array, pooling: Pooling = "last") -> mx.array:
    """One vector for each text from the states of its tokens.

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


def read_features(
    model: nn.Module, tokens: mx.array, lengths: mx.array, layers: Sequence[int], pooling: Pooling
) -> list[mx.array]:
    """Pooled states ``(batch, dims)`` of each of ``layers`` for one batch, lazy and differentiable."""
    states = hidden_states(model, tokens)
    return [pool(states[layer], lengths, pooling) for layer in layers]


def check_layers(layers: Sequence[int], states: int) -> list[int]:
    """The layers counted from 0.

    Raises:
        ValueError: The model has no such layer.
    """
    for layer in layers:
        if not -states <= layer < states:
            rule = f"layer must be between {-states} and {states - 1}"
            fail("heads", rule, layer, "0 is the embedding, -1 the final norm.")
    return [layer % states for layer in layers]


def check_pooling(pooling: Pooling | str) -> Pooling:
    """``pooling``, where a position that is written as a string becomes a number.

    Raises:
        ValueError: It is neither ``"last"`` nor ``"mean"`` nor a whole number.
    """
    if pooling == "last" or pooling == "mean":
        return pooling
    try:
        return int(pooling) if isinstance(pooling, str) else operator.index(pooling)
    except (TypeError, ValueError):
        rule = 'pooling must be "last", "mean" or a token position'
        fail("heads", rule, repr(pooling), "Positions are whole numbers: 0 is the first token, -1 the last.")


def tokens_needed(pooling: Pooling) -> int:
    """The fewest tokens that a text must have to be pooled."""
    if pooling == "last" or pooling == "mean":
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
