"""The command: help, answers, and one line with exit code 2 for every mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pinvnn.heads._cli import agreement, main
from tests.support.topics import TOPICS, write_folder, write_rows


@pytest.fixture(scope="module")
def installed(tiny, topics, tmp_path_factory) -> Path:
    """The output of an atlas."""
    output = tmp_path_factory.mktemp("out")
    arguments = ["--model", str(tiny), "--data", str(topics), "--output", str(output)]
    assert main(["atlas", *arguments, "--pooling", "mean"]) == 0
    return output


@pytest.mark.parametrize("command", [[], ["fit"], ["predict"], ["atlas"]])
def test_help_names_every_option(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(" ".join(["usage: pinvnn", *command]))
    expected = {
        "": ["fit", "predict", "atlas", "--version"],
        "fit": ["--model", "--data", "--output", "--layer", "--l2", "--pooling", "--task", "--max-seq-length"],
        "predict": ["--head", "--model", "--text", "--data"],
        "atlas": ["--model", "--data", "--output", "--layers", "--l2", "--pooling", "--save-every", "--restart"],
    }["".join(command)]
    assert all(option in text for option in expected)


@pytest.mark.parametrize("arguments", [[], ["fit"], ["predict", "--head", "h"], ["atlas", "--model", "m"], ["train"]])
def test_missing_options_are_an_error(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_an_atlas_installs_its_best_head(installed, topics, capsys):
    assert sorted(path.name for path in installed.iterdir()) == ["atlas.json", "atlas.png", "head"]
    assert main(["predict", "--head", str(installed / "head"), "--text", "the cat and a dog", "some rice"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == ["the cat and a dog", "some rice"]
    assert all(answer["label"] in TOPICS and isinstance(answer["score"], float) for answer in answers)
    assert all(1 / 3 <= answer["probability"] <= 1 for answer in answers)

    assert main(["predict", "--head", str(installed / "head"), "--data", str(topics)]) == 0
    out, err = capsys.readouterr()
    report = json.loads((installed / "atlas.json").read_text())
    score = next(layer["test"] for layer in report["layers"] if layer["layer"] == report["best"]["layer"])
    assert len(out.splitlines()) == 60
    assert err.splitlines()[-1] == f"accuracy {score:.4f} on 60 texts"


def test_fit_writes_a_head(tiny, lengths, tmp_path, capsys):
    arguments = ["--model", str(tiny), "--data", str(lengths), "--output", str(tmp_path / "head")]
    assert main(["fit", *arguments, "--layer", "-2", "--l2", "1", "--pooling", "mean"]) == 0
    assert "R^2" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == ["config.json", "head.safetensors"]
    (tmp_path / "new.jsonl").write_text('{"text": "the cat"}\n')
    assert main(["predict", "--head", str(tmp_path / "head"), "--data", str(tmp_path / "new.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert isinstance(json.loads(out)["label"], float)
    assert err == ""


def test_agreement():
    assert agreement([("a", "a"), ("b", "a")], True) == ("accuracy", 0.5)
    assert agreement([(1.0, 1.0), (3.0, 2.0)], False) == ("R^2", 0.5)


def replace(folder, name, line, text):
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    lines[line - 1] = text
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


# What is done to the folder of the data, and what the one line must hold.
BAD_DATA = {
    "missing file": (lambda data: (data / "valid.jsonl").unlink(), "valid.jsonl: the file must be readable"),
    "no JSON": (lambda data: replace(data, "train", 3, "{text"), "train.jsonl:3: the line must be JSON"),
    "missing key": (lambda data: replace(data, "test", 2, '{"text": "cat"}'), 'test.jsonl:2: .* the key "label"'),
    "one class": (lambda data: write_rows(data / "train.jsonl", [{"text": "cat", "label": "a"}] * 3), "train.jsonl: "),
    "unknown label": (lambda data: replace(data, "valid", 4, '{"text": "cat", "label": "car"}'), "valid.jsonl:4: "),
    "empty text": (lambda data: replace(data, "train", 5, '{"text": "", "label": "food"}'), "train.jsonl:5: "),
}


@pytest.mark.parametrize("mistake", BAD_DATA)
def test_bad_data_is_one_line_and_nothing_is_written(tiny, tmp_path, capsys, mistake):
    data, output = write_folder(tmp_path / "data", 20, 5), tmp_path / "out"
    change, message = BAD_DATA[mistake]
    change(data)
    assert main(["atlas", "--model", str(tiny), "--data", str(data), "--output", str(output)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("pinvnn atlas: error: ") and str(data) in err and re.search(message, err)
    assert not output.exists()


@pytest.mark.parametrize("place", ["out", "out/below", "out/head", "out/checkpoint"])
def test_an_output_that_cannot_be_a_folder_is_found_out_at_once(tiny, topics, tmp_path, capsys, monkeypatch, place):
    monkeypatch.setattr("pinvnn.heads._atlas.load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / place).parent.mkdir(exist_ok=True, parents=True) if place != "out/below" else None
    (tmp_path / ("out" if place == "out/below" else place)).write_text("a file")
    output = tmp_path / (place if place == "out/below" else "out")
    before = sorted(tmp_path.rglob("*"))
    assert main(["atlas", "--model", str(tiny), "--data", str(topics), "--output", str(output)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.search(r"the output must be a folder that can be written, but got .*\. Take another one\.", err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["atlas.json", "atlas.png", "head/config.json", "head/head.safetensors"])
def test_a_folder_where_a_file_is_to_be_written_is_found_out_at_once(
    tiny, topics, tmp_path, capsys, monkeypatch, place
):
    monkeypatch.setattr("pinvnn.heads._atlas.load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "atlas" / place).mkdir(parents=True)
    commands = {"atlas": ["atlas"], "atlas/head": ["fit", "--layer", "1"]}
    for output, command in commands.items():
        if output == "atlas" or "head" in place:
            places = ["--model", str(tiny), "--data", str(topics), "--output", str(tmp_path / output)]
            assert main([*command, *places]) == 2
            out, err = capsys.readouterr()
            assert out == "" and err.count("\n") == 1
            assert f"{tmp_path / 'atlas' / place}: the output must be a file, or not exist, but got a folder" in err


@pytest.mark.parametrize("edit", [
    {"layer": 99}, {"layer": "1"}, {"pooling": "max"}, {"max_length": "8"}, {"max_length": 0}, {"task": "regression"},
    {"readout": "x"}, {"scale": "1"}, {"l2": "1"}, {"l2": -1},
], ids=str)
def test_a_head_whose_configuration_was_edited(installed, tmp_path, capsys, edit):
    folder = shutil.copytree(installed / "head", tmp_path / "head")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **edit}))
    assert main(["predict", "--head", str(folder), "--text", "the cat"]) == 2
    out, err = capsys.readouterr()
    key, value = next(iter(edit.items()))
    assert out == "" and err.count("\n") == 1
    assert f"{folder}: {key} in config.json must be as it was written, but got {value!r}. Fit the head again." in err


def test_labels_of_another_kind_are_not_scored_as_mistakes(installed, lengths, tiny, tmp_path, capsys):
    arguments = ["--model", str(tiny), "--data", str(lengths), "--output", str(tmp_path / "head"), "--layer", "1"]
    assert main(["fit", *arguments]) == 0
    for head, label, kind in [(installed / "head", 3, "strings"), (tmp_path / "head", "3", "numbers")]:
        write_rows(tmp_path / "new.jsonl", [{"text": "the cat"}, {"text": "a dog", "label": label}])
        capsys.readouterr()
        assert main(["predict", "--head", str(head), "--data", str(tmp_path / "new.jsonl")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert f"new.jsonl:2: labels must be {kind} as in the head, but got {label!r}. " in err


def test_a_test_file_without_labels_does_not_stop_a_fit(tiny, tmp_path, capsys):
    data = write_folder(tmp_path / "data", 20, 5)
    write_rows(data / "test.jsonl", [{"text": "the cat"}, {"text": "a cheese"}])
    arguments = ["--model", str(tiny), "--data", str(data), "--output", str(tmp_path / "head"), "--layer", "1"]
    assert main(["fit", *arguments]) == 0
    warning = f"pinvnn fit: warning: {data / 'test.jsonl'}: no line has a label, so it is not scored."
    assert warning in capsys.readouterr().err
    assert main(["predict", "--head", str(tmp_path / "head"), "--data", str(data)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_half_an_emoji_is_one_line_where_texts_are_predicted(installed, tmp_path, capsys):
    (tmp_path / "new.jsonl").write_text('{"text": "the cat"}\n{"text": "cat \\ud83d"}\n')
    assert main(["predict", "--head", str(installed / "head"), "--data", str(tmp_path / "new.jsonl")]) == 2
    assert main(["predict", "--head", str(installed / "head"), "--text", "the cat", "cat \ud83d"]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2
    assert "new.jsonl:2: " in lines[0] and "--text 2: " in lines[1]


@pytest.mark.parametrize("command", ["script", "module"])
def test_without_a_backend_the_command_says_what_to_install(tmp_path, command):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')")
    script = tmp_path / "pinvnn"  # as pip writes it
    script.write_text("import sys\nfrom pinvnn.heads._cli import main\nsys.exit(main())\n")
    run = [str(script)] if command == "script" else ["-m", "pinvnn.heads"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    result = subprocess.run([sys.executable, *run, "--help"], env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("pinvnn: error: MLX must have a backend") and result.stderr.count("\n") == 1
    assert "pip install 'pinvnn[cpu]'" in result.stderr


def not_a_model(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda _: "/no/such/model", "/no/such/model: the model must be a folder or a repository"),
        (not_a_model, "mlx-lm must be able to load the model, but got: "),
    ],
)
def test_a_bad_model_is_one_line(topics, tmp_path, capsys, model, message):
    arguments = ["--data", str(topics), "--output", str(tmp_path / "out"), "--layer", "1"]
    assert main(["fit", "--model", str(model(tmp_path)), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_what_the_hub_says_becomes_one_line(topics, tmp_path, capsys, monkeypatch):
    def unreachable(name):
        raise RuntimeError(f"cannot reach {name}\n  try again\n")

    monkeypatch.setattr("mlx_lm.load", unreachable)
    arguments = ["--data", str(topics), "--output", str(tmp_path / "out"), "--layer", "1"]
    assert main(["fit", "--model", "someone/model", *arguments]) == 2
    assert capsys.readouterr().err == (
        "pinvnn fit: error: someone/model: mlx-lm must be able to load the model, but got: cannot reach someone/model "
        "try again\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head", "nowhere", "--text", "cat"], "nowhere: the folder must hold a head"),
        (["--head", "HEAD", "--text", "cat", " "], "--text 2: the text must have 1 or more tokens"),
        (["--head", "HEAD", "--data", "nothing.jsonl"], "nothing.jsonl: the file must be readable"),
        (["--head", "HEAD", "--data", "BAD"], "bad.jsonl:2: the line must be JSON"),
        (["--head", "HEAD", "--text", "cat", "--batch-size", "0"], "--batch-size must be 1 or more, but got 0"),
    ],
)
def test_bad_predictions_are_one_line_and_no_answer(installed, tmp_path, capsys, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "cat"}\n{')
    places = {"HEAD": str(installed / "head"), "BAD": str(tmp_path / "bad.jsonl")}
    assert main(["predict", *(places.get(argument, argument) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_the_module_is_the_command_and_truncation_is_one_line(tiny, tmp_path):
    data = write_folder(tmp_path / "data", 30, 5)
    command = [sys.executable, "-m", "pinvnn.heads", "fit", "--model", str(tiny), "--data", str(data), "--layer", "1"]
    command += ["--output", str(tmp_path / "head"), "--max-seq-length", "6"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("pinvnn fit: warning: texts longer than 6 tokens are cut to them: ") == 1
    assert (tmp_path / "head" / "config.json").exists()
