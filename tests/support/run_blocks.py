"""Run the Python blocks of Markdown files, and scripts: `python run_blocks.py README.md examples/quickstart.py`.

For an environment that holds the wheel alone: it imports the standard library only, and leaves the folder of the
sources, so that the installed package is what runs.
"""

import os
import re
import runpy
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)  # "```python notest" does not match


def main(paths: list[Path]) -> None:
    os.chdir(tempfile.mkdtemp())
    for path in paths:
        if path.suffix == ".py":
            runpy.run_path(str(path), run_name="__main__")
            continue
        session = {"__name__": "__main__"}
        for match in BLOCK.finditer(path.read_text()):
            exec(compile(match.group(1), str(path), "exec"), session)
        print(f"{path.name}: ran")
    import pinvnn

    print(f"pinvnn {pinvnn.__version__} in {Path(pinvnn.__file__).parent}")


if __name__ == "__main__":
    main([Path(argument).resolve() for argument in sys.argv[1:]])
