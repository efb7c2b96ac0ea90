"""Pages that are made from the project itself: the API reference and the gallery. Called by conf.py.

The gallery runs every example on little data (as the tests do) and shows what it printed and drew. What a script gave
is kept in docs/_build/gallery until the script changes.
"""

import ast
import hashlib
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
EXAMPLES = [path for path in sorted((HERE.parent / "examples").glob("[!_]*.py")) if path.stem != "llm_model"]
MODULES = {
    "pinvnn": "Functions of arrays",
    "pinvnn.nn": "Layers",
    "pinvnn.streaming": "Streaming fits",
    "pinvnn.varpro": "Variable projection",
    "pinvnn.heads": "Heads on language models",
    "pinvnn.surgery": "Surgery on language models",
    "pinvnn.testing": "Tests of derivatives",
    "pinvnn.testing.strategies": "Matrices for hypothesis",
}

CONVENTIONS = """Shapes: m rows (samples), n columns (features), k targets, `...` any batch dimensions.

Types: `ArrayLike` is what `mx.array` takes (an array, a NumPy array, a number, nested lists of numbers); `Bounds` is a
pair (lower, upper), each a number, an array that broadcasts against the solution, or None for no bound.
"""


def public_names(module: ModuleType) -> list[str]:
    """What a module hands out: ``__all__``, or what it defines and what it imports as itself (``import x as x``)."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.casefold)
    found = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if alias.name == alias.asname}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    modules = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == module.__name__}
    return sorted({name for name in found - modules if not name.startswith("_")}, key=str.casefold)


def public_members(value: type) -> list[str]:
    """Methods and properties of a class, those of its bases in this package too."""
    own = [vars(base) for base in value.__mro__ if base.__module__.split(".")[0] == "pinvnn"]
    members = {name: member for base in own[::-1] for name, member in base.items() if not name.startswith("_")}
    kinds = (property, classmethod, staticmethod)
    return sorted(name for name, member in members.items() if callable(member) or isinstance(member, kinds))


def entry(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    directive = "autoclass" if inspect.isclass(value) else "autofunction" if callable(value) else "autodata"
    # Methods that come from a private base are described at each class, those of mlx.nn.Module and of tuples are not.
    options = "   :inherited-members: Module, dict, tuple, object\n" if inspect.isclass(value) else ""
    if hasattr(value, "_fields"):  # of a named tuple; the docstring lists them
        options += f"   :exclude-members: {', '.join(value._fields)}\n"
    return f"## {name}\n\n```{{eval-rst}}\n.. {directive}:: {module}.{name}\n{options}```\n"


def api_page(module: str, title: str) -> str:
    entries = [entry(module, name) for name in public_names(importlib.import_module(module))]
    intro = f"```{{eval-rst}}\n.. automodule:: {module}\n   :no-members:\n```\n"
    return "\n".join([f"# {title}: `{module}`\n", intro, *entries])


def run_example(path: Path) -> tuple[str, list[Path]]:
    """What a script prints on little data, and its pictures."""
    key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    folder = HERE / "_build" / "gallery" / f"{path.stem}-{key}"
    if not (folder / "output.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PINVNN_EXAMPLE_SIZE": "small", "PINVNN_EXAMPLE_OUTPUT": str(folder)}
        command = [sys.executable, str(path)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{path.name} failed:\n{done.stdout}\n{done.stderr}")
        (folder / "output.txt").write_text(done.stdout.replace(str(folder) + "/", ""))
    return (folder / "output.txt").read_text(), sorted(folder.glob("*.png"))


def gallery_entry(path: Path, output: str, pictures: list[str]) -> str:
    text = inspect.cleandoc(path.read_text().split('"""')[1])
    title, _, rest = text.partition("\n")
    rest = re.sub(r"(?<=\n\n)(?: {4}.*\n?)+", lambda commands: f"```bash\n{inspect.cleandoc(commands[0])}\n```\n", rest)
    rest = re.sub(r"(?<=\()--[a-z][\w. -]*(?=\))", r"`\g<0>`", rest)  # options within a sentence
    images = "\n".join(f"![What {path.name} draws]({picture})" for picture in pictures)
    printed = f"```text\n{output.strip()}\n```" if output.strip() else ""
    # The empty lines end the HTML, so that the script between them is highlighted like any other.
    summary = f"<details>\n<summary>The script: examples/{path.name}</summary>"
    script = f"{summary}\n\n````python\n{path.read_text()}````\n\n</details>"
    return "\n\n".join([f"## {path.stem}", f"**{title}**", rest.strip("\n"), images, printed, script]) + "\n"


def gallery(run=run_example) -> str:
    """The page; ``run`` gives the output and the pictures of a script."""
    parts = [
        "# Gallery\n",
        "Every example, on the little data of the tests, with what it prints and draws when this page is built.",
        "Without `PINVNN_EXAMPLE_SIZE=small` each works on the data that its text names.\n",
    ]
    (HERE / "_build" / "pictures").mkdir(parents=True, exist_ok=True)
    for path in EXAMPLES:
        output, pictures = run(path)
        shown = []
        for picture in pictures:
            shutil.copy(picture, HERE / "_build" / "pictures" / picture.name)
            shown.append(f"_build/pictures/{picture.name}")
        parts.append(gallery_entry(path, output, shown))
    return "\n".join(parts)


def write(path: Path, text: str) -> None:
    """Only if it is new, so that Sphinx does not build an unchanged page again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_pages(here: Path) -> None:
    for module, title in MODULES.items():
        write(here / "api" / f"{module}.md", api_page(module, title))
    index = "\n".join(["# API reference\n", CONVENTIONS, "```{toctree}", ":maxdepth: 2\n", *MODULES, "```\n"])
    write(here / "api" / "index.md", index)
    write(here / "gallery.md", gallery())
