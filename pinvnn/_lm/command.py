"""A command line whose mistakes are one line on standard error and exit code 2."""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .._version import version

USAGE_ERROR, INTERRUPTED = 2, 130


def run_command(argv: Sequence[str] | None, groups: Sequence[Callable[[Any], None]]) -> int:
    """Run the command ``pinvnn``.

    Args:
        argv (list(str)): Its arguments. Default: those of the process.
        groups: Functions that add commands to what ``add_subparsers`` returns.

    Returns:
        int: The exit code: 0, 2 for a mistake, which is one line on standard error, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="pinvnn", description="Least squares on language models that mlx-lm loads: closed-form heads, and surgery."
    )
    parser.add_argument("--version", action="version", version=f"pinvnn {version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in groups:
        add(commands)
    commands.metavar = "{" + ",".join(commands.choices) + "}"
    args = parser.parse_args(argv)
    name = f"pinvnn {args.command}"

    def warn(message: object, *_: object, **__: object) -> None:
        print(f"{name}: warning: {_plain(message)}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message=r"\[pinvnn")
            warnings.showwarning = warn
            args.run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"{name}: error: {_plain(error)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted. The same command goes on from its last checkpoint.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _plain(message: object) -> str:
    """A message in one line, without the name of the function that raised it."""
    return re.sub(r"^\[pinvnn[^]]*\] ", "", " ".join(str(message).split()))
