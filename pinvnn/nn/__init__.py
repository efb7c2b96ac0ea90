"""Closed-form readouts as layers of ``mlx.nn``."""

from ._classifier import RidgeClassifier as RidgeClassifier
from ._logistic import LogisticReadout as LogisticReadout
from ._mesa import MesaLayer as MesaLayer
from ._pseudo_inverse import PseudoInverse as PseudoInverse
from ._readout import LeastSquaresReadout as LeastSquaresReadout
from ._uncertainty import Uncertainty as Uncertainty
