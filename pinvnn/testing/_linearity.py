"""Before a derivative is called wrong: whether the slopes along several directions belong to one linear derivative.

The median of three equal numbers has a slope along every line, without a kink, and yet no derivative: its slope along
u + v is not the sum of those along u and v.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ._differences import Slope

SPLITS = 4  # how many pairs of directions are tried


def refuted(slope: Slope, expected: np.ndarray, enough: np.ndarray) -> bool:
    """Whether some expected derivative is further from the slope than both may be off."""
    with np.errstate(invalid="ignore"):
        return bool(np.any(np.abs(expected - slope.value) > enough + 10 * slope.error))


def splits(directions: dict[int, np.ndarray], rng: np.random.Generator) -> Iterator[list[dict[int, np.ndarray]]]:
    """Pairs of random directions, each pair with the given sum."""
    for _ in range(SPLITS):
        one = {i: rng.normal(size=d.shape) * d for i, d in directions.items()}
        yield [one, {i: d - one[i] for i, d in directions.items()}]


def additive(slope: Slope, parts: list[Slope]) -> Slope:
    """``slope``, with a kink where one of ``parts`` has one, or where it is not the sum of them."""
    kink = np.max([_gap(slope, parts), slope.kink, *(part.kink for part in parts)], axis=0)
    return slope._replace(error=np.maximum(slope.error, kink), kink=kink)


def additive_beside(slope: Slope, scale: float, beside: Slope, search: Callable[..., Slope]) -> Slope:
    """``slope`` along e, with a kink where the slope along ``scale`` e + v is not the sum of the two.

    Args:
        slope: Along e.
        scale: How far e moves beside v.
        beside: Along v, which may cross kinks of its own: these must not excuse a wrong derivative along e.
        search: Called with ``expected``, finds the slope along ``scale`` e + v.
    """
    part = slope._replace(value=scale * slope.value, error=scale * slope.error)
    kink = np.maximum(_gap(search(expected=part.value + beside.value), [part, beside]) / scale, slope.kink)
    return slope._replace(error=np.maximum(slope.error, kink), kink=kink)


def _gap(slope: Slope, parts: list[Slope]) -> np.ndarray:
    """How far ``slope`` is from the sum of ``parts``; 0 where their errors explain that."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(slope.value - sum(part.value for part in parts))
        return np.where(gap > 10 * (slope.error + sum(part.error for part in parts)), gap, 0.0)
