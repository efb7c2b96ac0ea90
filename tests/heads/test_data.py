"""Reading folders of jsonl: every mistake is named with its file and line before any work."""

import json

import mlx.core as mx
import pytest

from pinvnn.heads._data import read_dataset, read_rows
from pinvnn.heads._model import load_model
from tests.support.topics import write_rows

CAT, BREAD = {"text": "the cat", "label": "animal"}, {"text": "a bread", "label": "food"}


@pytest.fixture
def source(loaded):
    return load_model(loaded, max_length=8)


def write_lines(folder, train=(), **others):
    for name, lines in {"train": train, **others}.items():
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def read(folder, source, **options):
    return read_dataset(folder, source, **options)


def numbers(*values):
    return [{"text": "the cat", "label": value} for value in values]


GOOD = [CAT, BREAD]
# name: lines of train.jsonl, of valid.jsonl, options, the message behind the folder's name
BAD = {
    "no JSON": ([CAT, "{cat}"], GOOD, {}, r"train.jsonl:2: the line must be JSON in UTF-8, but got '{cat}' \("),
    "no UTF-8": ([CAT, "\udcff"], GOOD, {}, r"train.jsonl:2: the line must be JSON in UTF-8"),
    "no object": ([CAT, "[1]"], GOOD, {}, r"train.jsonl:2: the line must be a JSON object, but got '\[1\]'"),
    "no text": ([{"label": "a"}], GOOD, {}, r'train.jsonl:1: the object must have the key "text", but got .*label'),
    "no label": ([{"text": "a"}], GOOD, {}, r'train.jsonl:1: the object must have the key "label", but got .*text'),
    "empty text": ([CAT, {"text": " ", "label": "a"}], GOOD, {}, r'train.jsonl:2: "text" must be a string that is not'),
    "number as text": ([{"text": 3, "label": "a"}], GOOD, {}, r'train.jsonl:1: "text" must be a string .* but got .3.'),
    "null label": ([{"text": "a", "label": None}], GOOD, {}, r'train.jsonl:1: "label" must be a string, .* got .null.'),
    "infinite label": (numbers(1.0, float("inf")), GOOD, {}, r'train.jsonl:2: "label" must be finite in float32'),
    "huge label": (numbers(1, 10**400), GOOD, {}, r'train.jsonl:2: "label" must be finite in float32'),
    "one class": ([CAT, CAT], GOOD, {}, r"train.jsonl: the file must have two or more .* but got only '\"animal\"'"),
    "one number": (numbers(1.5, 1.5), GOOD, {}, r"train.jsonl: the file must have two or more different labels"),
    "no line": ([], GOOD, {}, r"train.jsonl: the file must have at least one line"),
    "unknown class": (GOOD, [BREAD, {"text": "x", "label": "car"}], {}, r"valid.jsonl:2: the label must occur in the"),
    "unknown number": (numbers(1, 2), numbers(3), {}, r'valid.jsonl:1: .* but got .3.*regressed on with task "regress'),
    "number of a class": (numbers(1, 2), numbers(True), {}, r"valid.jsonl:1: the label must occur in the training"),
    "kinds": (numbers("a", 1), GOOD, {}, r"train.jsonl:2: labels must be of one kind, but got an integer here"),
    "kinds of classes": (numbers(1, 2.5), GOOD, {"task": "classification"}, r"train.jsonl:2: labels must be of one"),
    "regression on classes": (GOOD, GOOD, {"task": "regression"}, r"train.jsonl:1: the label of a regression must"),
    "class in a regression": (numbers(1.5, 2), [CAT], {}, r"valid.jsonl:1: the label of a regression must be a number"),
    "one number to validate": (numbers(1.5, 2), numbers(1, 1), {}, r"valid.jsonl: the file must have two or more diff"),
    "short": (GOOD, [*GOOD, {"text": "cat", "label": "food"}], {"min_length": 2}, r"valid.jsonl:3: .* 2 or more"),
    "shorter context": (GOOD, GOOD, {"min_length": 9}, r"train.jsonl:1: .* 9 or more tokens .* in a context of 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named(tmp_path, source, name):
    train, valid, options, message = BAD[name]
    for split, lines in [("train", train), ("valid", valid)]:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (tmp_path / f"{split}.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset(tmp_path, source, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ([], r"the data must be a folder"),
        (["valid"], r"train.jsonl: the file must be readable, but got: No such file"),
        (["train"], r"valid.jsonl: the file must be readable, but got: No such file"),
    ],
)
def test_missing_files_are_named(tmp_path, source, existing, message):
    for name in existing:
        write_rows(tmp_path / "data" / f"{name}.jsonl", GOOD)
    with pytest.raises(ValueError, match=message):
        read_dataset(tmp_path / "data", source, required=("train", "valid"))


def test_an_unknown_task_is_refused(tmp_path, source):
    with pytest.raises(ValueError, match="task must be .* but got 'ranking'"):
        read_dataset(tmp_path, source, task="ranking")


@pytest.mark.parametrize(
    ("labels", "task", "expected"),
    [
        (["b", "a", "b"], "auto", ("classification", ("a", "b"))),
        ([2, 1, 3], "auto", ("classification", (1, 2, 3))),
        ([True, False], "auto", ("classification", (False, True))),
        ([1, 2.5], "auto", ("regression", ())),
        ([2.5, 1], "auto", ("regression", ())),
        ([1, 2], "regression", ("regression", ())),
        ([1.5, 2.5], "classification", ("classification", (1.5, 2.5))),
    ],
)
def test_the_task_follows_from_the_labels(tmp_path, source, labels, task, expected):
    write_rows(tmp_path / "train.jsonl", numbers(*labels))
    found = read_dataset(tmp_path, source, task=task)
    assert (found.task, found.classes) == expected
    assert found.output_dims == (len(expected[1]) or 1)


def test_counts_and_blank_lines(tmp_path, source):
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(CAT)}\n\n{json.dumps(BREAD)}\n\n")
    split = read_dataset(tmp_path, source).splits["train"]
    assert (split.rows, split.tokens, split.truncated) == (2, 4, 0)
    assert [row.where for row in read_rows(split.path)] == [f"{split.path}:1", f"{split.path}:3"]


def test_long_texts_are_cut_counted_and_warned_about_once(tmp_path, source):
    long = {"text": "the cat " * 6, "label": "animal"}
    write_rows(tmp_path / "train.jsonl", [CAT, long, long, BREAD])
    write_rows(tmp_path / "valid.jsonl", [long])
    write_rows(tmp_path / "test.jsonl", [CAT])
    message = r"longer than 8 tokens are cut .*: 2 of 4 in .*train.jsonl, 1 of 1 in"
    with pytest.warns(UserWarning, match=message) as seen:
        found = read_dataset(tmp_path, source)
    assert len(seen) == 1
    assert found.splits["train"].tokens == 2 + 8 + 8 + 2
    assert len(source.encode(long["text"])) == 8


def test_the_context_of_the_model_is_the_longest_text(loaded):
    assert load_model(loaded).max_length == 64
    assert mx.array(load_model(loaded, 5).encode("the " * 9)).shape == (5,)


def test_labels_are_not_asked_for_where_nothing_is_fitted(tmp_path):
    path = write_rows(tmp_path / "new.jsonl", [{"text": "the cat"}, BREAD])
    assert [row.label for row in read_rows(path, labelled=False)] == [None, "food"]
