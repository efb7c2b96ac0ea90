"""Rows on their way into statistics."""

import mlx.core as mx

from .._lm import Clock
from ..streaming import ReadoutStatistics


class Pending:
    """Rows that are about to be added to statistics. Merging costs as much as D rows do, so D of them are gathered.

    Args:
        name: Of the layer, for messages.
        stats: Where the rows go.
        clock: Where the time is counted.
    """

    def __init__(self, name: str, stats: ReadoutStatistics, clock: Clock) -> None:
        self.name, self.stats, self.clock = name, stats, clock
        self._rows: list[tuple[mx.array, ...]] = []

    def add(self, *rows: mx.array) -> None:
        """Evaluate inputs ``(rows, D)``, targets ``(rows, k)`` and weights ``(rows,)``, and take them in.

        Without targets there are none; without weights these are 1.
        """
        with self.clock.measure("forward"):
            mx.eval(rows)
        self._rows.append(rows)
        if sum(len(part[0]) for part in self._rows) >= self.stats.input_dims:
            self.flush()

    def flush(self) -> None:
        """Add to the statistics what was taken in.

        Raises:
            ValueError: A row is not finite.
        """
        if not self._rows:
            return
        with self.clock.measure("statistics"):
            x, *rest = (mx.concatenate(list(parts)) for parts in zip(*self._rows, strict=True))
            self._rows.clear()
            try:
                self.stats.update(x, *(rest or [mx.zeros((x.shape[0], 0))]))
            except ValueError as error:
                rule = f"activations of {self.name} must be finite, but got others"
                raise ValueError(f"[pinvnn.surgery] {rule}. Use weights in float32 or bfloat16.") from error
