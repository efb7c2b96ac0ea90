"""Three topics, and folders of invented text about them."""

import importlib.util
import json
import random
from pathlib import Path

TOPICS = {
    "animal": "cat dog horse bird fish cow sheep".split(),
    "food": "bread soup cheese apple rice cake".split(),
    "place": "city river mountain lake country town".split(),
}
FILLER = "the a of and with very small large old new some that is in".split()


def load_example(name: str):
    """A script of examples/ as a module."""
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(count: int, seed: int, regression: bool = False) -> list[dict]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        topic = rng.choice(sorted(TOPICS))
        words = rng.choices(FILLER, k=rng.randint(1, 9)) + rng.choices(TOPICS[topic], k=3)
        rng.shuffle(words)
        found.append({"text": " ".join(words), "label": len(words) / 2 if regression else topic})
    return found


def write_rows(path: Path, values: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def write_folder(folder: Path, train: int, held_out: int, regression: bool = False) -> Path:
    for seed, (name, count) in enumerate({"train": train, "valid": held_out, "test": held_out}.items()):
        write_rows(folder / f"{name}.jsonl", rows(count, seed, regression))
    return folder
