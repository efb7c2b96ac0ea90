"""Pages that are made from the project itself: the API reference and the gallery. Called by conf.py.

The gallery runs every example on little data (as the tests do) and shows what it printed and drew. What a script gave
is kept in docs/_build/gallery until the script changes.
"""

import hashlib
import importlib
import inspect
import os
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
    "pinvnn.streaming": "Fits that never hold the data",
    "pinvnn.varpro": "Variable projection",
    "pinvnn.heads": "Heads on language models",
    "pinvnn.surgery": "Surgery on language models",
    "pinvnn.testing": "Tests of derivatives",
    "pinvnn.testing.strategies": "Matrices for hypothesis",
}


def public_names(module: ModuleType) -> list[str]:
    """What a module hands out, in the order in which it does: ``__all__``, or its names without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.casefold)
    own = module.__name__.split(".")[0]
    found = []
    for name, value in vars(module).items():
        home = getattr(value, "__module__", own if not inspect.ismodule(value) else "")
        if not name.startswith("_") and home and home.split(".")[0] == own:
            found.append(name)
    return sorted(found, key=str.casefold)


def entry(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    directive = "autoclass" if inspect.isclass(value) else "autofunction" if callable(value) else "autodata"
    return f"## {name}\n\n```{{eval-rst}}\n.. {directive}:: {module}.{name}\n```\n"


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
    images = "\n".join(f"![What {path.name} draws]({picture})" for picture in pictures)
    texts = [f"```text\n{part.strip()}\n```" if part.strip() else "" for part in (rest, output)]
    return "\n\n".join([f"## {path.stem}", f"**{title}**", texts[0], images, texts[1]]) + "\n"


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
    index = "\n".join(["# API reference\n", "```{toctree}", ":maxdepth: 2\n", *MODULES, "```\n"])
    write(here / "api" / "index.md", index)
    write(here / "gallery.md", gallery())
