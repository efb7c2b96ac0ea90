import jax  # pyright: ignore[reportMissingImports]
import lineax as lx  # pyright: ignore[reportMissingImports]

from .base import Unsupported
from .jax_ import Peer as JaxPeer


class Peer(JaxPeer):
    """lineax's own choice of solver for a matrix of full rank: LU if square, else QR."""

    def versions(self):
        return f"lineax {lx.__version__}, {super().versions()}"

    def lstsq(self, case):
        solver = lx.AutoLinearSolver(well_posed=None)

        def solve(a, b):
            operator = lx.MatrixLinearOperator(a)
            return jax.vmap(lambda c: lx.linear_solve(operator, c, solver).value, in_axes=1, out_axes=1)(b)

        return self._batched(case, solve)

    def prepare(self, case, mode, data):
        if case.op != "lstsq":
            raise Unsupported(f"no {case.op}")
        return super().prepare(case, mode, data)
