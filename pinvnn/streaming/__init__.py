"""Linear readouts from streams of rows: rows are added in pieces, removed again, or spread over many machines."""

from ._distributed import reduce_moments as reduce_moments
from ._moments import Moments as Moments
from ._moments import merge_moments as merge_moments
from ._moments import moments as moments
from ._recursive import RecursiveLeastSquares as RecursiveLeastSquares
from ._solve import gcv_moments as gcv_moments
from ._solve import solve_moments as solve_moments
from ._statistics import ReadoutStatistics as ReadoutStatistics
