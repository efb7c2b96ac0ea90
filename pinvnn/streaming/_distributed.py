"""Moments summed over the ranks of `mx.distributed`, with the gradient of the sum of all ranks' losses."""

import mlx.core as mx

from .._mlx import fail, on_cpu
from ._moments import Moments, or_one, plus_outer

Group = mx.distributed.Group


def reduce_moments(m: Moments, group: Group | None = None) -> Moments:
    r"""Moments of the rows of all ranks together, the same on every rank. Ranks may be without rows.

    With c any centre that the ranks share and d_r = m_r - c, sums over the ranks r give

        W = sum W_r,   m = c + s / W with s = sum W_r d_r,   S = sum (S_r + W_r d_r d_r^T) - s s^T / W.

    The result does not depend on c. Here c is the overall mean up to rounding, so that nothing cancels, and a constant
    for differentiation, which is exact at every order. A first reduction computes c, a second one all sums.

    Differentiable: if rank q has the loss L_q, every rank receives the gradient of sum_q L_q. The cotangents are summed
    over the ranks, so that either every rank takes the gradient, or none.

    Args:
        m: This rank's moments. All ranks need the same shapes, which is not checked here (see
            :meth:`ReadoutStatistics.all_reduce`).
        group: The ranks. Default: all of them.

    Returns:
        The moments of all rows.
    """
    group = group or mx.distributed.init()
    with on_cpu():
        centre = _common_mean(m, group)
        dx, dy = m.x_mean - centre[: m.x_mean.size], m.y_mean - centre[m.x_mean.size :]
        about = plus_outer(m.xx, m.xy, m.yy, m.count, dx, dy)
        parts = [m.count, m.count * dx, m.count * dy, *about]
        total = sum_over_ranks(mx.concatenate([part.reshape(-1) for part in parts]), group)
        count, sx, sy, xx, xy, yy = _split(total, parts)
        sx, sy = sx / or_one(count), sy / or_one(count)
        mean = centre + mx.concatenate([sx, sy])
        xx, xy, yy = plus_outer(xx, xy, yy, -count, sx, sy)
        return Moments(count, mean[: sx.size], mean[sx.size :], xx, xy, yy)


def _common_mean(m, group):
    """The mean of all rows, (n + k,), as a constant."""
    own = mx.concatenate([m.count[None], m.count * m.x_mean, m.count * m.y_mean])
    total = mx.distributed.all_sum(mx.stop_gradient(own), group=group)
    return mx.stop_gradient(total[1:] / or_one(total[0]))


def _split(flat, like):
    ends = [0]
    for part in like:
        ends.append(ends[-1] + part.size)
    return [flat[i:j].reshape(part.shape) for i, j, part in zip(ends, ends[1:], like, strict=False)]


def sum_over_ranks(x: mx.array, group: Group) -> mx.array:
    """The sum of ``x`` over the ranks, with the transposed operation as its gradient: a sum over the ranks again.

    The gradient of ``mx.distributed.all_sum`` is the identity, which is the gradient of this rank's loss alone.
    """

    @mx.custom_function
    def total(x):
        return mx.distributed.all_sum(x, group=group)

    @total.vjp
    def _(x, cotangent, _):
        return sum_over_ranks(cotangent, group)

    with on_cpu():
        return total(x)  # type: ignore[return-value]


def agree(name: str, fields: dict[str, int], group: Group) -> None:
    """Compare integers over the ranks. If they differ, every rank raises, and none is left waiting for another.

    Raises:
        ValueError: If the ranks differ in one of ``fields``.
    """
    for key, values in zip(fields, gather(list(fields.values()), group), strict=True):
        if len(set(values)) > 1:
            rule, got = f"every rank must have the same {key}", f"{values} on ranks 0 to {len(values) - 1}"
            fail(name, rule, got, "Make the statistics with the same arguments on every rank, with or without rows.")


def gather(values: list[int], group: Group) -> list[list[int]]:
    """For each of ``values`` the values of all ranks, in the order of the ranks."""
    with on_cpu():
        table: list = mx.distributed.all_gather(mx.array([values], mx.int32), group=group).tolist()  # type: ignore
    return [list(column) for column in zip(*table, strict=True)]
