# What a person or CI runs here. Python >= 3.10, make and the package registries are all that is needed.
PYTHON ?= python3
VENV   := .venv
DEMO   := .venv-demo
BUNDLE := bundles/emoji-ldm
PIP    := python -m pip --disable-pip-version-check
# A worker that dies ends the run at once: with --dist loadfile, pytest-xdist can wait for a replacement's tests for ever.
# Its own order, files with most tests first, would leave the longest tests to the end; tests/conftest.py has another.
PYTEST := $(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: help venv link check format test test-all test-installed demo bench gpu-check clean

help:
	@echo "make demo            8 pictures from prompts into out/demo, in an environment without torch"
	@echo "make test            the tests, without those marked slow"
	@echo "make test-all        all tests"
	@echo "make test-installed  the torch-free tests against an installed wheel with base + cpu only"
	@echo "make check           ruff, mypy, pyright"
	@echo "make format          ruff's formatter and its safe fixes"
	@echo "make bench           the benchmarks of benchmarks/"
	@echo "make gpu-check       on a machine with an NVIDIA GPU: parity, latency and the tests that need one"
	@echo "make venv | link     .venv with everything | .link/sfumato for the type checkers"
	@echo "make clean           remove what these made, environments included"

venv: $(VENV)/.done
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/$(PIP) install -qq -c constraints.txt -e '.[dev,cpu,ort,rtx,export,train,debug]'
	@touch $@

$(DEMO)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/$(PIP) install -qq -c constraints.txt -e '.[cpu]'
	@touch $@

link: .link/sfumato
.link/sfumato:
	@mkdir -p .link
	ln -sfn .. $@

check: venv link
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

format: venv
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test: venv
	$(PYTEST) -m 'not slow and not gpu'

test-all: venv
	$(PYTEST) -m 'not gpu'

test-installed:
	PYTHON=$(PYTHON) BUNDLE=$(BUNDLE) bash tests/installed.sh

demo: $(DEMO)/.done
	$(DEMO)/bin/sfumato demo $(BUNDLE) --out out/demo

bench: venv
	$(VENV)/bin/python benchmarks/latent_diffusion.py
	$(VENV)/bin/python benchmarks/cold_diffusion.py
	$(VENV)/bin/python benchmarks/gradient.py
	$(VENV)/bin/python benchmarks/pix2pix_zero.py

gpu-check: venv
	$(VENV)/bin/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) $(DEMO) .link build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
