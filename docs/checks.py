"""What must hold of the site, beside what Sphinx itself checks: the build fails where it does not."""

import re
from pathlib import Path

from link_names import targets
from sphinx.errors import SphinxError
from sphinx.util import logging

# What a browser loads by itself. Links that a reader may follow are no such thing.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc\s*=\s*["']?(?:https?:)?//[^"'>\s]+"""
    r"""|<link\b(?=[^>]*\brel\s*=\s*["']?(?:stylesheet|preload|icon|shortcut))[^>]*\bhref\s*=\s*["']?(?:https?:)?//[^"'>\s]+"""
    r"""|(?:url\(|@import)\s*["']?(?:https?:)?//[^"')\s]+"""
)


def report_missing(app, env) -> None:
    """A public name, a method or a property that no page describes is a warning, and so fails the build."""
    described = {*env.domains["py"].objects, *env.domains["py"].modules}
    for name in sorted(set(targets().values()) - described):
        logging.getLogger(__name__).warning("no page of the API reference describes %s", name)


def refuse_network(app, exception) -> None:
    """Formulas, fonts and search are part of the build: no page loads anything from a network."""
    if exception is None and app.builder.format == "html":
        for path in [*Path(app.outdir).rglob("*.html"), *Path(app.outdir).rglob("*.css")]:
            if found := LOADED.search(path.read_text()):
                raise SphinxError(f"{path.relative_to(app.outdir)} loads from a network: {found[0]}")
