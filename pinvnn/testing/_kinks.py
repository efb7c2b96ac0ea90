"""Kinks and jumps: where the derivatives from the left and from the right differ.

At a kink of slopes a and b all central differences agree on (a + b) / 2, so that they look exact. The second difference
D(h) = (f(h) - 2 f(0) + f(-h)) / h shows it: with h it tends to 0 where f is smooth, to b - a at a kink, and to infinity
at a jump or where a slope is infinite. It is extrapolated to h = 0 as central differences are. Only steps above d see a
kink at a distance d, so that those below give the derivative.
"""

import numpy as np

# The limit of D counts if it is that many times its estimated error: 0.6 times where f is smooth, 1 or 2 for noise, 7
# for a jump, 11 for sqrt(abs(x)), and the more for a kink the smaller the step.
SIGNIFICANT = 4.0
# It must also exceed what that many roundings of f make of D: a function that is constant but for rounding has no kink.
ROUNDING = 50.0


def disagreement(ahead: np.ndarray, behind: np.ndarray, origin: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The limit of abs(D), where it is significant, else 0.

    Args:
        ahead: f at the steps, ``(K, outputs)``.
        behind: f at minus the steps, ``(K, outputs)``.
        origin: f at 0, ``(outputs,)``.
        steps: K steps, largest first.

    Returns:
        One row for each step but the last two, ``(K - 2, outputs)``, from it and the next two steps.
    """
    with np.errstate(all="ignore"):
        second = ((ahead - origin) - (origin - behind)) / steps[:, None]
        r = (steps[:-1] / steps[1:])[:, None]
        linear = (r * second[1:] - second[:-1]) / (r - 1)
        r = (steps[:-2] / steps[2:])[:, None]
        limit = (r * linear[1:] - linear[:-1]) / (r - 1)
        error = np.abs(limit - linear[1:])
        size = np.max(np.abs([ahead, behind, np.broadcast_to(origin, ahead.shape)]), axis=(0, 1))
        rounding = ROUNDING * np.finfo(np.float64).eps * size / steps[2:, None]
        return np.where(np.abs(limit) > np.maximum(SIGNIFICANT * error, rounding), np.abs(limit), 0.0)


def flat_beside_a_kink(ahead: np.ndarray, behind: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """For each output whether f is constant near 0 because of a kink further away, and not because it has few digits.

    Let h be the smallest step at which f changes. Beside a kink f changes continuously: at h at most 1/3 as much as at
    2 h. A function of few digits is a staircase that rises between h / 2 and h for the first time on
    either side, and changes at least half as much.
    """
    change = np.abs(np.stack([ahead - origin, behind - origin]))
    # How many of the largest steps there are up to h; the same for both sides.
    changed = np.sum(np.cumsum(np.max(change, axis=0)[::-1] != 0, axis=0) > 0, axis=0)
    at_h, at_2h = (
        np.take_along_axis(change, np.maximum(changed - i, 0)[None, None], axis=1)[:, 0] for i in (1, 2)
    )
    side = np.argmax(at_h, axis=0)[None]
    at_h, at_2h = (np.take_along_axis(part, side, axis=0)[0] for part in (at_h, at_2h))
    return (changed == 1) | (at_h < 0.4 * at_2h)
