"""What each rank of test_distributed.py does. Run by mlx.launch: `ranks.py FOLDER`; writes FOLDER/rank.json."""

import copy
import json
import sys
from pathlib import Path

import mlx.core as mx

from pinvnn.streaming import ReadoutStatistics, moments, reduce_moments, solve_moments
from tests.support.rows import rows

M, N, K = 60, 3, 2


def all_rows():
    x, y, w = rows(M, N, K, mean=1000.0)
    return x, y, w + 0.5


def share(rank, size):
    """Rank 1 has no rows; the others have unequal shares."""
    edges = [0, 10, 10, 37, M] if size == 4 else [0, M, M]
    return slice(edges[rank], edges[rank + 1])


def loss(weight, bias, rank):
    """Another one on each rank; on rank 1, which has no rows, too."""
    return (rank + 1) * mx.sum(weight**3) + mx.sum(mx.sin(bias - 1000.0 + rank))


def readout(group):
    """Through the object."""
    rank, size = group.rank(), group.size()
    local = ReadoutStatistics(N, K)
    x, y, w = (a[share(rank, size)] for a in all_rows())
    local.update(x, y, w)
    count = local.count
    total = copy.copy(local).all_reduce(group)
    weight, bias = total.solve(0.5)
    return {
        "local": count,
        "local after": local.count,
        "count": total.count,
        "weight": weight.tolist(),
        "bias": bias.tolist(),
        "gcv": total.gcv(0.5).item(),
        "moments": [part.tolist() for part in total.moments],
        "uncentred": ReadoutStatistics(N, K, bias=False).update(x, y).all_reduce().solve()[0].tolist(),
        "nowhere a row": ReadoutStatistics(N, K).all_reduce().solve()[0].tolist(),
    }


def mismatches(group):
    """Errors, on every rank, and afterwards the ranks still work together."""
    odd = group.rank() == group.size() - 1
    found = []
    for stats in (
        ReadoutStatistics(N + odd, K),
        ReadoutStatistics(N, K + odd),
        ReadoutStatistics(N, K, bias=not odd),
    ):
        try:
            stats.all_reduce(group)
        except ValueError as error:
            found.append(str(error))
    return found


def gradients(group):
    rank, size = group.rank(), group.size()
    local = [a[share(rank, size)] for a in all_rows()]
    direction = rows(M, N, K, seed=1)[0][share(rank, size)]

    def fn(x, y, w):
        return loss(*solve_moments(reduce_moments(moments(x, y, w), group), 0.5), rank)

    def streamed(x, y, w):
        return loss(*ReadoutStatistics(N, K).update(x, y, w).all_reduce(group).solve(0.5), rank)

    def slope(x, y, w):
        return mx.sum(direction * mx.grad(fn)(x, y, w))

    return {
        "first": [g.tolist() for g in mx.grad(fn, argnums=(0, 1, 2))(*local)],
        "streamed": [g.tolist() for g in mx.grad(streamed, argnums=(0, 1, 2))(*local)],
        "second": mx.grad(slope)(*local).tolist(),
        "forward": mx.jvp(fn, local, [direction, *(mx.zeros_like(a) for a in local[1:])])[1][0].item(),
    }


def dtypes(group):
    """One rank with float64 rows makes the readout float64 on all."""
    with mx.stream(mx.cpu):
        stats = ReadoutStatistics(1, 1)
        if group.rank() == 0:
            stats.update(mx.array([[1.0], [2.0]], mx.float64), mx.array([[1.0], [2.0]], mx.float64))
        return str(stats.all_reduce(group).solve()[0].dtype)


if __name__ == "__main__":
    group = mx.distributed.init(strict=True)
    result = {
        "rank": group.rank(),
        "size": group.size(),
        "readout": readout(group),
        "mismatches": mismatches(group),
        "gradients": gradients(group),
        "dtype": dtypes(group),
    }
    Path(sys.argv[1], f"{group.rank()}.json").write_text(json.dumps(result))
