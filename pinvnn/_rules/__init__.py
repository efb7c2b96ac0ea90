"""Derivative rules: products, functions of the Gram matrix, pinv, least squares, ridge, rows, envelope.

What the layers above (nn, streaming, varpro, heads) may use of this room is imported here, and only here.
"""

from . import envelope as envelope
from . import logistic as logistic
from .centring import divisor as divisor
from .centring import weighted_mean as weighted_mean
from .centring import with_derivative_of_deviations as with_derivative_of_deviations
from .decayed import fading as fading
from .logdet import logdet as logdet
from .products import gram_handle as gram_handle
from .products import product as product
from .residuals import attach_residual as attach_residual
from .ridge import gram_normal as gram_normal
from .rows import Kind as Kind
from .rows import attach_residuals_and_leverages as attach_residuals_and_leverages
from .rows import attach_rest as attach_rest
from .rows import inverse_of as inverse_of
from .rows import inverse_root as inverse_root
from .rows import solution_of as solution_of
from .spectral import inverse as inverse
from .validation import free_degrees as free_degrees
from .validation import gcv_score as gcv_score
from .validation import kept_shrinkage as kept_shrinkage
from .validation import squares_and_degrees as squares_and_degrees
from .validation import with_value as with_value
