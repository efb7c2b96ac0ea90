"""Nothing in float64 lands on a default GPU: it is emulated by tests/support/emulated_gpu.py."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import surgery
from pinvnn._command import main
from pinvnn.streaming import ReadoutStatistics
from pinvnn.surgery._erase import factors


def test_a_repair(gpu, tiny, packed, texts, tmp_path):
    from mlx_lm import load

    model, tokenizer = load(str(tiny))[:2]
    stats = surgery.collect((model, tokenizer), texts / "valid.jsonl")
    quantized = load(str(packed))[0]
    adapter = surgery.compensate(quantized, model, stats, rank=2)
    adapter.save(tmp_path)
    assert surgery.perplexity((adapter.apply(quantized), tokenizer), texts / "valid.jsonl") > 1


def test_fewer_layers(gpu, tiny, texts, tmp_path):
    surgery.replace_layers(str(tiny), texts / "valid.jsonl", 2).save(tmp_path / "short")
    assert (tmp_path / "short" / "config.json").exists()


def test_an_eraser(gpu, loaded, texts, tmp_path):
    eraser = surgery.erase(loaded, texts, 2)
    with eraser.installed(loaded[0]):
        assert surgery.perplexity(loaded, texts / "valid.jsonl") > 1
    eraser.save(tmp_path)
    assert surgery.Eraser.load(tmp_path).config == eraser.config


def test_products_in_tf32_leave_no_trace_of_what_was_erased(gpu):
    rng = np.random.default_rng(0)
    y = np.where(rng.integers(0, 3, 400)[:, None] == np.arange(3), 1.0, -1.0)
    x = (rng.normal(size=(400, 20)) + y @ rng.normal(size=(3, 20)) + 3).astype(np.float32)
    config = surgery.EraserConfig("", "", 1, 20, "mean")
    eraser = surgery.Eraser(config, *factors(ReadoutStatistics(20, 3).update(x, y)))
    left = np.array(eraser(mx.array(x)), np.float64)
    before, after = (np.linalg.norm((v - v.mean(axis=0)).T @ (y - y.mean(axis=0))) for v in (x, left))
    assert after < 1e-6 * before
    np.testing.assert_allclose(x @ np.array(eraser.weight).T + np.array(eraser.bias), left, atol=1e-5)


@pytest.mark.parametrize("command", ["repair", "shorten", "erase"])
def test_the_commands(gpu, tiny, packed, texts, tmp_path, command):
    own = {
        "repair": ["--original", str(tiny), "--rank", "4"],
        "shorten": ["--skip", "2"],
        "erase": ["--layer", "2"],
    }[command]
    model = packed if command == "repair" else tiny
    arguments = ["--model", str(model), "--data", str(texts), "--output", str(tmp_path / "out"), *own]
    assert main([command, *arguments]) == 0
    assert (tmp_path / "out" / f"{command}.png").exists()
