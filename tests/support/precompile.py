"""Let compiled graphs cost their tests less: ``python tests/support/precompile.py FOLDER``, then FOLDER first in PATH.

On Linux MLX translates each fused kernel of a compiled graph by ``g++``, which spends six sevenths of its time on one
header of MLX. This writes a precompiled copy of it, and a ``g++`` that looks for it there, into the folder.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

HEADER = "mlx/backend/cpu/compiled_preamble.h"
FLAGS = ["-std=c++17", "-O3", "-Wall", "-fPIC"]  # those of MLX: the compiler ignores what was made by others


def main(folder: Path) -> None:
    include, compiler = Path(mx.__file__).parent / "include", shutil.which("g++")
    if not sys.platform.startswith("linux") or compiler is None or not (include / HEADER).exists():
        return
    precompiled = folder / f"{HEADER}.gch"
    precompiled.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, *FLAGS, "-w", "-x", "c++-header", "-I", include, include / HEADER, "-o", precompiled]
    subprocess.run(command, check=True)
    wrapper = folder / "g++"
    wrapper.write_text(f'#!/bin/sh\nexec "{compiler}" -I "{folder}" "$@"\n')
    wrapper.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
