"""What the library needs of MLX: streams, dtypes, checked arguments, row blocks, attached derivatives.

What the layers above (nn, streaming, varpro, heads) may use of this room is imported here, and only here.
"""

from . import checks as checks
from . import dtypes as dtypes
from .attach import attach_like as attach_like
from .blocks import cross as cross
from .centred import Centred as Centred
from .centred import Matrix as Matrix
from .centred import each as each
from .centred import in_float64 as in_float64
from .centred import rounded as rounded
from .checks import array as array
from .checks import fail as fail
from .eager import by_row_blocks as by_row_blocks
from .eager import evaluated_crosses as evaluated_crosses
from .eager import visible as visible
from .linear_problem import without_unweighted as without_unweighted
from .matmul import addmm as addmm
from .matmul import matmul as matmul
from .matmul import on_gpu as on_gpu
from .numbers import refuse_inexact_integers as refuse_inexact_integers
from .numbers import size as size
from .numbers import weights_array as weights_array
from .place import astype as astype
from .place import large as large
from .place import on_cpu as on_cpu
from .shapes import diagonal as diagonal
from .shapes import same_batch as same_batch
