"""Text with labels as mlx-lm keeps it: a folder with ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``.

One JSON object a line, in UTF-8, with the keys ``text`` and ``label``; other keys, blank lines and the byte order mark
that Windows writes are ignored. Everything is checked before the first forward pass, line by line, and every message
names the file and the line. Rows are then read again as they are needed, so that the texts are never all in memory.
"""

import codecs
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias, get_args

import numpy as np

from .._mlx import fail
from .model import LanguageModel

#: What a text may be labelled with.
Label: TypeAlias = str | int | bool | float
#: What is fitted; ``"auto"`` decides by the labels.
Task: TypeAlias = Literal["auto", "classification", "regression"]

LARGEST = 3e38  # the largest number in float32, roughly
_BOM = codecs.BOM_UTF8
_MISSING = {
    "train": "Write the labelled texts there.",
    "valid": "An atlas chooses by it; `pinvnn fit`, or fit_head, does without it.",
    "test": "Write labelled texts there.",
}
_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "a boolean"}


class Row(NamedTuple):
    """A line of a file.

    Attributes:
        where: Its place, FILE:LINE, for messages.
        text: The text.
        label: The label, None if there is none.
    """

    where: str
    text: str
    label: Any


@dataclass(frozen=True)
class Split:
    """Facts about a file that was read and checked.

    Attributes:
        path: The file.
        rows: How many texts it has.
        tokens: How many tokens the texts have in all, after truncation.
        truncated: How many texts are longer than the context.
        digest: SHA-256 of the file, by which an interrupted run recognises it.
    """

    path: Path
    rows: int
    tokens: int
    truncated: int
    digest: str


@dataclass(frozen=True)
class Dataset:
    """Facts about a folder that was read and checked.

    Attributes:
        task: ``"classification"`` or ``"regression"``.
        classes: The labels of a classification, sorted, which is the order of the columns of the targets; empty for a
            regression.
        splits: By name, those of ``train``, ``valid`` and ``test`` that exist.
    """

    task: str
    classes: tuple[Label, ...]
    splits: dict[str, Split]

    @property
    def output_dims(self) -> int:
        """Number of columns of the targets."""
        return len(self.classes) or 1


def fail_at(where: str | Path, rule: str, got: object, remedy: str) -> NoReturn:
    """Raise ValueError about a place in the data."""
    fail("heads", f"{where}: {rule}", got, remedy)


def check_task(task: Task) -> None:
    """Raise ValueError for a task that does not exist."""
    if task not in get_args(Task):
        fail("heads", f"task must be one of {get_args(Task)}", repr(task), 'Pass "auto".')


def read_rows(path: Path, labelled: bool = True) -> Iterator[Row]:
    """The rows of a file, one at a time.

    Raises:
        ValueError: The file is missing, or a line is not what the format asks for.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        fail_at(path, "the file must be one that can be read again", "a pipe or a device", "Save the lines first.")
    try:
        file = open(path, "rb")
    except OSError as error:
        rule, remedy = "the file must be readable, but got:", _MISSING.get(path.stem, "Check the path.")
        raise ValueError(f"[pinvnn.heads] {path}: {rule} {error.strerror}. {remedy}") from None
    with file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(_BOM)
            if line.strip():
                yield _row(f"{path}:{number}", line, labelled)


class _Object(dict[str, Any]):
    """A JSON object that knows which keys it was given twice: of these a dict keeps the last value."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.repeated = sorted({key for key in keys if keys.count(key) > 1}) if len(self) < len(keys) else []


def _row(where: str, line: bytes, labelled: bool) -> Row:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        remedy = "Write one object a line."
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"{\0", b"\0")):
            remedy = "It looks like UTF-16, as PowerShell writes it; `iconv -f UTF-16 -t UTF-8` converts the file."
        elif isinstance(error, UnicodeDecodeError):
            remedy = "Save the file as UTF-8; `iconv -f LATIN1 -t UTF-8` converts it, if that was its encoding."
        fail_at(where, "the line must be JSON in UTF-8", f"{_short(line)} ({error})", remedy)
    if not isinstance(value, _Object):
        fail_at(where, "the line must be a JSON object", _short(line), 'Write {"text": ..., "label": ...}.')
    if value.repeated:
        fail_at(where, "the keys of the object must differ", f"{value.repeated} twice", "Remove one of them.")
    for key in ("text", "label") if labelled else ("text",):
        if key not in value:
            fail_at(where, f'the object must have the key "{key}"', f"the keys {list(value)}", "Add it.")
    text, label = value["text"], value.get("label")
    if not isinstance(text, str) or not text.strip():
        fail_at(where, '"text" must be a string that is not empty', _short(text), "Leave the line out.")
    for key, string in (("text", text), ("label", label)):
        if isinstance(string, str) and (half := _surrogate(string)) is not None:
            rule = f'"{key}" must be Unicode'
            fail_at(where, rule, f"half of a surrogate pair, {half}", "It was cut within an emoji, say: cut elsewhere.")
    if label is not None or labelled:
        if type(label) not in _NAMES:
            fail_at(where, '"label" must be a string, a number or a boolean', _short(label), "Leave the line out.")
        if isinstance(label, int | float) and not abs(label) < LARGEST:
            fail_at(where, '"label" must be finite in float32', _short(label), "Leave the line out, or rescale.")
    return Row(where, text, label)


