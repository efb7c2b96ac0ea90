"""Two and four processes on this machine, on the ring backend, against one process with all rows."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from pinvnn.streaming import moments, solve_moments
from tests.support import ranks
from tests.support.launch import launch
from tests.support.rows import assert_close, gcv, ridge, to_numpy


@pytest.fixture(scope="module", params=[2, 4])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    output = launch(request.param, Path(ranks.__file__), folder)
    found = sorted(folder.glob("*.json"))
    assert len(found) == request.param, output
    return [json.loads(path.read_text()) for path in found]


def test_distributed_is_batch_and_a_rank_without_rows_is_no_special_case(results):
    x, y, w = ranks.all_rows()
    weight, bias = ridge(x, y, 0.5, w)
    for rank, result in enumerate(results):
        readout = result["readout"]
        assert (result["rank"], result["size"]) == (rank, len(results))
        assert (readout["local"] == 0) == (rank == 1)
        assert readout["local after"] == readout["local"]
        assert readout["count"] == mx.sum(w).item()
        assert_close(readout["weight"], weight, 1e-6)
        assert_close(readout["bias"], bias, 1e-6)
        assert_close(readout["gcv"], gcv(x, y, 0.5, w), 1e-5)
        for got, expected in zip(readout["moments"], moments(x, y, w), strict=True):
            assert_close(got, expected, 1e-12)
        assert_close(readout["uncentred"], ridge(x, y, bias=False)[0], 1e-6)
        assert_close(readout["nowhere a row"], np.zeros((ranks.K, ranks.N)), 0)


def test_all_ranks_hold_the_same(results):
    assert len({json.dumps(r["readout"]["moments"]) for r in results}) == 1


def test_a_mismatch_is_an_error_on_every_rank(results):
    same = [3] * (len(results) - 1)
    expected = [
        f"every rank must have the same input_dims, but got {[*same, 4]} on ranks 0 to",
        f"every rank must have the same output_dims, but got {[2 for _ in same] + [3]} on ranks 0 to",
        f"every rank must have the same bias, but got {[1 for _ in same] + [0]} on ranks 0 to",
    ]
    for result in results:
        assert len(result["mismatches"]) == len(expected)
        for got, start in zip(result["mismatches"], expected, strict=True):
            assert got.startswith(f"[pinvnn.ReadoutStatistics.all_reduce] {start}")


def test_gradients_are_those_of_the_sum_of_the_losses(results):
    rows = ranks.all_rows()
    size = len(results)
    direction = ranks.rows(ranks.M, ranks.N, ranks.K, seed=1)[0]

    def total(x, y, w):
        readout = solve_moments(moments(x, y, w), 0.5)
        return sum(ranks.loss(*readout, rank) for rank in range(size))

    expected = mx.grad(total, argnums=(0, 1, 2))(*rows)
    second = mx.grad(lambda x: mx.sum(direction * mx.grad(total)(x, *rows[1:])))(rows[0])
    for rank, result in enumerate(results):
        own = ranks.share(rank, size)
        for way in ("first", "streamed"):
            for got, whole in zip(result["gradients"][way], expected, strict=True):
                difference = np.max(np.abs(to_numpy(mx.array(got).reshape(whole[own].shape) - whole[own])), initial=0.0)
                assert difference < 1e-5 * np.max(np.abs(to_numpy(whole)))
        got = mx.array(result["gradients"]["second"]).reshape(second[own].shape)
        assert np.max(np.abs(to_numpy(got - second[own])), initial=0.0) < 1e-4 * np.max(np.abs(to_numpy(second)))


def test_the_forward_derivative_is_that_of_the_rank_s_own_loss_along_all_tangents(results):
    x, y, w = ranks.all_rows()
    direction = ranks.rows(ranks.M, ranks.N, ranks.K, seed=1)[0]
    for rank, result in enumerate(results):
        _, (expected,) = mx.jvp(
            lambda x, rank=rank: ranks.loss(*solve_moments(moments(x, y, w), 0.5), rank), [x], [direction]
        )
        assert result["gradients"]["forward"] == pytest.approx(expected.item(), rel=1e-4)


def test_float64_on_one_rank_is_float64_on_all(results):
    assert {r["dtype"] for r in results} == {str(mx.float64)}
