"""Nothing in float64 lands on a default GPU: it is emulated by tests/support/emulated_gpu.py."""

import pytest

from pinvnn import surgery
from pinvnn._command import main


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
