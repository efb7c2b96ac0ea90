r"""Statistics from which every span of decoder layers can be replaced by a refitted layer before it.

Notation: h_i the state after decoder layer i (1 is the first), a_i what the last linear layer of decoder layer i reads,
W_i its weight. A decoder layer adds the output of that linear layer to the state:

    h_i = g_i + W_i a_i,    with g_i independent of W_i.

Without the layers i+1 ... i+s, and with W_i + D in place of W_i, the state is h_i + D a_i where it was h_{i+s}. So the
fold is exact, and D is the solution of a least squares problem in which the residual stream stays where it is:

    min sum_t w_t |h_{i+s,t} - h_{i,t} - D a_{i,t}|^2 + l2 |D|^2.

D = 0, which a large penalty gives, is to drop the layers. A map T of the output of that linear layer alone, as in
ReplaceMe, is the special case D = (T - I) W_i. Every layer that follows begins with a norm, which divides by the size
of the state, so that errors count relative to it: w_t = 1 / |h_{i+s,t}|^2, up to a factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from .._factor import RightFactor
from .._lm import PROBE, LanguageModel, TextReader, first_array, pad, reporting
from .._mlx import dtypes, fail, on_cpu
from .._rules import gcv_score, squares_and_degrees
from ..streaming import ReadoutStatistics
from ._collect import rows_of_tokens
from ._layers import block_names, linear_layers
from ._pending import Pending

# Penalties that are tried, relative to the largest eigenvalue of the Gram matrix, and then around the best of them.
GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-24, 5))
FINER = tuple(10.0 ** (exponent / 12) for exponent in (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5))


class Block(NamedTuple):
    """A decoder layer and its last linear layer.

    Attributes:
        module: The decoder layer.
        name: Name of the linear layer.
        linear: The linear layer.
        dims: Size of what the linear layer reads.
        outputs: Size of the state.
    """

    module: nn.Module
    name: str
    linear: nn.Module
    dims: int
    outputs: int


class Fit(NamedTuple):
    """A span that is replaced.

    Attributes:
        start: The decoder layer before the span.
        l2: The penalty; infinity if the span is dropped.
        change: D ``(outputs, dims)``, float64; empty if only errors were asked for.
        shift: Change of the bias of the linear layer ``(outputs,)``, or None if it has none.
        dropped: Relative error of the state after the span, the root of mean |dh|^2 / |h|^2, if the span is dropped.
        fitted: The same with D: on the tokens that it was fitted to.
        predicted: The same as generalized cross validation predicts it for other tokens; NaN if it cannot.
    """

    start: int
    l2: float
    change: NDArray[np.float64]
    shift: NDArray[np.float64] | None
    dropped: float
    fitted: float
    predicted: float


def find_blocks(source: LanguageModel, numbers: Sequence[int]) -> dict[int, Block]:
    """The decoder layers of these numbers, of which 1 is the first.

    Raises:
        ValueError: A decoder layer does not add the output of its last linear layer to the state.
    """
    names = block_names(source.model)
    modules, linear = dict(source.model.named_modules()), linear_layers(source.model)
    blocks = {id(modules[names[i - 1]]): i for i in numbers}
    inside = {id(module): name for name, module in linear.items()}
    last: list[tuple[str, mx.array, mx.array]] = []
    found: dict[int, Block] = {}
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], mx.array, mx.array]] = {}

    def report(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        state = first_array(result)
        assert state is not None
        if id(module) in inside:
            given = first_array(args)
            assert given is not None
            last[:] = [(inside[id(module)], given, state)]
            return
        number = blocks[id(module)]
        if not last or last[0][2].shape != state.shape:
            _refuse(names[number - 1], "none of that shape")
        name, given, made = last[0]
        found[number] = Block(module, name, linear[name], given.shape[-1], state.shape[-1])
        calls[number] = (args, kwargs, state, made)
        last.clear()

    watched = [modules[names[i - 1]] for i in numbers]
    of_blocks = [m for name, m in linear.items() if any(name.startswith(f"{names[i - 1]}.") for i in numbers)]
    with reporting([*watched, *of_blocks], report):
        source.model(mx.array([source.encode(PROBE)], dtype=mx.int32))
    for number, block in found.items():
        if not _adds_last(block, *calls[number]):
            _refuse(names[number - 1], block.name)
    return found


def _refuse(name: str, got: str) -> None:
    rule = f"{name} must add the output of its last linear layer to the state"
    fail("replace_layers", rule, got, "Such models are not supported.")


def _adds_last(block: Block, args: tuple[Any, ...], kwargs: dict[str, Any], state: mx.array, made: mx.array) -> bool:
    """Whether the decoder layer returns its state less ``made`` if its last linear layer returns zero."""
    parameters: Any = block.linear.parameters()
    nothing: Any = {key: mx.zeros_like(value) for key, value in parameters.items()}
    if "weight" in nothing and isinstance(block.linear, nn.QuantizedLinear):
        nothing["weight"] = parameters["weight"]  # packed; scales of zero are enough
    try:
        block.linear.update(nothing)
        without = first_array(block.module(*args, **kwargs))
        assert without is not None
        mx.eval(without)
    finally:
        block.linear.update(parameters)
    error = mx.max(mx.abs((without + made - state).astype(mx.float32))).item()
    bound = 8 * dtypes.eps(state.dtype) * mx.max(mx.abs(state.astype(mx.float32)))
    return bool(error <= (bound + 1e-3 * mx.max(mx.abs(made.astype(mx.float32)))).item())  # type: ignore[operator]


@dataclass
class Spans:
    """Statistics of some spans of one length.

    Attributes:
        skip: Number of decoder layers in a span.
        blocks: By its number the decoder layer before the span.
        statistics: In the order of ``blocks``: inputs a, targets h_{i+s} - h_i, weights 1 / mean(h_{i+s}^2).
        tokens: Number of tokens.
    """

    skip: int
    blocks: dict[int, Block]
    statistics: list[ReadoutStatistics]
    tokens: int = 0
    _spectra: dict[int, "_Spectrum"] = field(default_factory=dict, repr=False)

    @classmethod
    def empty(cls, blocks: dict[int, Block], skip: int) -> "Spans":
        """Statistics without rows."""
        return cls(skip, blocks, [ReadoutStatistics(b.dims, b.outputs, "bias" in b.linear) for b in blocks.values()])

    def fit(self, start: int, l2: float | None, with_change: bool = True) -> Fit:
        """Replace the span after decoder layer ``start``; ``l2`` None is chosen by GCV, infinity drops the span.

        Without ``with_change`` the fit has its errors only.
        """
        stats, block = self.statistics[list(self.blocks).index(start)], self.blocks[start]
        m = stats.moments
        count, x_mean, y_mean, xx, xy, yy = (np.array(part) for part in m)
        # Weights of mean 1, so that their sum counts tokens, which degrees of freedom are measured by.
        scale = self.tokens / float(count)
        xx, xy, yy = scale * xx, scale * xy, scale * yy
        # Relative errors: |dh|^2 / |h|^2 = w |dh|^2 / outputs for w = 1 / mean(h^2), whose mean was scaled to 1.
        unit = block.outputs * scale * self.tokens
        dropped = _root(float(yy.sum() + self.tokens * y_mean @ y_mean) / unit)
        if l2 is not None and l2 == float("inf"):
            change = np.zeros((block.outputs, block.dims)) if with_change else _NOTHING
            return Fit(start, l2, change, np.zeros(block.outputs) if stats.bias else None, dropped, dropped, dropped)
        if with_change or start not in self._spectra:
            squared, v = np.linalg.eigh(xx)  # NumPy's BLAS is fast on every platform
            rotated = v.T @ xy
            self._spectra[start] = _Spectrum(np.maximum(squared, 0.0), np.square(rotated).sum(axis=1), yy.sum())
        spectrum = self._spectra[start]
        l2, gcv, left = spectrum.penalty(self.tokens, l2, stats.bias)
        change, shift = _NOTHING, None
        if with_change:
            change = (v @ (spectrum.inverse(l2)[:, None] * rotated)).T
            shift = y_mean - change @ x_mean if stats.bias else None
        return Fit(start, l2, change, shift, dropped, _root(left / unit), _root(gcv * self.tokens / unit))


class _Spectrum:
    """What the errors of all penalties follow from: eigenvalues s_j^2 of S_xx, and sum_t (v_j . S_xy,t)^2.

    All targets t share a penalty, and so the degrees of freedom: their sum is one target with the squares ``yy``.
    """

    def __init__(self, squared: np.ndarray, rotated: np.ndarray, yy: float) -> None:
        self.squared, self.rotated, self.yy = squared, rotated, float(yy)
        self.kept = squared > len(squared) * dtypes.eps(mx.float64) * squared[-1]

    def inverse(self, l2: float) -> np.ndarray:
        """1 / (s_j^2 + l2), without a penalty of the eigenvalues that count."""
        return self.kept / np.where(self.kept, self.squared, 1.0) if l2 == 0 else 1 / (self.squared + l2)

    def penalty(self, tokens: int, l2: float | None, bias: bool) -> tuple[float, float, float]:
        """The penalty, chosen by GCV if it is None, the GCV score, and the squares of the residuals of all targets."""
        with on_cpu():
            total, yy = mx.array(float(tokens), mx.float64), mx.array([self.yy], mx.float64)
            rotated = mx.array(np.sqrt(self.rotated)[:, None], mx.float64)
            s, kept = (mx.array(part.astype(np.float64), mx.float64) for part in (np.sqrt(self.squared), self.kept))
            f = RightFactor(mx.zeros((0, 0), mx.float64), s, kept, mx.ones((1, 1), mx.float64))

            def score(penalty: float) -> tuple[float, float]:
                squares, free = squares_and_degrees(total, yy, rotated, f, penalty, bias)
                return float(gcv_score(total, squares, free).item()), float(squares.item())  # type: ignore[arg-type]

            tried = [float(self.squared[-1]) * step for step in GRID] if l2 is None else [float(l2)]
            scores = {penalty: score(penalty) for penalty in tried}
            best = _smallest(scores)
            if l2 is None:
                scores.update({best * step: score(best * step) for step in FINER})
                best = _smallest(scores)
            return best, *scores[best]


_NOTHING = np.zeros((0, 0))


def _smallest(scores: dict[float, tuple[float, float]]) -> float:
    """The penalty with the smallest score; one whose score is not a number only if there is no other."""
    return min(scores, key=lambda penalty: (scores[penalty][0] != scores[penalty][0], scores[penalty][0]))


def _root(x: float) -> float:
    return float(max(x, 0.0) ** 0.5) if x == x else float("nan")


def read_spans(reader: TextReader, encoded: list[list[int]], spans: Spans, pending: dict[int, Pending]) -> None:
    """Send a batch through the model and take the rows of its tokens for every span."""
    tokens, lengths = pad(encoded)
    rows = rows_of_tokens(tokens, lengths)
    names = block_names(reader.source.model)
    modules = dict(reader.source.model.named_modules())
    number_of = {id(modules[name]): i for i, name in enumerate(names, 1)}
    start_of = {id(block.linear): i for i, block in spans.blocks.items()}
    read: dict[int, mx.array] = {}
    states: dict[int, mx.array] = {}

    def flat(state: mx.array | None) -> mx.array:
        assert state is not None
        return state.reshape(-1, state.shape[-1])[rows]

    def report(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if id(module) in start_of:
            read[start_of[id(module)]] = flat(first_array(args))
            return
        number = number_of[id(module)]
        states[number] = flat(first_array(result)).astype(mx.float32)
        start = number - spans.skip
        if start in spans.blocks:
            after, before = states[number], states.pop(start)
            size = mx.mean(after * after, axis=-1)
            weights = mx.where(size > 0, 1 / mx.where(size > 0, size, 1.0), 0.0)
            pending[start].add(read.pop(start), after - before, weights)

    first, last = min(spans.blocks), max(spans.blocks) + spans.skip
    watched = [modules[name] for name in names[first - 1 : last]]
    with reporting([*watched, *(block.linear for block in spans.blocks.values())], report):
        reader.source.model(tokens)
