"""Scores of readouts against plain NumPy."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn.heads import Head
from pinvnn.heads._score import Tally


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_r_squared_of_numbers_whose_squares_float32_cannot_hold(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)).astype(np.float32)
    w = rng.normal(size=(1, 4)).astype(np.float32)
    y = ((x @ w.T + rng.normal(size=(30, 1))) * size).astype(np.float32)
    weight = mx.array((w * size).astype(np.float32))
    tally = Tally([weight[None]], [mx.zeros((1, 1))], classification=False)
    for rows in (slice(0, 12), slice(12, 30)):
        tally.add([mx.array(x[rows])], mx.array(y[rows]))
    found = tally.scores(mx.distributed.init())[0][0]
    y64, predicted = y.astype(np.float64), x.astype(np.float64) @ np.array(weight, dtype=np.float64).T
    assert found == pytest.approx(1 - np.sum((y64 - predicted) ** 2) / np.sum((y64 - y64.mean()) ** 2), abs=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_scores_of_a_half_precision_model_are_float32(tiny, topics, dtype):
    from mlx_lm import load

    from pinvnn.heads import atlas

    model, tokenizer = load(str(tiny))[:2]
    model.set_dtype(dtype)
    result = atlas((model, tokenizer), topics, layers=[1], l2=[1.0])
    head: Head = result.head()
    tokens, lengths = head.tokenize(["the cat", "a bread with soup"])
    assert head.features(tokens, lengths).dtype == mx.float32
    assert head.scores(tokens, lengths).dtype == mx.float32
    assert result.weights[0].dtype == result.biases[0].dtype == mx.float32
