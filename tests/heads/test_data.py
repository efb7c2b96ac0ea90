"""Reading folders of jsonl: every mistake is named with its file and line before any work."""

import json
import os
from typing import Any

import mlx.core as mx
import pytest

from pinvnn._lm.data import read_dataset, read_rows
from pinvnn._lm.model import LanguageModel, load_model
from pinvnn.heads._features import extract
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


# --- Files as people have them ---------------------------------------------------------------------------------------


def encoded(*rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


CAFE = {"text": "the café", "label": "food"}
# name: the bytes of train.jsonl
READABLE = {
    "byte order mark": encoded(CAT, BREAD).encode("utf-8-sig"),
    "Windows": encoded(CAT, BREAD, end="\r\n").encode("utf-8-sig"),
    "joined files": encoded(CAT).encode("utf-8-sig") + encoded(BREAD).encode("utf-8-sig"),
    "blank lines": b"\n" + encoded(CAT, end="\r\n\r\n").encode() + b" \t\n" + encoded(BREAD).encode() + b"\n\n",
    "no last newline": encoded(CAT, BREAD).rstrip().encode(),
    "no line but the mark": "\ufeff\n".encode() + encoded(CAT, BREAD).encode(),
    "whole emoji": b'{"text": "\\ud83d\\ude00", "label": "animal"}\n' + encoded(BREAD).encode(),
    "repeated key inside": b'{"text": "cat", "label": "animal", "x": {"a": 1, "a": 2}}\n' + encoded(BREAD).encode(),
}


@pytest.mark.parametrize("name", READABLE)
def test_files_as_people_have_them(tmp_path, source, name):
    (tmp_path / "train.jsonl").write_bytes(READABLE[name])
    found = read_dataset(tmp_path, source)
    assert (found.classes, found.splits["train"].rows) == (("animal", "food"), 2)


# name: the bytes of line 2, and the message
UNREADABLE = {
    "latin-1": (encoded(CAFE).encode("latin-1"), r"must be JSON in UTF-8, but got .*0xe9.*iconv"),
    "utf-16": (encoded(CAFE).encode("utf-16"), r"must be JSON in UTF-8, .*looks like UTF-16.*iconv -f UTF-16"),
    "utf-16 without a mark": (encoded(CAFE).encode("utf-16-le"), r"must be JSON in UTF-8, .*looks like UTF-16"),
    "utf-16 of another order": (encoded(CAFE).encode("utf-16-be"), r"must be JSON in UTF-8, .*looks like UTF-16"),
    "NUL": (b'{"text": "a\0b", "label": "food"}\n', r"must be JSON in UTF-8, .*control character.* one object a line"),
    "label list": (b'{"text": "cat", "label": ["food"]}\n', r'"label" must be a string, a number or a boolean'),
    "keys in capitals": (b'{"Text": "cat", "label": "food"}\n', r'must have the key "text", but got .*Text'),
    "5000 digits": (b'{"text": "cat", "label": %s}\n' % (b"1" * 5000), r"must be JSON in UTF-8, .*4300 digits"),
    "half an emoji": (b'{"text": "cat \\ud83d", "label": "food"}\n', r'"text" must be Unicode, .* \\ud83d at .* 4'),
    "other half": (b'{"text": "\\ude00 cat", "label": "food"}\n', r'"text" must be Unicode, .* \\ude00 at .* 0'),
    "half an emoji as label": (b'{"text": "cat", "label": "\\ud83d"}\n', r'"label" must be Unicode'),
    "surrogate in bytes": (b'{"text": "cat \xed\xa0\xbd", "label": "food"}\n', r"must be JSON in UTF-8"),
    "repeated label": (b'{"text": "cat", "label": "food", "label": "a"}\n', r"keys .* differ, .* \['label'\] twice"),
    "repeated text": (b'{"text": "cat", "text": "cat", "label": "food"}\n', r"keys .* differ, .* \['text'\] twice"),
    "number in quotes": (b'{"text": "cat", "label": 1}\n', r"labels must be of one kind"),
    "boolean": (b'{"text": "cat", "label": true}\n', r"labels must be of one kind"),
    "no number": (b'{"text": "cat", "label": NaN}\n', r'"label" must be finite'),
    "nested too deeply": (b"[" * 200_000 + b"\n", r"the line must be JSON in UTF-8, but got '\[\[\["),
    "CSV": (b"text,label\n", r"the line must be JSON"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_what_cannot_be_read_is_named_with_file_and_line(tmp_path, source, name, split):
    line, message = UNREADABLE[name]
    good = encoded(CAT, BREAD).encode()
    for other in ("train", "valid"):
        (tmp_path / f"{other}.jsonl").write_bytes(good)
    (tmp_path / f"{split}.jsonl").write_bytes(encoded(CAT).encode() + line + good)
    if split == "valid" and "kind" in message:
        message = "the label must occur in the training file"
    with pytest.raises(ValueError, match=rf"{split}.jsonl:2: .*{message}") as caught:
        read_dataset(tmp_path, source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("labels", [(1, True), (0, False), ("1", 1), (1, "1"), (True, "true"), (1, 2, "1")])
def test_labels_that_differ_in_type_only(tmp_path, source, labels):
    write_rows(tmp_path / "train.jsonl", numbers(*labels))
    with pytest.raises(ValueError, match=rf"train.jsonl:{len(labels)}: labels must be of one kind"):
        read_dataset(tmp_path, source)


@pytest.mark.parametrize(("labels", "line"), [((1.5, 2**24 + 1), 2), ((2**24 + 1, 3, 1.5), 1)])
def test_integers_that_float32_cannot_hold(tmp_path, source, labels, line):
    write_rows(tmp_path / "train.jsonl", numbers(*labels))
    with pytest.raises(ValueError, match=rf"train.jsonl:{line}: .*that float32 holds, but got '16777217'. Subtract"):
        read_dataset(tmp_path, source)
    write_rows(tmp_path / "train.jsonl", numbers(2**24 + 1, 2**24 + 2))  # classes are not numbers
    assert read_dataset(tmp_path, source).classes == (2**24 + 1, 2**24 + 2)


@pytest.mark.parametrize("kind", [TypeError, ValueError, KeyError, RuntimeError, BaseException])
def test_whatever_a_tokenizer_raises_is_named_with_file_and_line(tmp_path, source, kind, monkeypatch):
    real = source.tokenizer.encode

    def encode(text):
        if "cheese" in text:
            raise kind("cannot\ntake it")
        return real(text)

    class Tokenizer:
        pass

    tokenizer: Any = Tokenizer()
    tokenizer.encode = encode
    source = LanguageModel("", source.model, tokenizer, 8)
    write_rows(tmp_path / "train.jsonl", [CAT, BREAD, {"text": "a cheese", "label": "food"}])
    message = rf"train.jsonl:3: the tokenizer must take the text, but got {kind.__name__}: .*cannot"
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset(tmp_path, source)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"text number 1: the tokenizer must take the text"):
        extract(source, ["the cat", "a cheese"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "the text must have 1 or more tokens for this pooling, but got 0"),
        (None, "the tokenizer must take the text, but got TypeError"),
        ([[1, 2]], "the tokenizer must take the text, but got TypeError"),
        ({"input_ids": [1]}, "the tokenizer must take the text, but got TypeError"),
        ([1.5], "the tokenizer must take the text, but got TypeError"),
        ([1, 10**6], "tokens must be among the [0-9]+ that the model has an embedding of, but got 1 to 1000000"),
        ([-1, 3], "tokens must be among the [0-9]+ that the model has an embedding of, but got -1 to 3"),
    ],
)
def test_whatever_a_tokenizer_returns(tmp_path, source, tokens, message):
    class Tokenizer:
        def encode(self, text):
            return [1, 2] if text == "the cat" else tokens

    tokenizer: Any = Tokenizer()
    write_rows(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(ValueError, match=rf"train.jsonl:2: {message}"):
        read_dataset(tmp_path, LanguageModel("", source.model, tokenizer, 8))


def test_numbers_that_are_one_in_float32(tmp_path, source):
    for labels in [(16777216.0, 16777217.0), (1, 1.0), (0.0, -0.0), (1e-320, 2e-320)]:
        write_rows(tmp_path / "train.jsonl", numbers(*labels))
        with pytest.raises(ValueError, match="train.jsonl: the file must have two or more different labels in float32"):
            read_dataset(tmp_path, source)
    write_rows(tmp_path / "train.jsonl", numbers(1, 2.5))
    write_rows(tmp_path / "valid.jsonl", numbers(16777216.0, 16777217.0))
    with pytest.raises(ValueError, match="valid.jsonl: the file must have two or more different numbers"):
        read_dataset(tmp_path, source)


def test_what_is_no_file_that_can_be_read_twice(tmp_path, source):
    write_rows(tmp_path / "train.jsonl", GOOD)
    (tmp_path / "valid.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"valid.jsonl: the file must be readable, but got: No such file"):
        read_dataset(tmp_path, source)
    (tmp_path / "valid.jsonl").unlink()
    (tmp_path / "valid.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"valid.jsonl: the file must be readable, but got: Is a directory"):
        read_dataset(tmp_path, source)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe.jsonl: the file must be one that can be read again, but got a pipe"):
        next(read_rows(tmp_path / "pipe.jsonl"))


def test_a_missing_valid_file_says_who_does_without(tmp_path, source):
    (tmp_path / "train.jsonl").write_text("not read before the missing file is noticed")
    with pytest.raises(ValueError, match=r"valid.jsonl: the file must be readable, .*`pinvnn fit`, .*does without"):
        read_dataset(tmp_path, source, required=("train", "valid"))


def test_a_test_file_without_labels_is_not_scored(tmp_path, source):
    for name in ("train", "valid"):
        write_rows(tmp_path / f"{name}.jsonl", GOOD)
    write_rows(tmp_path / "test.jsonl", [{"text": "the cat"}, {"text": "a bread", "label": None}])
    with pytest.warns(UserWarning, match=r"test.jsonl: no line has a label, so it is not scored. .*`pinvnn predict"):
        found = read_dataset(tmp_path, source)
    assert sorted(found.splits) == ["train", "valid"]
    write_rows(tmp_path / "test.jsonl", [{"text": "the cat"}, CAT])
    with pytest.raises(ValueError, match=r"test.jsonl:1: either all lines or none must have a label, .*test.jsonl:2"):
        read_dataset(tmp_path, source)
    write_rows(tmp_path / "test.jsonl", [CAT, {"text": "the cat"}])
    with pytest.raises(ValueError, match=r'test.jsonl:2: the object must have the key "label"'):
        read_dataset(tmp_path, source)
