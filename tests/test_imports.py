"""Imports go down only, and `import pinvnn` explains a missing MLX backend."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pinvnn"

# A module may import from the rows above its own, and a package (testing, nn, ...) from itself. A new module goes here.
ROWS = [
    "_backend _version _types _dtypes _place testing",
    "_rank _attach _checks _blocks",
    "_eager _factor _square_rules",
    "_full_rank",
    "_values",
    "_ridge_values",
    "_spectral _products",
    "_rules _dual_rules _ridge_rules _ridge_inverse",
    "_pinv _ridge",
    "_lstsq _subspaces",
    "nn",
    "streaming",
    "varpro",
    "heads",
    "__init__",
]
LEVELS = {name: level for level, row in enumerate(ROWS) for name in row.split()}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The name in LEVELS that a file of the package belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path, source: str | None = None) -> list[tuple[str, bool]]:
    """(absolute dotted name, inside a function) of everything a file imports, `from x import y` as x.y."""
    found = []

    def visit(node: ast.AST, in_function: bool):
        if isinstance(node, ast.Import):
            found.extend((alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `from . import x` in pinvnn/nn/a.py is relative to pinvnn.nn
                parents = ("pinvnn", *path.relative_to(PACKAGE).parts)[: -node.level]
                base = ".".join([*parents, base]).rstrip(".")
            found.extend((f"{base}.{alias.name}", in_function) for alias in node.names)
        inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text() if source is None else source), False)
    return found


def imported_units(path: Path, source: str | None = None) -> set[str]:
    """The units of this package that a file imports; the package itself counts as `__init__`."""
    names = [name.split(".") for name, _ in imported_modules(path, source)]
    return {n[1] if len(n) > 1 and n[1] in LEVELS else "__init__" for n in names if n[0] == "pinvnn"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    unit = unit_of(path)
    assert unit in LEVELS, f"give pinvnn/{unit} a row in this file"
    for other in imported_units(path) - {unit}:
        assert LEVELS[other] < LEVELS[unit], f"{unit} (level {LEVELS[unit]}) imports {other} (level {LEVELS[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_mlx_lm_is_imported_by_heads_only_and_inside_functions(path):
    uses = [in_function for name, in_function in imported_modules(path) if name.split(".")[0] == "mlx_lm"]
    assert not uses or (unit_of(path) == "heads" and all(uses))


def test_the_reader_of_imports_sees_every_form():
    # Without this the two tests above could pass by seeing nothing.
    source = """
from . import _readout
from ._readout import x
from .. import streaming
from .._rules import y
import pinvnn._pinv as p
import pinvnn
def f():
    from mlx_lm.utils import load
"""
    path = PACKAGE / "nn" / "imagined.py"
    assert imported_units(path, source) == {"nn", "streaming", "_rules", "_pinv", "__init__"}
    assert ("mlx_lm.utils.load", True) in imported_modules(path, source)
    assert imported_units(PACKAGE / "_a.py", "from . import _rank\nfrom ._types import x") == {"_rank", "_types"}


def import_pinvnn(fake_mlx: Path) -> subprocess.CompletedProcess:
    # The backend check alone, from the package's source, with the fake mlx found before any installed one.
    code = "import runpy; runpy.run_path(PATH)['require_backend']()".replace("PATH", repr(str(PACKAGE / "_backend.py")))
    environment = {**os.environ, "PYTHONPATH": str(fake_mlx)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("libmlx.so: cannot open shared object file: No such file or directory", "pip install 'pinvnn[cpu]'"),
        ("some other reason", "ImportError: some other reason"),
    ],
)
def test_a_missing_backend_names_the_extra_to_install(tmp_path, message, expected):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text(f"raise ImportError({message!r})")
    result = import_pinvnn(tmp_path)
    assert result.returncode == 1
    assert expected in result.stderr
    assert ("[pinvnn]" in result.stderr) == ("libmlx" in message)


def test_the_package_makes_the_backend_check_before_it_imports_mlx():
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    calls = [i for i, node in enumerate(body) if isinstance(node, ast.Expr) and "require_backend" in ast.dump(node)]
    imports = [i for i, node in enumerate(body) if isinstance(node, ast.ImportFrom) and node.level]
    assert len(calls) == 1
    assert [ast.unparse(body[i]) for i in imports if i < calls[0]] == ["from ._backend import require_backend"]
