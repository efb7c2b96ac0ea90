"""The examples, which are scripts and no package, as modules."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """``examples/<name>.py``, imported."""
    if str(_FOLDER) not in sys.path:
        sys.path.insert(0, str(_FOLDER))
    return import_module(name)
