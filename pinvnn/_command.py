"""The command ``pinvnn``: the commands of heads and of surgery."""

from collections.abc import Sequence

from . import heads, surgery
from ._lm import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pinvnn``; see :func:`run_command`."""
    return run_command(argv, [heads.add_commands, surgery.add_commands])
