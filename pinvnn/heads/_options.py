"""The options of a run, in one place for ``atlas``, ``fit_head`` and the command."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .._lm import Pooling, Task, check_batch_size, check_pooling, check_task
from .._mlx import fail

#: What is fitted: least squares with a penalty, or cross-entropy with one.
ReadoutKind: TypeAlias = Literal["ridge", "logistic"]

L2_GRID: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-2, 7))


@dataclass
class Options:
    """The keyword arguments of :func:`atlas` and :func:`fit_head`, which describes them, with their defaults.

    Raises:
        ValueError: A penalty, the pooling, the task, the readout or the batch size is not what it must be.
    """

    layers: Sequence[int] | None = None
    l2: Sequence[float] | float = L2_GRID
    pooling: Pooling = "last"
    task: Task = "auto"
    batch_size: int = 16
    max_length: int = 2048
    save_every: float = 60.0
    restart: bool = False
    progress: bool = False
    readout: ReadoutKind = "ridge"

    def __post_init__(self) -> None:
        self.grid = check_grid(self.l2)
        self.pooling = check_pooling(self.pooling)
        check_batch_size("heads", self.batch_size)
        check_task(self.task)
        if not self.save_every >= 0:
            fail("heads", "save_every must be a number of seconds, 0 or larger", self.save_every, "Pass 60, say.")
        if self.readout not in ("ridge", "logistic"):
            fail("heads", 'readout must be "ridge" or "logistic"', repr(self.readout), 'Take "ridge".')
        if self.readout == "logistic" and min(self.grid) == 0:
            fail("heads", "l2 of a logistic readout must be positive", self.l2, "Classes may be separable without one.")


def check_grid(l2: Sequence[float] | float) -> list[float]:
    """The penalties as a list of numbers.

    Raises:
        ValueError: There is none, or one is negative or not finite.
    """
    values = [float(value) for value in (l2 if isinstance(l2, Sequence) else [l2])]
    if not values or not all(0 <= value < float("inf") for value in values):
        fail("heads", "l2 must be one or more finite numbers, 0 or larger", l2, "Pass [0.1, 1.0, 10.0], say.")
    return values
