"""Signatures and docstrings as a page wants them; autodoc's hooks, connected in conf.py."""

import re

from sphinx.util.typing import stringify_annotation

from pinvnn import _types

# Longest first, since Bounds contains ArrayLike.
ALIASES = {stringify_annotation(getattr(_types, name), "smart"): name for name in ("Bounds", "ArrayLike")}


def name_types(app, what, name, value, options, signature, returns):
    """Aliases by their names: autodoc sees what they stand for, seven types for each array."""

    def short(text: str | None) -> str | None:
        for expanded, alias in ALIASES.items():
            text = text and text.replace(expanded, alias)
        return text and text.replace("<factory>", "...")

    return short(signature), short(returns)


def link_documents(app, what, name, value, options, lines: list[str]) -> None:
    """``docs/math.md`` in a docstring becomes a link to that page."""
    lines[:] = [re.sub(r"(?<![\w/])docs/(\w+)\.md", r":doc:`docs/\1.md </\1>`", line) for line in lines]