def _surrogate(text: str) -> str | None:
    r"""The first lone surrogate as ``\\ud83d``, which JSON can write and UTF-8 cannot; None if there is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x} at character {error.start}"
    return None


def _short(value: Any) -> str:
    """A value as JSON, or a line, in quotes and at most 40 characters long."""
    text = value.decode("utf-8", "replace").rstrip() if isinstance(value, bytes) else json.dumps(value)
    return repr(text if len(text) <= 40 else text[:40] + "...")


def read_dataset(
    folder: str | Path,
    source: LanguageModel,
    *,
    names: tuple[str, ...] = ("train", "valid", "test"),
    required: tuple[str, ...] = ("train",),
    task: Task = "auto",
    min_length: int = 1,
) -> Dataset:
    """Read and check a folder.

    Args:
        folder: The folder with the ``.jsonl`` files.
        source: The model that will read the texts: its tokenizer, and the length that longer ones are cut to.
        names: The splits to read if they exist.
        required: Those that must exist.
        task: ``"classification"``, ``"regression"``, or ``"auto"``: regression if every label is a number and at least
            one is written with a decimal point.
        min_length: The smallest number of tokens that the pooling needs.

    Raises:
        ValueError: About a file or a line, which the message names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fail_at(folder, "the data must be a folder with train.jsonl and its like", "no folder", "Check the path.")
    check_task(task)
    labels = _Labels(task)
    splits = {}
    paths = {name: folder / f"{name}.jsonl" for name in names}
    for name in required:
        if not paths[name].exists():
            next(read_rows(paths[name]), None)  # raises
    for name, path in paths.items():
        if name in required or path.exists() or path.is_symlink():  # to nowhere, say
            if name == "test" and _unlabelled(path):
                continue
            training = name == "train"
            splits[name] = _scan(path, source, labels.add if training else labels.check, min_length)
            labels.learned(path) if training else labels.checked(path)
    _warn_truncated(splits.values(), source.max_length)
    return Dataset(labels.task, labels.classes, splits)


def _unlabelled(path: Path) -> bool:
    """Whether no row of a file has a label, which a warning says; it can be predicted but not scored.

    Raises:
        ValueError: Some rows have a label, but not the first one.
    """
    first: Row | None = None
    for row in read_rows(path, labelled=False):
        if row.label is not None:
            if first is not None:
                rule = "either all lines or none must have a label"
                fail_at(first.where, rule, f"none here and one at {row.where}", "Add it, or leave the line out.")
            return False
        first = first or row
    if first is not None:
        remedy = "Label it, or predict it afterwards with `pinvnn predict --data`."
        warnings.warn(f"[pinvnn.heads] {path}: no line has a label, so it is not scored. {remedy}", stacklevel=4)
    return first is not None


