"""Tests of derivatives and transforms for any differentiable MLX function. Independent of the rest of pinvnn."""

from . import strategies as strategies
from ._adjoint import adjoint_check as adjoint_check
from ._gradcheck import gradcheck as gradcheck
from ._matrices import random_matrix as random_matrix
from ._transform_check import transform_check as transform_check
