# Everything sets itself up: a virtual environment in .venv with the exact versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
T ?= tests

.PHONY: help demo test test-latest check docs bench pictures families gpu soak format clean

help:
	@echo "make demo    train a small model while callbacks watch (about two minutes on two cores)"
	@echo "make test    the whole test suite; make test T=tests/promises/test_exact.py runs a part of it"
	@echo "make test-latest  the same with the newest releases of all dependencies but torch, in .venv-latest; T=... as above"
	@echo "make check   format, lint, types, layers, unit tests, and the figures of the house beside their limits"
	@echo "make docs    the documentation as a site, in build/site"
	@echo "make bench   training, generation, scoring and callbacks against TRL, torch and others, as tables"
	@echo "make pictures  draw the pictures of README and docs from real runs, in Chromium (about five minutes)"
	@echo "make families  how every language model of Transformers is driven, into docs/models.md (about ten minutes)"
	@echo "make gpu     promises and figures on a GPU, with the machine's own torch, in eight minutes; WHEELS=folder"
	@echo "make soak    a thousand background evaluations that fail, hang and are killed (about two minutes)"
	@echo "make format  rewrite the code in the project's format"
	@echo "make clean   remove .venv, caches and runs"

demo: .venv/core-installed
	$(BIN)/python examples/addition/train.py $(ARGS)

test: .venv/dev-installed
	$(BIN)/python -m pytest $(T)

test-latest:
	$(PYTHON) -m venv --clear .venv-latest
	grep '^torch==' constraints.txt > .venv-latest/torch.txt
	.venv-latest/bin/pip install --quiet --disable-pip-version-check -c .venv-latest/torch.txt -e '.[dev]'
	@echo "other releases than in constraints.txt:"
	@.venv-latest/bin/pip freeze --exclude-editable | grep -vixFf constraints.txt || echo none
	.venv-latest/bin/python -m pytest $(T)

docs: .venv/dev-installed
	$(BIN)/python benchmarks/docs_site.py
	@echo "to look at it: python3 -m http.server -d build/site"

check: .venv/dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/unit
	$(BIN)/python benchmarks/house.py

bench: .venv/dev-installed
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/validation_loss.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/callbacks.py
	$(BIN)/python benchmarks/profile_engine.py

pictures: .venv/dev-installed
	$(BIN)/python benchmarks/pictures.py $(ARGS)

families: .venv/dev-installed
	$(BIN)/python benchmarks/families.py

gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

soak: .venv/dev-installed
	SOAK_EVALUATIONS=1000 $(BIN)/python -m pytest -n 0 -s tests/e2e/test_soak.py

format: .venv/dev-installed
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-latest build runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "descant needs Python 3.11 or newer; set PYTHON=path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/core-installed: .venv/created pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trackio]'
	@touch $@

.venv/dev-installed: .venv/created pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/core-installed
