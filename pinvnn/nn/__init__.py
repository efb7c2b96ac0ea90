"""Closed-form readouts as layers of ``mlx.nn``."""

from ._pseudo_inverse import PseudoInverse as PseudoInverse
from ._readout import LeastSquaresReadout as LeastSquaresReadout