class _Labels:
    """Collects the labels of the training file, then checks those of the other files."""

    def __init__(self, task: Task) -> None:
        self.task: Task = task
        self.classes: tuple[Any, ...] = ()
        self._first: Any = None
        self._rounded: Row | None = None  # the first integer that float32 cannot hold
        self._seen: set[Label] = set()
        self._others: set[Label] = set()  # of the file that is being checked

    def add(self, row: Row) -> None:
        """Take in a label of the training file."""
        kind, first = type(row.label), type((self._first or row).label)
        if self.task == "regression":
            self._check_number(row)
        elif kind is not first and (self.task == "classification" or {kind, first} != {int, float}):
            got = f"{_NAMES[kind]} here and {_NAMES[first]} at {self._first.where}"
            fail_at(row.where, "labels must be of one kind", got, "Write all of them in the same way.")
        if self.task == "auto" and kind is float:
            self.task = "regression"
        if self._rounded is None and kind is int and not _in_float32(row.label):
            self._rounded = row
        if self.task == "regression" and self._rounded is not None:
            self._check_number(self._rounded)
        self._first = self._first or row
        if self.task == "regression":
            _add_number(self._seen, row.label)
        else:
            self._seen.add(row.label)

    def learned(self, path: Path) -> None:
        """The training file has ended."""
        if self.task == "regression":  # which may not have been known from the first label on
            self._seen = {float(np.float32(label)) for label in self._seen}
        if len(self._seen) < 2:
            seen = "".join(map(_short, self._seen)) or "no line"
            rule = "the file must have two or more different labels" + " in float32" * (self.task == "regression")
            fail_at(path, rule, f"only {seen}", "A head needs examples of each.")
        if self.task != "regression":
            self.task, self.classes = "classification", tuple(sorted(self._seen))

    def check(self, row: Row) -> None:
        """Check a label of another file against those of the training file."""
        if self.task == "regression":
            self._check_number(row)
            _add_number(self._others, row.label)
        elif type(row.label) is not type(self._first.label) or row.label not in self._seen:
            hint = ' Numbers are regressed on with task "regression".' if type(row.label) in (int, float) else ""
            rule = "the label must occur in the training file"
            fail_at(row.where, rule, _short(row.label), f"Leave the line out, or add examples to train.jsonl.{hint}")

    def checked(self, path: Path) -> None:
        """Another file has ended."""
        if self.task == "regression" and len(self._others) < 2:
            rule = "the file must have two or more different numbers"
            fail_at(path, rule, f"only {self._others.pop():g}", "R^2 needs them.")
        self._others.clear()

    def _check_number(self, row: Row) -> None:
        if type(row.label) not in (int, float):
            rule = "the label of a regression must be a number"
            fail_at(row.where, rule, _short(row.label), "Leave the line out.")
        if type(row.label) is int and not _in_float32(row.label):
            rule = "the label of a regression must be one that float32 holds"
            fail_at(row.where, rule, _short(row.label), "Subtract a constant from all labels, or divide them.")


def _add_number(seen: set[Any], number: float) -> None:
    """Add what is left of a number in float32, until two differ."""
    if len(seen) < 2:
        seen.add(float(np.float32(number)))


def _in_float32(number: int) -> bool:
    return int(np.float32(number)) == number


def read_texts(path: str | Path, source: LanguageModel, min_length: int = 1) -> Split:
    """Read and check a file whose labels, if it has any, do not matter.

    Args:
        path: The file, or a folder with ``train.jsonl``.
        source: The model that will read the texts.
        min_length: The smallest number of tokens that a text must have.

    Raises:
        ValueError: About the file or a line, which the message names.
    """
    path = Path(path)
    split = _scan(path / "train.jsonl" if path.is_dir() else path, source, lambda row: None, min_length, False)
    _warn_truncated([split], source.max_length)
    return split


def _scan(
    path: Path, source: LanguageModel, take: Callable[[Row], None], min_length: int, labelled: bool = True
) -> Split:
    """Read and check a file; ``take`` sees every row."""
    rows = tokens = truncated = 0
    for row in read_rows(path, labelled):
        take(row)
        length = check_length(row, source, min_length)
        cut = min(length, source.max_length)
        rows, tokens, truncated = rows + 1, tokens + cut, truncated + (cut < length)
    if not rows:
        fail_at(path, "the file must have at least one line", "none", "Remove it, or write texts into it.")
    return Split(path, rows, tokens, truncated, _digest(path))


def check_length(row: Row, source: LanguageModel, min_length: int) -> int:
    """Number of tokens of a text, before truncation.

    Raises:
        ValueError: The pooling needs more, or the tokenizer refuses the text.
    """
    length = len(source.tokens(row.text, row.where))
    if min(length, source.max_length) < min_length:
        got = f"{length} in a context of {source.max_length}"
        rule = f"the text must have {min_length} or more tokens for this pooling"
        fail_at(row.where, rule, got, "Leave the line out, or take another pooling.")
    return length


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for line in file:
            digest.update(line)
    return digest.hexdigest()


def _warn_truncated(splits: Iterable[Split], max_length: int) -> None:
    counts = [f"{split.truncated} of {split.rows} in {split.path}" for split in splits if split.truncated]
    if counts:
        warnings.warn(
            f"[pinvnn.heads] texts longer than {max_length} tokens are cut to them: {', '.join(counts)}.", stacklevel=3
        )
