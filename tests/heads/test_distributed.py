"""Under mlx.launch the processes share the data, and the result is that of one process."""

import json

import mlx.core as mx
import numpy as np

from pinvnn.heads import atlas
from tests.support.launch import launch


def test_two_processes_find_what_one_finds(tiny, topics, tmp_path):
    arguments = ["--model", tiny, "--data", topics, "--output", tmp_path / "out", "--l2", "0.1", "10"]
    said = launch(2, "-m", "pinvnn.heads", "atlas", *arguments)
    assert (tmp_path / "out" / "atlas.json").exists(), said
    assert said.count("Forward passes") == 1  # one process speaks
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["atlas.json", "atlas.png", "head"]

    one = atlas(str(tiny), topics, l2=[0.1, 10.0])
    found = json.loads((tmp_path / "out" / "atlas.json").read_text())
    assert 0 < found["tokens"] < one.clock.tokens == sum(split["tokens"] for split in found["data"].values())
    np.testing.assert_allclose([layer["gcv"] for layer in found["layers"]], one.gcv, rtol=1e-5)
    assert [layer["valid"] for layer in found["layers"]] == one.valid
    assert [layer["test"] for layer in found["layers"]] == one.test
    weights = mx.load(str(tmp_path / "out" / "head" / "head.safetensors"))
    np.testing.assert_allclose(weights["weight"], one.head().readout.weight, rtol=1e-3, atol=1e-5)
