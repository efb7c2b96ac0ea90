"""The pseudo-inverse as a layer."""

import mlx.core as mx
import mlx.nn as nn

from .._mlx import checks
from .._pinv import pinv
from .._types import ArrayLike, Tolerance


class PseudoInverse(nn.Module):
    r"""The Moore-Penrose pseudo-inverse of its input, differentiable at every order. See :func:`pinvnn.pinv`.

    Args:
        rtol (float or array, optional): Relative cutoff of the singular values. Default: that of :func:`pinvnn.pinv`.
        hermitian (bool, optional): Treat the input as Hermitian. Default: ``False``.

    Shape:
        - Input: ``(..., m, n)``, of a dtype that :func:`pinvnn.pinv` takes.
        - Output: ``(..., n, m)``, of the same dtype.

    Raises:
        ValueError: If ``rtol`` is negative, or an input has less than two dimensions.
        TypeError: If ``rtol`` or an input is not array-like.

    Examples:
        >>> import mlx.core as mx
        >>> from pinvnn.nn import PseudoInverse
        >>> PseudoInverse()(mx.array([[1.0], [2.0]]))
        array([[0.2, 0.4]], dtype=float32)
    """

    hermitian: bool

    def __init__(self, rtol: Tolerance = None, hermitian: bool = False) -> None:
        super().__init__()
        # An array would be a parameter of the module, were it not for the underscore.
        self._rtol = checks.tolerance("PseudoInverse", "rtol", rtol)
        self.hermitian = bool(hermitian)

    def _extra_repr(self) -> str:
        return f"rtol={self._rtol}, hermitian={self.hermitian}"

    def __call__(self, a: ArrayLike) -> mx.array:
        """The pseudo-inverse ``(..., n, m)`` of ``a`` (..., m, n)."""
        return pinv(a, rtol=self._rtol, hermitian=self.hermitian)
