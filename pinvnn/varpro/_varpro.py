"""Variable projection: the public function."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_args

import mlx.core as mx
import numpy as np

from .._mlx import dtypes, fail
from .._types import ArrayLike, Penalty
from . import _arguments as arguments
from ._basis import Basis
from ._problem import Objective, SeparableProblem
from ._result import VarProResult, summarise
from ._trust_region import Outcome, Step, TrustRegionSearch
from ._types import BasisFunction, Bounds, Jacobian, Tree, WeightsAre


class VarProStep(NamedTuple):
    """What the callback of :func:`varpro` is given after each trial step.

    Attributes:
        step: 1, 2, ...
        objective: the objective after the step: weighted sum of squared residuals plus penalty.
        trial: the objective at the trial point; inf where the basis is not finite.
        accepted: whether the trial point was taken.
        length: length of the trial step relative to alpha, in the scaled norm of the trust region.
        alpha: the nonlinear parameters after the step.
    """

    step: int
    objective: float
    trial: float
    accepted: bool
    length: float
    alpha: Tree


def varpro(
    basis: BasisFunction,
    alpha: Tree | None,
    y: mx.array,
    *,
    weights: ArrayLike | None = None,
    l2: Penalty = 0.0,
    weights_are: WeightsAre = "precisions",
    bounds: Bounds = (None, None),
    linear_bounds: Bounds | None = None,
    starts: Iterable[Tree] | None = None,
    inputs: tuple[Any, ...] = (),
    jacobian: Jacobian = "full",
    tol: float | None = None,
    max_steps: int = 200,
    callback: Callable[[VarProStep], object] | None = None,
) -> VarProResult:
    r"""Fit a model that is linear in some of its parameters: ``y = basis(alpha) @ linear``.

    .. math::

        \min_{\alpha, C} \sum_i w_i \| y_i - (\Phi(\alpha) C)_i \|^2 + \sum l_2 C^2

    The linear parameters are solved for exactly inside, so that only ``alpha`` is searched, and needs a starting value.
    The search is Levenberg and Marquardt's in a scaled trust region, on the projected residual and its exact Jacobian,
    with a secant term for large residuals.

    Everything is computed in float64 on the CPU if ``y`` or ``alpha`` is float64; otherwise the basis is evaluated in
    float32 on the default device. MLX's own ``exp``, ``sin`` and ``cos`` are right to 1e-6 only in float64 and cap a
    fit at that: a float64 basis takes those of ``pinvnn.varpro``.

    Args:
        basis: ``basis(alpha, *inputs)`` returns the matrix ``(m, n)``; any differentiable MLX function or
            ``nn.Module``.
        alpha: starting values, an array or any tree of arrays. None for a module whose own trainable parameters are
            alpha: it is called as ``basis(*inputs)``, and keeps its parameters (``basis.update(result.alpha)`` sets the
            fitted ones).
        y: data ``(m,)``, or ``(m, k)`` for k right-hand sides that share alpha.
        weights: non-negative, ``(m,)``. A row of weight 0 takes no part, whatever it holds.
        weights_are: what the weights mean for the standard errors. ``"precisions"``: 1 / variance up to a factor,
            which is estimated from the residuals. ``"inverse variances"``: 1 / variance, and the noise is known.
            ``"counts"``: weight 2 is the row given twice.
        l2: ridge penalty of the linear parameters, broadcast against them as in :func:`pinvnn.ridge`.
        bounds: ``(lower, upper)`` on alpha: None, a number, or a tree like alpha, from which leaves may be missing.
            Equal bounds hold a parameter.
        linear_bounds: ``(lower, upper)`` on the linear parameters, kept at every step: None, numbers, or arrays that
            broadcast against them; ``(0, None)`` for non-negative ones.
        starts: further starting values, trees like alpha (rows, where alpha is one array). Each is fitted to the end,
            and the fit with the least objective is returned.
        inputs: further arguments of the basis, constant.
        jacobian: ``"full"`` (Golub and Pereyra) or ``"kaufman"`` (without the second term: less work, the same
            gradient, often more steps).
        tol: relative tolerance of the step in alpha and of the cosine between residual and derivatives. Default:
            eps^(2/3).
        max_steps: trial steps at most.
        callback: called with a :class:`VarProStep` after each trial step; a true answer stops the fit.

    Returns:
        A :class:`VarProResult`. Look at ``converged`` and ``reason``.

    Raises:
        ValueError: shapes that do not fit, data that are not finite, alpha outside its bounds, a basis that is zero,
        not finite or without
            columns at the start, fewer data than parameters.
        TypeError: arguments that are not real arrays.

    Example:
        >>> import mlx.core as mx
        >>> from pinvnn.varpro import exp, varpro
        >>> with mx.stream(mx.cpu):
        ...     t = mx.arange(20).astype(mx.float64) / 10
        ...     y = 3 * exp(-2 * t) + 1
        >>> def decay(rate):
        ...     return mx.stack([exp(-rate * t), mx.ones_like(t)], axis=1)
        >>> fit = varpro(decay, mx.array(1.0), y)
        >>> print(round(fit.alpha.item(), 9), fit.converged)
        2.0 True

    References:
        Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
        separate", SIAM J. Numer. Anal. 10 (1973), doi 10.1137/0710036. Kaufman, BIT 15 (1975), doi 10.1007/BF01932995.
        O'Leary and Rust, "Variable projection for nonlinear least squares problems", Comput. Optim. Appl. 54 (2013),
        doi 10.1007/s10589-012-9492-9.
    """
    if jacobian not in ("full", "kaufman"):
        fail(arguments.NAME, "jacobian must be 'full' or 'kaufman'", f"{jacobian!r}", "Use 'full'.")
    if weights_are not in get_args(WeightsAre):
        rule = "weights_are must be 'counts', 'precisions' or 'inverse variances'"
        fail(arguments.NAME, rule, f"{weights_are!r}", "Use 'precisions'.")
    if max_steps < 0 or (tol is not None and not tol > 0):
        fail(arguments.NAME, "max_steps must be >= 0 and tol > 0", f"{max_steps} and {tol}", "Leave them out.")
    separable = Basis(basis, alpha, inputs, arguments.working_dtype(basis, alpha, y))
    problem = SeparableProblem(separable, Objective(y, weights, l2, linear_bounds, jacobian == "full"))
    lower, upper = arguments.box(bounds, separable)
    precision = dtypes.eps(separable.dtype)

    def report(step: Step) -> object:
        if callback is None:
            return None
        objective, trial = step.objective * problem.unit**2, step.trial * problem.unit**2
        return callback(
            VarProStep(step.step, objective, trial, step.accepted, step.length, separable.tree(step.point.x))
        )

    def search(x: np.ndarray) -> Outcome:
        return TrustRegionSearch(
            problem,
            problem.linearise,
            lower,
            upper,
            scale=float(np.linalg.norm(problem.b)),
            eps=precision,
            tol=precision ** (2 / 3) if tol is None else tol,
        ).run(problem.start(x, lower, upper), max_steps, report)

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # A trial point may be anywhere.
        outcome = best_of(search, arguments.starting_points(starts, separable, lower, upper))
        return summarise(problem, outcome, lower < upper, weights_are)


def best_of(search: Callable[[np.ndarray], Outcome], points: list[np.ndarray]) -> Outcome:
    """The search that ends with the least objective; a point where none can start is passed over if another can."""
    found: list[Outcome] = []
    refused: list[ValueError] = []
    for x in points:
        try:
            found.append(search(x))
        except ValueError as error:
            if len(points) == 1:
                raise
            refused.append(error)
        if found and found[-1].reason.startswith("stopped"):
            break
    if not found:
        raise refused[0]
    best = min(found, key=lambda outcome: float(outcome.point.f @ outcome.point.f))
    if len(points) == 1:
        return best
    return best._replace(reason=f"{best.reason}; the best of {len(points)} starts")
