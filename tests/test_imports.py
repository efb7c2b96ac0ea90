"""Imports go down only, and `import pinvnn` explains a missing MLX backend."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pinvnn"

# The rooms of the package, from the ground up. A file may import from the rooms above its own line here, and from its
# own room. A file in the top folder holds a public function: these are one room.
ROOMS = "testing _mlx _factor _rules functions nn streaming varpro _lm heads surgery _command __main__".split()
# Rooms that are entered by their door alone.
DOORS = ("_mlx", "_factor", "_rules", "_lm")
# Files of the top folder that hold no public function, and what they may be imported by.
GROUND = {"_backend", "_files", "_version", "_types"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file of the package stands in."""
    return room_of_parts(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of_parts(parts: tuple[str, ...]) -> str:
    """Of dotted parts below the package: a folder, "functions", or "ground"."""
    if not parts or parts[0] == "__init__":
        return "__init__"
    return parts[0] if parts[0] in ROOMS else "ground" if parts[0] in GROUND else "functions"


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


def imported_names(path: Path, source: str | None = None) -> list[tuple[str, ...]]:
    """What a file imports from this package, as parts below it: `from ..nn._fit import Fit` is (nn, _fit, Fit)."""
    names = [name.split(".") for name, _ in imported_modules(path, source)]
    return [tuple(n[1:]) for n in names if n[0] == "pinvnn"]


each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


@each_file
def test_imports_go_down_only(path):
    room = room_of(path)
    levels = {name: i for i, name in enumerate(["ground", *ROOMS, "__init__"])}
    for name in imported_names(path):
        other = room_of_parts(name)
        assert other == room or levels[other] < levels[room], f"{room} imports {'.'.join(name)} from above"


@each_file
def test_a_private_name_is_imported_by_its_own_package_only(path):
    # All of pinvnn may use a room of the kernel and the files beside it, but nothing with an underscore inside of one.
    home = path.relative_to(PACKAGE).parts[:-1]
    for name in imported_names(path):
        for i, part in enumerate(name):
            if part.startswith("_") and i > 0:
                assert home[:i] == name[:i], f"{'.'.join(name)} is private to {'.'.join(name[:i])}"


LAYERS = [path for path in FILES if room_of(path) in ("testing", "nn", "streaming", "varpro", "heads", "surgery")]


@pytest.mark.parametrize("path", LAYERS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers_enter_other_rooms_by_their_doors(path):
    # They take from a private room what its __init__.py hands out, and nothing behind it.
    for name in imported_names(path):
        if name and name[0] in DOORS and name[0] != room_of(path):
            door = ast.parse((PACKAGE / name[0] / "__init__.py").read_text())
            imports = [node for node in door.body if isinstance(node, ast.ImportFrom)]
            assert len(name) == 2, f"import {name[-1]} from pinvnn.{name[0]}, not from its file {name[1]}.py"
            assert name[1] in {alias.asname for node in imports for alias in node.names}


@each_file
def test_mlx_lm_is_imported_by_its_own_rooms_only_and_inside_functions(path):
    uses = [in_function for name, in_function in imported_modules(path) if name.split(".")[0] == "mlx_lm"]
    assert not uses or (room_of(path) in ("_lm", "heads", "surgery") and all(uses))


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
    rooms = {room_of_parts(name) for name in imported_names(path, source)}
    assert rooms == {"nn", "streaming", "_rules", "functions", "__init__"}
    assert ("mlx_lm.utils.load", True) in imported_modules(path, source)
    names = imported_names(PACKAGE / "_a.py", "from . import _pinv\nfrom ._types import x")
    assert names == [("_pinv",), ("_types", "x")]


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
