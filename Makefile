# Every target sets up what it needs: no step comes before.

PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/ready
# Through this launcher timm works beside any build of torch.
RUN := $(BIN)/python -m tests.with_torchvision

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check evidence format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## Train, fuse and check a small FastViT on real data, then write a fused SA12 as ONNX
	$(BIN)/python examples/digits.py
	@mkdir -p build
	$(BIN)/reparam compile fastvit_sa12 -o build/fastvit_sa12.onnx

test: $(READY)  ## Run the tests, but for those marked as long
	$(RUN) pytest -n $(WORKERS) --dist worksteal -m "not long" $(PYTEST_ARGS)

test-all: test  ## Run the tests, then those marked as long
	$(RUN) pytest -n $(WORKERS) --dist worksteal -m long $(PYTEST_ARGS)

check: $(READY)  ## Check format, lint, types and import rules, then run all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(MAKE) test-all

evidence: $(READY)  ## Measure anew what the docs' tables tell; hours, but resumable
	$(BIN)/python docs/models_page.py
	$(RUN) docs/families_page.py
	$(RUN) docs/proofs_page.py
	$(RUN) docs/campaign_page.py
	$(BIN)/python -m benchmarks.mutations --write

format: $(READY)  ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## Remove what the targets made, .venv included
	rm -rf .venv build dist site .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@
