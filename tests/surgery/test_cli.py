"""The commands of surgery: what they write, and one line with exit code 2 for every mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pinvnn import surgery
from pinvnn._command import main
from pinvnn._lm import stream
from tests.support.topics import write_folder, write_rows

COMMANDS = ["repair", "shorten", "erase"]


@pytest.fixture
def arguments(tiny, packed, texts, tmp_path):
    """Of each command, with the output ``tmp_path / "out"``."""
    rest = ["--data", str(texts), "--output", str(tmp_path / "out")]
    return {
        "repair": ["--model", str(packed), "--original", str(tiny), "--rank", "8", *rest],
        "shorten": ["--model", str(tiny), "--skip", "2", *rest],
        "erase": ["--model", str(tiny), "--layer", "2", *rest],
    }


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", ["fit", "predict", "atlas", *COMMANDS])
def test_the_command_has_all_commands(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0 and command in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0 and capsys.readouterr().out.startswith(f"usage: pinvnn {command} ")


def test_repair(arguments, packed, texts, tmp_path, capsys):
    assert main(["repair", *arguments["repair"]]) == 0
    out = tmp_path / "out"
    assert files(out) == ["adapter_config.json", "adapters.safetensors", "repair.json", "repair.png"]
    report = json.loads((out / "repair.json").read_text())
    assert len(report["layers"]) == 28 and all(row["error_after"] < row["error_before"] for row in report["layers"])
    assert list(report["perplexity"]) == ["original", "0", "2", "4", "8"]
    assert f"{report['perplexity']['8']:.3f}  rank 8" in capsys.readouterr().out

    generate(tmp_path, "--model", packed, "--adapter-path", out)


def generate(folder, *arguments):
    """mlx-lm's own command, in a process of its own."""
    command = [sys.executable, "-m", "mlx_lm", "generate", *map(str, arguments)]
    command += ["--prompt", "the cat", "--max-tokens", "4", "--ignore-chat-template"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Generation: 4 tokens" in result.stdout


def test_shorten(arguments, tmp_path, capsys):
    assert main(["shorten", *arguments["shorten"]]) == 0
    out = tmp_path / "out"
    assert {"config.json", "model.safetensors", "tokenizer.json", "shorten.json", "shorten.png"} < set(files(out))
    assert "checkpoint" not in files(out)
    report = json.loads((out / "shorten.json").read_text())
    assert len(report["removed"]) == 2 and len(report["spans"]) == 2 and report["l2"] > 0
    assert list(report["perplexity"]) == ["original", "dropped", "shortened"]
    assert f"{report['perplexity']['shortened']:.3f}  shortened" in capsys.readouterr().out
    generate(tmp_path, "--model", out)


def test_erase(arguments, tmp_path, capsys):
    assert main(["erase", *arguments["erase"]]) == 0
    out = tmp_path / "out"
    assert files(out) == ["config.json", "erase.json", "erase.png", "eraser.safetensors"]
    report = json.loads((out / "erase.json").read_text())
    train, valid = report["scores"]["train"], report["scores"]["valid"]
    assert abs(train["erased"] - train["constant"]) <= 0.01 < train["original"] - train["constant"]
    assert valid["erased"] < valid["original"] and report["cross_covariance_left"] < 1e-5
    assert list(report["perplexity"]) == ["original", "erased"]
    assert "accuracy on train: original" in capsys.readouterr().out
    assert surgery.Eraser.load(out).config.layer == 2


def test_without_validation_texts_there_is_no_perplexity(arguments, tiny, texts, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(texts / "train.jsonl", data)
    assert main(["repair", *arguments["repair"], "--data", str(data)]) == 0
    assert json.loads((tmp_path / "out" / "repair.json").read_text())["perplexity"] is None


ROW = '{"text": "cat", "label": "a"}\n'
BAD_DATA = {
    "missing file": (lambda data: (data / "train.jsonl").unlink(), "train.jsonl: the file must be readable"),
    "no JSON": (lambda data: (data / "train.jsonl").write_text(ROW + "{"), "train.jsonl:2: the line must be JSON"),
    "no text": (lambda data: write_rows(data / "valid.jsonl", [{"word": "cat"}]), "valid.jsonl:1: the object must"),
    "empty": (lambda data: (data / "valid.jsonl").write_text(""), "valid.jsonl: the file must have at least one line"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("mistake", BAD_DATA)
def test_bad_data_is_one_line_and_nothing_is_written(arguments, tmp_path, capsys, command, mistake):
    data = write_folder(tmp_path / "data", 20, 5)
    change, message = BAD_DATA[mistake]
    change(data)
    assert main([command, *arguments[command], "--data", str(data)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"pinvnn {command}: error: ") and str(data) in err and message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/no/such/model"], "the model must be a folder or a repository"),
        (["--batch-size", "0"], "batch_size must be 1 or more, but got 0"),
        (["--output", "FILE"], "the output must be a folder that can be written"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(arguments, tmp_path, capsys, command, options, message):
    (tmp_path / "file").write_text("")
    options = [str(tmp_path / "file") if option == "FILE" else option for option in options]
    assert main([command, *arguments[command], *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "rank must be a whole number, 1 or more, but got 0"),
        (["--model", "ORIGINAL"], "the quantized model must have quantized linear layers, but got none"),
    ],
)
def test_bad_repairs_are_one_line(arguments, tiny, tmp_path, capsys, options, message):
    options = [str(tiny) if option == "ORIGINAL" else option for option in options]
    assert main(["repair", *arguments["repair"], *options]) == 2
    assert re.search(f"^pinvnn repair: error: {message}.*\n$", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_run_goes_on_and_ends_the_same(arguments, tmp_path, monkeypatch, capsys, command):
    real = stream.TextReader.batches

    def batches(self, chunk):
        if chunk.index == 1:
            raise KeyboardInterrupt
        return real(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(stream.TextReader, "batches", batches)
        assert main([command, *arguments[command], "--save-every", "0"]) == 130
    assert files(tmp_path / "out") == ["checkpoint"]
    assert capsys.readouterr().err.splitlines()[-1].endswith("The same command goes on from its last checkpoint.")
    assert main([command, *arguments[command]]) == 0
    resumed = json.loads((tmp_path / "out" / f"{command}.json").read_text())
    assert main([command, *arguments[command], "--output", str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole" / f"{command}.json").read_text())
    assert (resumed.pop("resumed_texts"), whole.pop("resumed_texts")) == (256, 0)
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "pinvnn", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0 and "repair" in result.stdout
