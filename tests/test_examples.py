"""Every example runs, small, and so does every Python block of the documents."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

ROOT = Path(__file__).parents[1]
SMALL, OUTPUT = "PINVNN_EXAMPLE_SIZE", "PINVNN_EXAMPLE_OUTPUT"
# Each example knows that variable, by itself or from _common; llm_model only converts a model that it is given.
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("[!_]*.py")) if path.stem != "llm_model"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)  # "```python notest" does not match
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [path for path in PAGES if BLOCK.search(path.read_text())]

pytestmark = pytest.mark.example


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_runs_small(path, tmp_path):
    environment = {**os.environ, SMALL: "small", OUTPUT: str(tmp_path), "MPLBACKEND": "Agg"}
    command = [sys.executable, str(path)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert result.stdout.strip(), "an example says what it saw"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_code_blocks_of_a_document_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    text = path.read_text()
    for match in BLOCK.finditer(text):
        source, line = match.group(1), text[: match.start(1)].count("\n")
        if source.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(source, session, path.name, str(path), line)
            report: list[str] = []
            failed = runner.run(test, out=report.append, clear_globs=False).failed
            session.update(test.globs)
            assert not failed, "".join(report)
        else:
            exec(compile("\n" * line + source, str(path), "exec"), session)
    mx.synchronize()
