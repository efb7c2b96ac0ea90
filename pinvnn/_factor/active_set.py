"""Least squares within bounds for a few columns, on the host: one problem at a time, of any rank."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np  # at run time in the functions, since it takes longer to import than all of MLX


def bounded_free_set(
    r: "np.ndarray", q: "np.ndarray", lower: "np.ndarray", upper: "np.ndarray"
) -> "tuple[np.ndarray, np.ndarray]":
    """Which variables are free where ``||R c - q||`` is least for ``lower <= c <= upper``, and the minimizer.

    The active-set method of Stark and Parker (BVLS, Comput. Stat. 10, 1995), started from the unconstrained solution
    moved into the box: solve for the free variables; while that leaves the box, go as far as the box allows and hold
    what it stops; then release the held variable whose gradient points most strongly into the box. Every round lowers
    the objective, so that no set of free variables comes twice.

    Args:
        r: matrix (l, n); its columns should be of like lengths.
        q: right-hand side (l,).
        lower: lower bounds (n,), -inf where there are none.
        upper: upper bounds (n,); one equal to the lower bound holds the variable.

    Returns:
        Mask (n,) of the free variables, and c (n,), in which the others are exactly on their bounds.
    """
    import numpy as np

    eps = float(np.finfo(float).eps)
    c = np.clip(_shortest(r, q)[0], lower, upper)
    free = np.logical_and(c > lower, c < upper)
    barred = lower == upper
    lengths = np.linalg.norm(r, axis=0)
    released = None
    for _ in range(10 * len(c) + 10):
        while free.any():
            target = c.copy()
            target[free], rest = _shortest(r[:, free], q - r[:, ~free] @ c[~free])
            if released is not None and free[released]:
                # Rounding may send a variable that was just released straight out of the box again.
                back = (
                    target[released] < lower[released]
                    if c[released] == lower[released]
                    else (c[released] == upper[released] and target[released] > upper[released])
                )
                if back:
                    free[released], barred[released] = False, True
                    released = None
                    continue
            released = None
            below, above = np.logical_and(free, target < lower), np.logical_and(free, target > upper)
            if not np.logical_or(below, above).any():
                c = target
                break
            stops = np.where(below, lower, np.where(above, upper, target))
            outside = np.logical_or(below, above)
            share = np.where(outside, (stops - c) / np.where(outside, target - c, 1.0), 1.0)
            step = float(share.min())
            hit = np.logical_and(outside, share <= step)
            c = np.where(free, c + step * (target - c), c)
            c = np.where(hit, stops, np.clip(c, lower, upper))
            free &= ~hit
        else:
            rest = q - r @ c
        noise = 100 * eps * lengths * (np.linalg.norm(q) + np.linalg.norm(r[:, ~free] @ c[~free]))
        downhill = r.T @ rest
        inward = np.where(c <= lower, downhill, np.where(c >= upper, -downhill, 0.0))
        inward = np.where(np.logical_or(free, barred), 0.0, inward - noise)
        released = int(np.argmax(inward))
        if not inward[released] > 0:
            break
        free[released] = True
    return free, c


def _shortest(r: "np.ndarray", q: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """The shortest least-squares solution, and ``q - r x``, in which large numbers in ``x`` do not cancel."""
    import numpy as np

    u, s, vt = np.linalg.svd(r, full_matrices=False)
    kept = s > np.finfo(float).eps * max(r.shape) * s[0]
    u, vt = u[:, kept], vt[kept]
    coordinates = u.T @ q
    rest = q - u @ coordinates
    return vt.T @ (coordinates / s[kept]), rest - u @ (u.T @ rest)
