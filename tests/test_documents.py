"""The site lists everything: public names, examples, pages."""

import importlib
import inspect
import json
import pkgutil
import re
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import pinvnn
from pinvnn.testing import gradcheck

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
        ("M_t and M_{t-1} differ", r"$M_{t}$ and $M_{t-1}$ differ"),
        ("S o T, where o is entrywise", r"$S \circ  T$, where $\circ $ is entrywise"),
        ("Let LA(x, g)_t = <k_i, x_t>", r"Let $\operatorname{LA}(x, g)_{t} = ⟨k_{i}, x_{t}⟩$"),
    ],
)
def test_formulas_within_sentences_are_typeset(plain, made):
    assert typeset.inline(plain) == made


def test_long_displays_are_broken_at_their_columns():
    made = typeset.display(["x = " + "a" * 40 + ",    y = " + "b" * 40 + ".    (1)"])
    assert made.count("\\\\") == 1 and made.index("(1)") > made.index("\\\\")


def speed_of_lstsq():
    """The sentence on speed, from the committed results: medians of ratios, the worst errors at condition 1e4."""
    rows = json.loads((ROOT / "benchmarks/results/results.json").read_text())["rows"]
    case = {"op": "lstsq", "batch": 1, "m": 10000, "n": 64, "dtype": "float32", "k": 8}
    (results,) = [row["results"] for row in rows if row["case"] == case and row["mode"] == "backward"]
    ratio = {name: results[name]["ratio"][1] for name in ("jax", "lineax", "torch")}
    error = {name: max(results[name]["errors"]["10000"].values()) for name in ("pinvnn", *ratio)}
    return [
        f"{results['pinvnn']['ms'][1]:.0f} ms on two busy cores",
        f"JAX takes {ratio['jax']:.1f} times as long, lineax {ratio['lineax']:.0f} times and "
        f"PyTorch {ratio['torch']:.0f} times",
        f"{error['pinvnn']:.0e}".replace("e-0", "e-"),
        f"{min(error[name] for name in ratio):.0e}".replace("e-0", "e-") + " and more",
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/features.md", "docs/accuracy.md"])
def test_figures_on_speed_are_those_of_the_committed_results(page):
    text = " ".join((ROOT / page).read_text().split())
    for words in speed_of_lstsq():
        assert words in text


ERRORS = {
    "[Primitive::vjp] Not implemented for SVD": lambda a: mx.grad(lambda a: mx.linalg.pinv(a, stream=mx.cpu).sum())(a),
    "[gather_axis] Cannot calculate VJP with respect to indices": lambda a: mx.grad(
        lambda a: mx.linalg.solve(a, a, stream=mx.cpu).sum()
    )(a),
    "[Primitive::output_shapes] Slice cannot infer output shapes": lambda a: mx.eval(
        mx.compile(pinvnn.pinv, shapeless=True)(a)
    ),
    "[export_function] Unable to serialize primitive CustomTransforms": lambda a: mx.export_function(
        "pinv.mlxfn", pinvnn.pinv, a
    ),
    "fit must be called outside of mx.compile and mx.vmap": lambda a: mx.compile(
        lambda a: pinvnn.nn.LeastSquaresReadout(3, 3).fit(a, a).weight
    )(a),
    "[pinvnn.testing.gradcheck] inputs and outputs must be float64": lambda a: gradcheck(lambda a: a * a, a),
}
# The others need a GPU or a broken installation, or leave MLX with an evaluation that never ends.
HEADINGS = [
    *[text for text in ERRORS if "gather_axis" not in text],
    "[linalg::svd] This op is not yet supported on the GPU",
    "[SVD::eval_cpu] SVD failed with error code",
    "_Map_base::at",
    "float64 is not supported on the GPU",
    "[pinvnn] MLX must have a backend, but got none",
    "NaN only under `mx.compile`",
    "hangs on a matrix with Inf",
    "TF32",
    "A GPU as the default device",
]


@pytest.mark.parametrize("text", HEADINGS)
def test_troubleshooting_has_a_heading_with_this_text(text):
    sections = re.split(r"^#+ ", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    (section,) = [section for section in sections if text in section.split("\n")[0]]
    assert len(section.split("\n")) > 2


@pytest.mark.parametrize("text", ERRORS)
def test_errors_of_troubleshooting_are_those_that_are_raised(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(text)):
        ERRORS[text](mx.random.normal((3, 3), key=mx.random.key(0)))
    assert text in " ".join((DOCS / "troubleshooting.md").read_text().split())


def test_versions_and_lengths_are_told_in_one_way():
    project = (ROOT / "pyproject.toml").read_text()
    versions = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert versions == re.findall(r'ubuntu-latest, python: "(3\.\d+)"', workflow)
    assert f'requires-python = ">={versions[0]}"' in project
    version = re.findall(r'^version = "(.*)"', project, re.MULTILINE)
    assert version == [pinvnn.__version__]
    for path in [*ROOT.glob("pinvnn/*.py"), ROOT / "CITATION.cff", DOCS / "conf.py"]:
        assert version[0] not in path.read_text(), f"{path.name} repeats the version"
    assert len((ROOT / "examples/quickstart.py").read_text().splitlines()) <= 25
