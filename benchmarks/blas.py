"""Which BLAS a process uses, and the fast one that an MLX process can be given."""

from __future__ import annotations

import glob
import os
import re
import sys

# Debian and Ubuntu (package libopenblas0-pthread), Fedora (openblas-threads); the first that exists.
_OPENBLAS = (
    "/usr/lib/*/openblas-pthread/libopenblas.so.0",
    "/usr/lib64/libopenblasp.so.0",
)
_BLAS = re.compile(r"/[^/]*(blas|lapack|mkl|blis)[^/]*$", re.IGNORECASE)
_BINDING = re.compile(r"cpython|abi3|/_lapack\.so")  # Python's own wrappers are not a BLAS


def preloadable():
    """Path of a multithreaded OpenBLAS to preload, or None."""
    if sys.platform != "linux":
        return None
    return next((path for pattern in _OPENBLAS for path in sorted(glob.glob(pattern))), None)


def loaded(numpy_counts=True):
    """Names of the BLAS and LAPACK libraries in this process, with version and threads where threadpoolctl knows them.

    Args:
        numpy_counts: False if NumPy is here for the harness only, and its BLAS is not what the library calls.
    """
    paths = {path for path in _mapped() if _BLAS.search(path) and not _BINDING.search(path)}
    if not numpy_counts:
        paths = {path for path in paths if "numpy.libs" not in path}
    preloaded = os.path.realpath(os.environ.get("LD_PRELOAD") or "none")
    if preloaded in paths:  # its symbols come first: the library's own is mapped and never called
        paths = {preloaded}
    pools = _pools()
    mark = {preloaded: " (preloaded)"}
    return sorted(os.path.basename(path) + pools.get(path, "") + mark.get(path, "") for path in paths)


def _mapped():
    """Paths of the files mapped into this process, where the system tells."""
    try:
        with open("/proc/self/maps") as maps:
            return {fields[5].rstrip() for line in maps if len(fields := line.split(None, 5)) == 6}
    except OSError:
        return set()


def _pools():
    try:
        from threadpoolctl import threadpool_info  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    return {x["filepath"]: f" {x['version']}, {x['num_threads']} threads" for x in threadpool_info()
            if x["user_api"] == "blas"}
