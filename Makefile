# Two commands: `make book` builds the book, `make test` runs every test.
# `make test PYTHON=/path/to/python` uses that environment as it is, without the lock.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help book test unit refresh pdf stability faults soak bench env lock clean

ifdef PYTHON
PY := $(PYTHON)
ENV := env-given
else
PY := .venv/bin/python
ENV := .venv/ready
endif
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))

help:            ## show this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -ts $$'\t'

book: $(ENV)     ## run the chapters at scale quick and build _build/html/index.html
	@$(PY) -m normbook book

test: $(ENV)     ## every test: unit tests, types, style, notebooks, the strict build
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check src tests benchmarks
	@$(PY) -m mypy
	@echo "== unit tests"
	@$(PY) -m pytest tests -n 2 --dist loadfile
	@echo "== notebooks: the committed verdicts, run again"
	@$(PY) -m pytest notebooks -c tests/nbval.ini --rootdir=. --nbval-lax --nbval-current-env -v -n 2 --dist loadfile
	@echo "== every chapter at its smallest, with other parameters"
	@mkdir -p _build/tiny
	@$(PY) -m normbook run all --scale tiny --seed 7 --norm torch.nn --precision fp32 --device cpu --out _build/tiny
	@echo "== the book, warnings are errors"
	@$(PY) -m normbook book --committed --strict --build-dir _build/test
	@echo "== the built book in a browser"
	@$(PY) -m pytest tests/browser -o addopts="-q -W error -p no:cacheprovider -rs -n 2" --site _build/test/_build/html
	@echo "all tests passed"

refresh: $(ENV)  ## run the chapters and rewrite their committed outputs and verdicts
	@$(PY) -m normbook refresh

env: $(ENV)      ## make the environment only

# the hash-pinned lock, by uv where pip can fetch it, else by pip
.venv/ready: requirements.lock
	@command -v python3 >/dev/null || { echo "python3 is missing: install it, e.g. sudo apt install python3 python3-venv"; exit 2; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 is $$(python3 -V 2>&1 | cut -d" " -f2), needs 3.11 or newer: install python3.11, or give one with make PYTHON=..."; exit 2; }
	@python3 -c 'import venv, ensurepip' 2>/dev/null || { echo "python3 lacks venv: install it, e.g. sudo apt install python3-venv"; exit 2; }
	@echo "making .venv from requirements.lock: about 6 GB, some minutes"
	@rm -rf .venv && python3 -m venv .venv
	@if .venv/bin/python -m pip install --quiet --disable-pip-version-check uv; then \
	  .venv/bin/uv pip sync --require-hashes --compile-bytecode --python .venv/bin/python requirements.lock; \
	else .venv/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock; fi
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

.PHONY: env-given
env-given:
	@$(PY) -c 'import importlib.util, sys; missing = [m for m in ("torch", "jupyter_book", "papermill", "nbval", "pytest") if not importlib.util.find_spec(m)]; missing and sys.exit(f"$(PY) lacks {missing[0]}: install the packages of pyproject.toml with its extras book and test")' || exit 2
	@$(PY) -c 'import platform, torch, importlib.metadata as m; print("python", platform.python_version(), "torch", torch.__version__, *(f"{p} {m.version(p)}" for p in ("numpy", "scipy", "jupyter-book", "papermill")))'

pdf: $(ENV)      ## print the built book into _build/normbook.pdf (make book first; needs chromium)
	@$(PY) -m normbook pdf

stability: $(ENV) ## run every chapter again with other seeds and in other ways (hours; it resumes)
	@$(PY) -m normbook stability

faults: $(ENV)   ## plant each fault of tests/faults in a copy: a test must fail (minutes; ONLY=id for one)
	@PYTHONPATH=tests:$$PYTHONPATH $(PY) -m faults $(ONLY)

soak: $(ENV)     ## kill grids at 100 random moments and look at what is left (minutes; KILLS=n for n)
	@$(PY) tests/soak.py --kills $(or $(KILLS),100)

bench: $(ENV)    ## training speed beside a textbook script, torch.compile, Lightning, skorch (24 minutes)
	@$(PY) -m benchmarks

lock:            ## write requirements.lock and requirements-cluster.lock anew from pyproject.toml
	@uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
	  --extra book --extra test pyproject.toml -o requirements.lock
	@# the same versions where both have a package: one environment can hold both
	@uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
	  --extra cluster --constraint requirements.lock pyproject.toml -o requirements-cluster.lock

clean:           ## remove what was built (not .venv)
	@rm -rf _build normbook-results
