"""Tests of derivatives and transforms for any differentiable MLX function. Independent of the rest of pinvnn."""

from ._gradcheck import gradcheck as gradcheck
from ._matrices import random_matrix as random_matrix
