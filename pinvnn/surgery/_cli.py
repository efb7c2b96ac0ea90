"""The commands ``pinvnn repair``, ``pinvnn shorten`` and ``pinvnn erase``."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx

from .._lm import CHECKPOINT, Checkpoint, Task, check_folder
from ._erase_report import ERASE, erase_command
from ._repair import REPAIR, repair
from ._shorten import SHORTEN, shorten


def add_commands(commands: Any) -> None:
    """Add the commands ``repair``, ``shorten`` and ``erase`` to a command line.

    Args:
        commands: What ``argparse.ArgumentParser.add_subparsers`` returns. Each command sets ``run``, a function of the
            parsed arguments.
    """
    parser = commands.add_parser(
        "repair",
        help="Correct a quantized model by low-rank adapters.",
        description="Find for each quantized layer the low-rank correction after which it does most nearly what the "
        "original layer does on some text, and write an adapter for mlx-lm, a JSON report and a picture.",
    )
    parser.add_argument("--model", required=True, help="The quantized model: a directory or Hugging Face repo.")
    parser.add_argument("--original", required=True, help="The model that was quantized.")
    _add_data(parser)
    parser.add_argument("--rank", type=int, default=32, help="Rank of the corrections. Default: 32.")
    parser.set_defaults(run=run_repair)

    parser = commands.add_parser(
        "shorten",
        help="Take layers out of a model.",
        description="Take the decoder layers out of a model whose work a linear map does best, fold that map into the "
        "layer before them, and write an ordinary model folder, a JSON report and a picture.",
    )
    parser.add_argument("--model", required=True, help="The model: a directory or Hugging Face repo.")
    _add_data(parser)
    parser.add_argument("--skip", type=int, default=4, help="Number of layers to take out. Default: 4.")
    parser.add_argument("--start", type=int, help="The layer before them, 1 is the first. Default: the best.")
    parser.add_argument("--l2", type=float, help="Penalty; inf drops the layers. Default: by cross validation (GCV).")
    parser.set_defaults(run=run_shorten)

    parser = commands.add_parser(
        "erase",
        help="Erase a concept from the states of a layer.",
        description="Find the affine map of the states of a layer after which no linear readout tells the labels of "
        "some texts, and write it with a JSON report and a picture.",
    )
    parser.add_argument("--model", required=True, help="The model: a directory or Hugging Face repo.")
    _add_data(parser)
    parser.add_argument("--layer", type=int, required=True, help="The layer: 0 is the embedding, 1 the first layer.")
    parser.add_argument(
        "--pooling",
        default="tokens",
        help='What is erased of: all "tokens", the "last" one, the "mean", or a token position. Default: tokens.',
    )
    parser.add_argument(
        "--task",
        choices=get_args(Task),
        default="auto",
        help="Default is auto: a regression if labels are numbers with a decimal point.",
    )
    parser.set_defaults(run=run_erase)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help='Directory with train.jsonl: one object with "text" (and "label" to erase) a line; valid.jsonl is scored.',
    )
    parser.add_argument("--output", required=True, help="Directory to write to. Checkpoints are kept there meanwhile.")
    parser.add_argument("--batch-size", type=int, default=16, help="Texts in one forward pass.")
    parser.add_argument("--max-seq-length", type=int, default=2048, help="Longer texts are cut to this length.")
    parser.add_argument("--save-every", type=float, default=60.0, help="Seconds between checkpoints.")
    parser.add_argument("--restart", action="store_true", help="Ignore an existing checkpoint.")


def _prepare(args: argparse.Namespace) -> Path:
    """The output folder, after a check that everything can be written there."""
    if find_spec("matplotlib") is None:
        raise ValueError("matplotlib must be installed for the picture: pip install 'pinvnn[heads]'.")
    output = Path(args.output)
    if mx.distributed.init().rank() == 0:
        check_folder(output)
        check_folder(output / CHECKPOINT)
    return output


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = {"batch_size": "batch_size", "max_length": "max_seq_length", "save_every": "save_every"}
    return {**{key: getattr(args, name) for key, name in names.items()}, "restart": args.restart}


def _finish(output: Path) -> None:
    Checkpoint(output / CHECKPOINT, {}, mx.distributed.init().rank()).remove()


def run_repair(args: argparse.Namespace) -> None:
    """``pinvnn repair``."""
    output = _prepare(args)
    said = repair(args.model, args.original, args.data, output, rank=args.rank, **_options(args))
    _finish(output)
    if said is not None:
        print(said)
        print(f"Adapter, {REPAIR}.json and {REPAIR}.png in {output}")


def run_shorten(args: argparse.Namespace) -> None:
    """``pinvnn shorten``."""
    output = _prepare(args)
    chosen = {"skip": args.skip, "start": args.start, "l2": args.l2}
    said = shorten(args.model, args.data, output, **chosen, **_options(args))
    _finish(output)
    if said is not None:
        print(said)
        print(f"Model, {SHORTEN}.json and {SHORTEN}.png in {output}")


def run_erase(args: argparse.Namespace) -> None:
    """``pinvnn erase``."""
    output = _prepare(args)
    chosen = {"pooling": args.pooling, "task": args.task}
    said = erase_command(args.model, args.data, output, args.layer, **chosen, **_options(args))
    _finish(output)
    if said is not None:
        print(said)
        print(f"Eraser, {ERASE}.json and {ERASE}.png in {output}")
