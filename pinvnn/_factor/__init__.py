"""Factorizations as constants: rank decision, singular vectors, Cholesky, and the values read off them.

What the layers above (nn, streaming, varpro, heads) may use of this room is imported here, and only here.
"""

from . import newton as newton
from .active_set import bounded_free_set as bounded_free_set
from .full_rank import full_rank as full_rank
from .rank import cutoff as cutoff
from .rank import default_rtol as default_rtol
from .rank import keep as keep
from .ridge_inverse import dual_by_cholesky as dual_by_cholesky
from .ridge_inverse import in_range as in_range
from .ridge_inverse import inverse_of_ridge as inverse_of_ridge
from .ridge_inverse import penalty_matrix as penalty_matrix
from .ridge_values import RidgeInverse as RidgeInverse
from .ridge_values import SolutionHints as SolutionHints
from .ridge_values import solution as solution
from .right_factor import RightFactor as RightFactor
from .right_factor import right_factor as right_factor
from .right_factor import right_factor_of_gram as right_factor_of_gram
from .values import full_rank_solve_value as full_rank_solve_value
from .values import solve_value as solve_value
