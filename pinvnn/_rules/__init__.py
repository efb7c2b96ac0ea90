"""Derivative rules: products, functions of the Gram matrix, pinv, least squares, ridge, rows, envelope.

What the layers above (nn, streaming, varpro, heads) may use of this room is imported here, and only here.
"""

from . import envelope as envelope
from .products import gram as gram
from .products import product as product
from .ridge import gram_normal as gram_normal
from .rows import attach_rows as attach_rows
from .rows import inverse_of as inverse_of
from .rows import root as root
from .rows import solution_of as solution_of
from .spectral import inverse as inverse
