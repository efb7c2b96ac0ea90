"""How much of the public interface has types: `python -m tests.types.score`, run by make lint; it fails below 99 %."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

LEAST = 0.99


def with_init(folder: str) -> None:
    """Shadow MLX by the same files and an `__init__.py`.

    MLX is a namespace package, of which `pyright --verifytypes` does not see that it is typed: every Module would count
    as a class of unknown base.
    """
    (Path(folder) / "mlx").mkdir()
    (Path(folder) / "mlx" / "__init__.py").touch()
    for path in (Path(sysconfig.get_paths()["platlib"]) / "mlx").iterdir():
        if path.suffix == ".py" or path.name in ("core", "nn", "optimizers", "py.typed"):
            (Path(folder) / "mlx" / path.name).symlink_to(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with_init(folder)
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # pyright asks its python
            "PYTHONPATH": os.pathsep.join([folder, str(Path(__file__).parents[2])]),
        }
        command = [sys.executable, "-m", "pyright", "--verifytypes", "pinvnn", "--ignoreexternal", "--outputjson"]
        output = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    report = json.loads(output[output.index("{") :])["typeCompleteness"]
    for symbol in report["symbols"]:
        for found in symbol["diagnostics"] if symbol["isExported"] or not symbol["isTypeKnown"] else []:
            if found["severity"] == "error":
                print(f"{symbol['name']}: {' '.join(found['message'].split())}")
    score = report["completenessScore"]
    print(f"types of the public interface: {score:.1%}")
    if score < LEAST:
        sys.exit(f"below {LEAST:.0%}: annotate what is listed above")


if __name__ == "__main__":
    main()
