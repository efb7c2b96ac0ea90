"""The site lists everything: public names, examples, pages."""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import pinvnn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402
import typeset  # noqa: E402

sys.path.remove(str(DOCS))


def test_every_public_module_has_a_page():
    # pinvnn.heads.__main__ and files with an underscore are no modules for users.
    found = [m.name for m in pkgutil.walk_packages(pinvnn.__path__, "pinvnn.")]
    public = {name for name in found if not any(part.startswith("_") for part in name.split("."))}
    assert public | {"pinvnn"} == set(generate.MODULES)


@pytest.mark.parametrize("module", generate.MODULES)
def test_every_public_name_has_an_entry_and_a_docstring(module):
    # Read from the source, independently of what generate.py looks at.
    source = inspect.getsource(importlib.import_module(module))
    if module == "pinvnn":
        names = set(pinvnn.__all__)
    elif module == "pinvnn.testing.strategies":
        names = set(re.findall(r"^def ([a-z]\w*)", source, re.MULTILINE))
    else:
        names = set(re.findall(r"^from \.+\w* import \w+ as (\w+)", source, re.MULTILINE))
    page = generate.api_page(module, generate.MODULES[module])
    for name in names:
        assert f":: {module}.{name}\n" in page or f"{module}.{name}" in generate.MODULES, f"{name} has no entry"
        value = getattr(importlib.import_module(module), name)
        assert not callable(value) or inspect.getdoc(value), f"{name} has no docstring"


def test_every_example_is_in_the_gallery():
    page = generate.gallery(run=lambda path: (f"printed by {path.name}", []))
    examples = {path.stem for path in (ROOT / "examples").glob("[!_]*.py")} - {"llm_model"}  # converts a given model
    assert {path.stem for path in generate.EXAMPLES} == examples
    for name in examples:
        assert f"## {name}\n" in page
        assert f"printed by {name}.py" in page


def test_every_page_can_be_reached():
    listed = (DOCS / "index.md").read_text()
    for path in [*DOCS.glob("*.md"), *DOCS.glob("notebooks/*.md")]:
        name = str(path.relative_to(DOCS).with_suffix(""))
        assert name == "index" or f"\n{name}\n" in listed, f"{name} is in no table of contents"


@pytest.mark.parametrize(
    ("plain", "made"),
    [
        ("A is m x n, m >= n.", r"$A$ is $m × n$, $m \ge  n$."),
        ("A wide problem (A^T if A is real)", r"A wide problem ($A^{T}$ if $A$ is real)"),
        ("*Derivation*, by P = P A P and (A P)^H", r"*Derivation*, by $P = P A P$ and $(A P)^{H}$"),
        ("<X_bar, dX> summed over the inputs", r"$⟨\bar{X}, \mathrm{d}X⟩$ summed over the inputs"),
        ("a rule of `A x` in [A b](c.md), 1e-16", "a rule of `A x` in [A b](c.md), 1e-16"),
        ("| l2 | 1 |", "| ${l2}$ | 1 |"),
    ],
)
def test_formulas_within_sentences_are_typeset(plain, made):
    assert typeset.inline(plain) == made
