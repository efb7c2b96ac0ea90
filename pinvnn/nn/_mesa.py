"""A sequence layer that solves a ridge regression at every position."""

import math
from collections.abc import MutableSequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .._causal import causal_ridge, causal_ridge_step
from .._mlx import checks
from .._types import CausalState


class MesaLayer(nn.Module):
    r"""Causal self-attention whose memory is a least-squares fit: the mesa layer, solved exactly.

    In each head the layer fits a linear map from keys to values, by ridge regression on all positions up to the current
    one, and applies it to the query:

    .. math::
        o_t = W_t q_t, \qquad W_t = \arg\min_W \sum_{i \le t} \Big(\prod_{i < j \le t} \gamma_j\Big)
        |v_i - W k_i|^2 + l_2 |W|^2

    Linear attention is the same with the sum :math:`\sum v_i k_i^T` in place of the fit. Keys and queries are
    normalised to length 1, so that ``l2`` means the same for every input; the decay is a gate
    :math:`\gamma_t = \sigma(w x_t + c)` for each head. The heads' outputs are concatenated and projected. Solution and
    derivative are exact and computed in float64 (:func:`pinvnn.causal_ridge`): no iteration can fail in half precision.

    Cost beside softmax attention, for T positions and h heads of n = dims / h features:

    ==============  =======================================  ====================
    ..              MesaLayer                                softmax attention
    ==============  =======================================  ====================
    time            h T n^3 / 3 multiplications, on the CPU  h T^2 n
    state decoding  2 h n^2 numbers (float64)                2 h T n
    time decoding   h n^3 / 3 a position                     2 h T n a position
    ==============  =======================================  ====================

    so that by operations they break even near T = n^2 / 3: heads of 16 to 64 features are what the layer is for.

    Args:
        dims (int): Number of features of the input and the output.
        num_heads (int): Number of heads; a divisor of ``dims``.
        l2 (float, optional): Positive penalty, at the start if it is learned. Default: ``1.0``.
        learn_l2 (bool, optional): Train a penalty for each head by its logarithm, ``log_l2``. Default: ``True``.
        forget (bool, optional): Whether there is a decay gate. It starts at half-lives from 16 positions in the first
            head to 1024 in the last. Default: ``True``.
        bias (bool, optional): Whether the projections have a bias. Default: ``False``.

    Shape:
        - x: ``(batch, T, dims)``, or any other leading dimensions.
        - Output: as ``x``.
        - cache: two entries ``(batch, num_heads, n, n)``, sums of k k^T and k v^T: the bits of float64 numbers as
          uint64, which MLX can save and, on a GPU, take apart.

    Raises:
        ValueError: ``num_heads`` does not divide ``dims``, ``l2`` is not positive, or ``x`` has other features.
        TypeError: ``x`` is no array.

    Examples:
        >>> import mlx.core as mx
        >>> from pinvnn.nn import MesaLayer
        >>> layer = MesaLayer(dims=32, num_heads=4)
        >>> x = mx.random.normal((2, 10, 32))
        >>> whole = layer(x)
        >>> cache = [None, None]
        >>> prompt = layer(x[:, :9], cache)  # decoding: a prompt, then one position
        >>> last = layer(x[:, 9:], cache)
        >>> mx.allclose(last, whole[:, 9:], atol=1e-5).item()
        True

    References:
        J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858;
        J. von Oswald et al., MesaNet: sequence modeling by locally optimal test-time training, arXiv 2506.05233.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        l2: float = 1.0,
        learn_l2: bool = True,
        forget: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        name = type(self).__name__
        for label, value in (("dims", dims), ("num_heads", num_heads)):
            if not isinstance(value, int) or value < 1:
                checks.fail(name, f"{label} must be a positive integer", f"{value!r}", "Pass a size.")
        if dims % num_heads:
            checks.fail(name, "num_heads must divide dims", f"{num_heads} and {dims}", "Change one of them.")
        if not 0 < l2 < float("inf"):
            checks.fail(name, "l2 must be positive and finite", f"{l2}", "Start from 1.")
        self.num_heads = num_heads
        self.q_proj: nn.Linear = nn.Linear(dims, dims, bias=bias)
        self.k_proj: nn.Linear = nn.Linear(dims, dims, bias=bias)
        self.v_proj: nn.Linear = nn.Linear(dims, dims, bias=bias)
        self.o_proj: nn.Linear = nn.Linear(dims, dims, bias=bias)
        if learn_l2:
            self.log_l2: mx.array = mx.full((num_heads,), math.log(l2))
        else:
            self._l2 = float(l2)
        if forget:
            self.decay_proj: nn.Linear = nn.Linear(dims, num_heads)
            half_lives = [2 ** (4 + 6 * i / max(num_heads - 1, 1)) for i in range(num_heads)]
            kept = [0.5 ** (1 / half_life) for half_life in half_lives]
            self.decay_proj.bias = mx.array([math.log(g / (1 - g)) for g in kept])

    def _extra_repr(self) -> str:
        dims = self.q_proj.weight.shape[0]
        return f"dims={dims}, num_heads={self.num_heads}, learn_l2={'log_l2' in self}, forget={'decay_proj' in self}"

    @property
    def l2(self) -> mx.array | float:
        """The penalty, ``(num_heads,)`` in float32 if it is learned, else a number."""
        return mx.exp(self.log_l2.astype(mx.float32)) if "log_l2" in self else self._l2

    def __call__(self, x: mx.array, cache: MutableSequence[Any] | Any = None) -> mx.array:
        """Attend to ``x`` (..., T, dims) and, with a cache, to what it has seen.

        Args:
            x: Input.
            cache: What keeps the state between calls, as the recurrent layers of mlx-lm take it: its
                ``ArraysCache(size=2)``, or a list ``[None, None]``. The call updates it.

        Returns:
            ``(..., T, dims)``.
        """
        x = checks.array(type(self).__name__, "x", x, 2)
        dims = self.q_proj.weight.shape[1]
        if x.shape[-1] != dims:
            name = type(self).__name__
            checks.fail(name, f"x must have {dims} features", f"shape {x.shape}", "The last dimension is that.")
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        decay = None
        if "decay_proj" in self:
            # In float32: in bfloat16 no decay lies between 0.9961 and 1, a half-life of 178 positions.
            decay = mx.sigmoid(self.decay_proj(x).astype(mx.float32)).swapaxes(-1, -2)
        l2 = self.l2
        l2 = l2[:, None, None] if isinstance(l2, mx.array) else l2
        q, k = _unit(q), _unit(k)
        if cache is None:
            out = causal_ridge(q, k, v, l2, decay=decay)
        else:
            out, state = causal_ridge_step(q, k, v, l2, _read(cache), decay=decay)
            cache[0], cache[1] = (part.view(mx.uint64, stream=mx.cpu) for part in state)
        return self.o_proj(out.astype(v.dtype).swapaxes(-2, -3).flatten(-2))

    def _heads(self, x: mx.array) -> mx.array:
        """(..., T, dims) to (..., heads, T, n)."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1).swapaxes(-2, -3)


def _read(cache: Any) -> CausalState | None:
    if cache[0] is None:
        return None
    return CausalState(*(cache[i].view(mx.float64, stream=mx.cpu) for i in (0, 1)))


def _unit(x: mx.array) -> mx.array:
    """``x`` of length 1, in float32 at least; about 0 stays there."""
    x = x.astype(mx.float32) if x.dtype in (mx.float16, mx.bfloat16) else x
    return x * mx.rsqrt(mx.sum(x * x, axis=-1, keepdims=True) + 1e-6)
