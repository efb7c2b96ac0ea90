"""The commands ``pinvnn fit``, ``pinvnn predict`` and ``pinvnn atlas``."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx

from .._lm import Label, Row, Task, check_length, read_rows, run_command, tokens_needed
from ._atlas import run, save_head
from ._head import Head
from ._options import L2_GRID, Options, ReadoutKind
from ._report import BEST_HEAD, PICTURE, REPORT, save, seconds, table
from ._result import Atlas

_KINDS = {str: "strings", int: "numbers", float: "numbers", bool: "booleans"}


def add_commands(commands: Any) -> None:
    """Add the commands ``fit``, ``predict`` and ``atlas`` to a command line.

    Args:
        commands: What ``argparse.ArgumentParser.add_subparsers`` returns. Each command sets ``run``, a function of the
            parsed arguments.
    """
    fit = commands.add_parser(
        "fit",
        help="Fit a head on one layer.",
        description="Fit a head on one layer of a language model, exactly and in one pass over the text.",
    )
    _add_model(fit)
    fit.add_argument(
        "--layer", type=int, required=True, help="The layer: 0 is the embedding, 1 the first layer, -1 the final norm."
    )
    _add_fitting(fit)
    fit.set_defaults(run=run_fit)

    predict = commands.add_parser(
        "predict",
        help="Predict labels with a head.",
        description="Predict the labels of texts with a head, and print one JSON object a text.",
    )
    predict.add_argument("--head", required=True, help="Directory with a head, as fit and atlas write it.")
    predict.add_argument(
        "--model", help="The path to the local model directory or Hugging Face repo. Default: what the head names."
    )
    texts = predict.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", nargs="+", help="One or more texts.")
    texts.add_argument(
        "--data", help="A .jsonl file, or a directory with test.jsonl. Labels that it has are scored on standard error."
    )
    predict.add_argument("--batch-size", type=int, default=Options.batch_size, help="Texts in one forward pass.")
    predict.set_defaults(run=run_predict)

    every = commands.add_parser(
        "atlas",
        help="Score every layer and penalty, and install the best head.",
        description="Fit a head on every layer and for every penalty of a grid, in one pass over the text, and write a "
        "heat map, a JSON report and the best head.",
    )
    _add_model(every)
    every.add_argument(
        "--layers", type=int, nargs="+", help="The layers. Default: all, from the embedding (0) to the final norm (-1)."
    )
    _add_fitting(every)
    every.set_defaults(run=run_atlas)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="The path to the local model directory or Hugging Face repo.")
    parser.add_argument(
        "--data",
        required=True,
        help='Directory with {train, valid, test}.jsonl files: one object with "text" and "label" a line.',
    )
    parser.add_argument("--output", required=True, help="Directory to write to. Checkpoints are kept there meanwhile.")


def _add_fitting(parser: argparse.ArgumentParser) -> None:
    grid = " ".join(f"{value:g}" for value in L2_GRID)
    parser.add_argument(
        "--l2", type=float, nargs="+", default=list(L2_GRID), help=f"Penalties to choose from. Default: {grid}."
    )
    parser.add_argument(
        "--pooling",
        default=Options.pooling,
        help='How a text becomes one vector: "last" token, "mean", or a token position.',
    )
    parser.add_argument(
        "--task",
        choices=get_args(Task),
        default=Options.task,
        help="Default is auto: a regression if labels are numbers with a decimal point.",
    )
    parser.add_argument(
        "--readout",
        choices=get_args(ReadoutKind),
        default=Options.readout,
        help="Least squares, or cross-entropy, for which the features of all training texts are kept. Default: ridge.",
    )
    parser.add_argument("--batch-size", type=int, default=Options.batch_size, help="Texts in one forward pass.")
    length = Options.max_length
    parser.add_argument("--max-seq-length", type=int, default=length, help="Longer texts are cut to this length.")
    parser.add_argument("--save-every", type=float, default=Options.save_every, help="Seconds between checkpoints.")
    parser.add_argument("--restart", action="store_true", help="Ignore an existing checkpoint.")


def run_fit(args: argparse.Namespace) -> None:
    """``pinvnn fit``."""
    result = _run(args, save_head, [args.layer], ("train",))
    if mx.distributed.init().rank() == 0:
        print(table(result), seconds(result), f"Head in {args.output}", sep="\n")


def run_atlas(args: argparse.Namespace) -> None:
    """``pinvnn atlas``."""
    if find_spec("matplotlib") is None:
        raise ValueError("matplotlib must be installed for the heat map: pip install 'pinvnn[heads]'.")
    result = _run(args, save, args.layers, ("train", "valid"))
    if mx.distributed.init().rank() == 0:
        output = Path(args.output)
        print(table(result), seconds(result), sep="\n")
        print(f"Report in {output / REPORT}, heat map in {output / PICTURE}, best head in {output / BEST_HEAD}")


def _run(
    args: argparse.Namespace,
    write: Callable[[Atlas, str | Path], None],
    layers: Sequence[int] | None,
    required: tuple[str, ...],
) -> Atlas:
    options = Options(
        layers=layers,
        l2=args.l2,
        pooling=args.pooling,
        task=args.task,
        batch_size=args.batch_size,
        max_length=args.max_seq_length,
        save_every=args.save_every,
        restart=args.restart,
        progress=True,
        readout=args.readout,
    )
    return run(args.model, args.data, args.output, options, write=write, required=required)


def run_predict(args: argparse.Namespace) -> None:
    """``pinvnn predict``."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, but got {args.batch_size}.")
    head = Head.load(args.head, args.model)

    def rows() -> Iterator[Row]:
        if args.data is None:
            return iter([Row(f"--text {i}", text, None) for i, text in enumerate(args.text, 1)])
        path = Path(args.data)
        return read_rows(path / "test.jsonl" if path.is_dir() else path, labelled=False)

    kind = "numbers" if not head.config.labels else _KINDS[type(head.config.labels[0])]
    for row in rows():  # a bad line is an error before the first answer
        check_length(row, head.source, tokens_needed(head.config.pooling))
        if row.label is not None and _KINDS[type(row.label)] != kind:
            remedy = "Write them as in the training file, or leave them out."
            raise ValueError(f"{row.where}: labels must be {kind} as in the head, but got {row.label!r:.40}. {remedy}")
    answers = head.predict((row.text for row in rows()), args.batch_size)
    known: list[tuple[Label, Label]] = []
    for row, (label, scores) in zip(rows(), answers, strict=True):
        score = {"score": max(scores)} if head.config.labels else {}
        if head.config.scale is not None:
            score["probability"] = 1 / sum(math.exp(head.config.scale * (x - max(scores))) for x in scores)
        print(json.dumps({"text": row.text, "label": label, **score}, ensure_ascii=False))
        if row.label is not None:
            known.append((row.label, label))
    if known:
        kind, value = agreement(known, bool(head.config.labels))
        print(f"{kind} {value:.4f} on {len(known)} texts", file=sys.stderr)


def agreement(pairs: Sequence[tuple[Any, Any]], classification: bool) -> tuple[str, float]:
    """Accuracy or R^2 of pairs (true, predicted)."""
    if classification:
        return "accuracy", sum(true == predicted for true, predicted in pairs) / len(pairs)
    mean = sum(true for true, _ in pairs) / len(pairs)
    spread = sum((true - mean) ** 2 for true, _ in pairs)
    errors = sum((true - predicted) ** 2 for true, predicted in pairs)
    return "R^2", 1 - errors / spread if spread else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m pinvnn.heads``; see :func:`run_command`."""
    return run_command(argv, [add_commands])
