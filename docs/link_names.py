"""Public names in inline code become links to their entries in the API reference.

The documents stay plain Markdown: `lstsq`, `ridge(a, b, l2)`, `LeastSquaresReadout.log_evidence`, `nn.MesaLayer`.
"""

import importlib
import inspect
from collections.abc import Iterator

from docutils import nodes
from generate import MODULES, public_members, public_names
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

# Of these modules a name alone is enough; names such as exp and fit need their module.
BARE = ("pinvnn", "pinvnn.nn", "pinvnn.streaming", "pinvnn.testing")
# Names that other libraries have as well, and words that the documents use for something else.
AMBIGUOUS = {"pinvnn", "nn", "varpro", "testing", "streaming", "heads"}


def targets() -> dict[str, str]:
    """What may stand in the documents, and the full name of what it means."""
    found = {}
    for module in MODULES:
        found |= dict.fromkeys({module, module.removeprefix("pinvnn.")} - AMBIGUOUS, module)
        for name in public_names(importlib.import_module(module)):
            full = f"{module}.{name}"
            spellings = {full, full.removeprefix("pinvnn."), *([name] if module in BARE else [])}
            found |= dict.fromkeys(spellings - AMBIGUOUS, full)
            value = getattr(importlib.import_module(module), name)
            if inspect.isclass(value):
                for member in public_members(value):
                    found |= dict.fromkeys((f"{spelling}.{member}" for spelling in spellings), f"{full}.{member}")
    readout = "pinvnn.nn.LeastSquaresReadout."
    for full in {full for full in found.values() if full.startswith(readout)}:
        found[f".{full.removeprefix(readout)}"] = full
    return found


class LinkNames(SphinxTransform):
    """Runs over every page once it is read."""

    default_priority = 500

    def apply(self, **kwargs) -> None:
        names = self.config.pinvnn_names
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().partition("(")[0]
            outer = (nodes.reference, addnodes.pending_xref, nodes.title, addnodes.desc_signature)
            if name not in names or any(isinstance(parent, outer) for parent in parents(literal)):
                continue
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=names[name], refexplicit=True, refwarn=True
            )
            link["refdoc"] = self.env.docname
            literal.replace_self(link)
            link += literal


def parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node
