"""Signatures and docstrings as a page wants them; autodoc's hooks, connected in conf.py."""

import re

from sphinx.util.typing import stringify_annotation

from pinvnn import _types

# Longest first, since Bounds contains ArrayLike.
ALIASES = {stringify_annotation(getattr(_types, name), "smart"): name for name in ("Bounds", "ArrayLike")}


def name_types(app, what, name, value, options, signature, returns):
    """Aliases by their names: autodoc sees what they stand for, seven types for each array."""

    def short(text: str | None) -> str | None:
        text = text and text.replace("~numpy.ndarray[~typing.Any, ~typing.Any]", "np.ndarray[Any, Any]")
        for expanded, alias in ALIASES.items():
            text = text and text.replace(expanded, alias)
        return text and text.replace("<factory>", "...")

    return short(signature), short(returns)


def prepare(app, what, name, value, options, lines: list[str]) -> None:
    """Docstrings before napoleon reads them: pages are linked, and no sentence is taken for a type or a list."""
    for i, line in enumerate(lines):
        line = re.sub(r"(?<![\w/])docs/(\w+)\.md", r":doc:`docs/\1.md </\1>`", line)
        line = re.sub(r"^(\s*[A-Z])\. (?=[A-Z])", r"\1\\. ", line)  # "G. H. Golub" is no item of a list
        # What stands before a colon would be the type: of what is returned, or of a property.
        sentence = re.match(r"[^:]*``|(?:\w+ )+\w+:", line.strip())
        first = i == 0 and what in ("property", "attribute")
        if (first or i and re.match(r"\s*(Returns|Yields):$", lines[i - 1])) and ": " in line and sentence:
            line = re.sub(r"^(\s*)", r"\1: ", line)
        lines[i] = line
    if what == "data" and lines and lines[0] == (type(value).__doc__ or "").split("\n")[0]:
        lines.clear()
