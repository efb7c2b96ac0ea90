"""What is measured: operations on shapes, in two dtypes and two modes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

OPS = ("pinv", "lstsq", "ridge", "readout")
DTYPES = ("float32", "float64")
MODES = ("forward", "backward")  # backward: value and gradients in one call
MODE_NAMES = {"forward": "forward", "backward": "forward + backward"}
CONDITIONS = (10.0, 1e4)
TARGETS = 8  # columns of b
INPUTS = 32  # what a readout's features are made from

_TALL = [(1024, 16, 8), (64, 64, 32), (1, 256, 64), (1, 10_000, 64), (1, 100_000, 64), (1, 2048, 256), (1, 4096, 128),
         (1, 2000, 1000), (1, 1_000_000, 64)]
SHAPES = [*_TALL, (1, 512, 512), *((batch, n, m) for batch, m, n in _TALL)]  # a short run has the first ones
READOUT_SHAPES = [(1, m, 64) for m in (256, 2048, 10_000, 100_000)]
QUICK_SHAPES = [(1, 24, 6), (3, 4, 6)]
LARGEST = {"float32": (64_000_000, 64_000_000), "float64": (6_400_000, 1_000_000)}  # elements if tall, if wide


@dataclass(frozen=True)
class Case:
    """One operation on one shape in one dtype: ``batch`` matrices ``(m, n)`` and right-hand sides ``(m, k)``."""

    op: str
    batch: int
    m: int
    n: int
    dtype: str
    k: int = TARGETS

    @property
    def shape(self):
        return shape_name((self.batch, self.m, self.n))

    @property
    def modes(self):
        return MODES[1:] if self.op == "readout" else MODES

    @property
    def conditions(self):
        """Those of the matrix; a readout's features are as its network makes them."""
        return CONDITIONS[:1] if self.op == "readout" else CONDITIONS

    @property
    def elongated(self):
        return self.m >= 4 * self.n or self.n >= 4 * self.m

    @property
    def work(self):
        """In proportion to the floating point operations."""
        return self.batch * self.m * self.n * min(self.m, self.n)

    def asdict(self):
        return asdict(self)

    def __str__(self):
        return f"{self.op} {self.shape} {self.dtype}"


def shape_name(shape):
    batch, m, n = shape
    return f"{m}x{n}" if batch == 1 else f"{batch}x{m}x{n}"


def select(ops=None, shapes=None, dtypes=None, quick=False):
    """The cases of a run, shape by shape; an argument that is None selects everything."""
    for dtype in DTYPES[:1] if quick and not dtypes else DTYPES:
        for shape in QUICK_SHAPES if quick and not shapes else SHAPES:
            for op in OPS:
                readout_shapes = QUICK_SHAPES[:1] if quick else READOUT_SHAPES
                case = Case(op, *shape, dtype)
                if (
                    (op in ops if ops else True)
                    and (case.shape in shapes if shapes else True)
                    and (dtype in dtypes if dtypes else True)
                    and (op != "readout" or shape in readout_shapes)
                    and (shapes or case.batch * case.m * case.n <= LARGEST[dtype][case.m < case.n])
                ):
                    yield case
