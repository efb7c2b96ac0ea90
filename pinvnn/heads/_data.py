"""Text with labels as mlx-lm keeps it: a folder with ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``.

One JSON object a line, with the keys ``text`` and ``label``; other keys and blank lines are ignored. Everything is
checked before the first forward pass, line by line, and every message names the file and the line. Rows are then read
again as they are needed, so that the texts are never all in memory.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ._model import LanguageModel

Label = str | int | bool | float

LARGEST = 3e38  # of a number in float32
TASKS = ("classification", "regression")
_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "a boolean"}


class Row(NamedTuple):
    """A line of a file: its place for a message, FILE:LINE, its text, and its label or None."""

    where: str
    text: str
    label: Any


@dataclass(frozen=True)
class Split:
    """A file that was read and checked once.

    Attributes:
        path: The file.
        rows: How many texts it has.
        tokens: How many tokens they have together, after truncation.
        truncated: How many texts are longer than the context.
        digest: SHA-256 of the file, by which an interrupted run knows it again.
    """

    path: Path
    rows: int
    tokens: int
    truncated: int
    digest: str


@dataclass(frozen=True)
class Dataset:
    """A folder that was read and checked.

    Attributes:
        task: ``"classification"`` or ``"regression"``.
        classes: The labels of a classification, sorted; the column of each in the targets.
        splits: By name, those of ``train``, ``valid`` and ``test`` that exist.
    """

    task: str
    classes: tuple[Label, ...]
    splits: dict[str, Split]

    @property
    def output_dims(self) -> int:
        return len(self.classes) or 1


def fail(where: str | Path, rule: str) -> ValueError:
    """The error of a place in a file, of one line."""
    return ValueError(f"[pinvnn.heads] {where}: {rule}")


def read_rows(path: Path, labelled: bool = True) -> Iterator[Row]:
    """The rows of a file, one at a time.

    Raises:
        ValueError: The file is missing, or a line is not what the format asks for.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise fail(path, f"the file must be readable, but got: {error.strerror}.") from None
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield _row(where, line, labelled)


def _row(where: str, line: bytes, labelled: bool) -> Row:
    try:
        value = json.loads(line.decode("utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise fail(where, f"the line must be JSON in UTF-8, but got {_short(line)} ({error}).") from None
    if not isinstance(value, dict):
        raise fail(where, f"the line must be a JSON object, but got {_short(line)}.")
    for key in ("text", "label") if labelled else ("text",):
        if key not in value:
            raise fail(where, f'the object must have the key "{key}", but got the keys {list(value)}.')
    text, label = value["text"], value.get("label")
    if not isinstance(text, str) or not text.strip():
        raise fail(where, f'"text" must be a string that is not empty, but got {_short(text)}.')
    if label is not None or labelled:
        if type(label) not in _NAMES:
            raise fail(where, f'"label" must be a string, a number or a boolean, but got {_short(label)}.')
        if isinstance(label, int | float) and not abs(label) < LARGEST:
            raise fail(where, f'"label" must be finite in float32, but got {_short(label)}.')
    return Row(where, text, label)


def _short(value: Any) -> str:
    text = value.decode("utf-8", "replace").rstrip() if isinstance(value, bytes) else json.dumps(value)
    return repr(text if len(text) <= 40 else text[:40] + "...")


def read_dataset(
    folder: str | Path,
    source: LanguageModel,
    *,
    names: tuple[str, ...] = ("train", "valid", "test"),
    required: tuple[str, ...] = ("train",),
    task: str = "auto",
    min_length: int = 1,
) -> Dataset:
    """Read and check a folder.

    Args:
        folder: The folder with the ``.jsonl`` files.
        source: The model that will read the texts: its tokenizer, and the length that longer ones are cut to.
        names: The splits to read where they exist.
        required: Those that must exist.
        task: ``"classification"``, ``"regression"``, or ``"auto"``: regression if every label is a number and at least
            one is written with a decimal point.
        min_length: The fewest tokens that the pooling can do with.

    Raises:
        ValueError: Something about a file or a line; the message says which.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise fail(folder, "the data must be a folder with train.jsonl and its like, but got no folder.")
    if task not in ("auto", *TASKS):
        raise ValueError(f'[pinvnn.heads] task must be "auto" or one of {TASKS}, but got {task!r}.')
    labels = _Labels(task)
    splits = {}
    for name in names:
        path = folder / f"{name}.jsonl"
        if name in required or path.exists():
            splits[name] = _scan(path, source, labels, name == "train", min_length)
    _warn_truncated(splits.values(), source.max_length)
    return Dataset(labels.task, labels.classes, splits)


class _Labels:
    """Learns the labels of the training file, then checks those of the others."""

    def __init__(self, task: str):
        self.task, self.classes = task, ()
        self._first: Any = None
        self._seen: set[Label] = set()

    def add(self, row: Row) -> None:
        kind, first = type(row.label), type((self._first or row).label)
        if self.task == "regression":
            self._check_number(row)
        elif kind is not first and (self.task == "classification" or {kind, first} != {int, float}):
            rule = "labels must be of one kind, but got"
            raise fail(row.where, f"{rule} {_NAMES[kind]} here and {_NAMES[first]} at {self._first.where}.")
        if self.task == "auto" and kind is float:
            self.task = "regression"
        self._first = self._first or row
        if self.task != "regression" or len(self._seen) < 2:  # of numbers only whether they differ is of interest
            self._seen.add(row.label)

    def learned(self, path: Path) -> None:
        """The training file has ended."""
        if len(self._seen) < 2:
            seen = "".join(map(_short, self._seen)) or "no line"
            raise fail(path, f"the file must have two or more different labels, but got only {seen}.")
        if self.task != "regression":
            self.task, self.classes = "classification", tuple(sorted(self._seen))

    def check(self, row: Row) -> None:
        if self.task == "regression":
            self._check_number(row)
        elif type(row.label) is not type(self._first.label) or row.label not in self._seen:
            hint = ' Numbers are regressed on with task "regression".' if type(row.label) in (int, float) else ""
            raise fail(row.where, f"the label must occur in the training file, but got {_short(row.label)}.{hint}")

    def _check_number(self, row: Row) -> None:
        if type(row.label) not in (int, float):
            raise fail(row.where, f"the label of a regression must be a number, but got {_short(row.label)}.")


def _scan(path: Path, source: LanguageModel, labels: _Labels, training: bool, min_length: int) -> Split:
    rows = tokens = truncated = 0
    numbers: set[Label] = set()
    for row in read_rows(path):
        labels.add(row) if training else labels.check(row)
        length = check_length(row, source, min_length)
        cut = min(length, source.max_length)
        rows, tokens, truncated = rows + 1, tokens + cut, truncated + (cut < length)
        if len(numbers) < 2:
            numbers.add(row.label)
    if not rows:
        raise fail(path, "the file must have at least one line, but got none.")
    if training:
        labels.learned(path)
    elif labels.task == "regression" and len(numbers) < 2:
        raise fail(path, f"the file must have two or more different numbers, but got only {numbers.pop()}.")
    return Split(path, rows, tokens, truncated, _digest(path))


def check_length(row: Row, source: LanguageModel, min_length: int) -> int:
    """Tokens of a text, before truncation.

    Raises:
        ValueError: They are too few for the pooling.
    """
    length = len(source.tokens(row.text))
    if min(length, source.max_length) < min_length:
        got = f"{length} in a context of {source.max_length}"
        raise fail(row.where, f"the text must have {min_length} or more tokens for this pooling, but got {got}.")
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
