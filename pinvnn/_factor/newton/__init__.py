"""Multinomial logistic regression by Newton's method: constants in float64, for NumPy and for MLX graphs alike.

With A the rows (m x N, a column of ones among them where there is an intercept), V = A T the logits, P = softmax(V),
D = diag(w) and Y the labels as one-hot rows,

    F(T) = sum_i w_i (logsumexp(v_i) - <y_i, v_i>) + 1/2 sum l2 o T o T
    g    = A^T D (P - Y) + l2 o T
    H U  = A^T D S(A U) + l2 o U,    S(X) = P o X - P o rowsum(P o X).

Adding one number to a feature's weights of all classes changes nothing but the penalty. Where a feature has none
("free", the intercept above all), its weights sum to 0: H is singular in that direction, and what is added to it there
changes no step.

Here ``xp`` is always :class:`NumPy` or :class:`Graph`: whose arrays the arguments are. Files, from the ground up:
arrays, objective, hessian (factored), basis (of the features), preconditioners, conjugate_gradients, existence (of a
minimizer), working (cheap products for large problems), quasi_newton (a start for them), certificate (whether more is
needed), large (one of them), minimizer, refits (without a row), path, solve (H^-1 b).
"""

from .arrays import Graph as Graph
from .arrays import NumPy as NumPy
from .basis import features_of as features_of
from .basis import penalty_of_all as penalty_of_all
from .hessian import curvature as curvature
from .large import COARSE as COARSE
from .large import FINE as FINE
from .large import Accuracy as Accuracy
from .minimizer import minimize as minimize
from .objective import residual_and_loss as residual_and_loss
from .path import Path as Path
from .refits import refit as refit
from .solve import solve_hessian as solve_hessian
