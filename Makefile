# Two commands do everything: `make reproduce` and `make test`.
SCALE ?= smoke
PYTHON ?= python3
BIN := .venv/bin

.PHONY: reproduce test lint clean

reproduce: .venv/installed
	$(BIN)/snakemake --config scale=$(SCALE)
	@$(BIN)/harness status --scale $(SCALE)

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An installed torch (2.11 or later) is kept, as GPU machines come with one; otherwise the locked
# version is installed, from a local wheel folder if pip is configured with one.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "error: $(PYTHON) is $$($(PYTHON) -V), expected Python 3.11 or 3.12 (make PYTHON=python3.12)"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo "error: the venv module is missing, expected it: apt-get install python3-venv"; exit 2; }
	@rm -rf .venv && mkdir -p .venv
	@$(PYTHON) workflows/find_torch.py > .venv/found-torch; \
	if [ -s .venv/found-torch ]; then \
	  echo "using the installed $$(tr '\n' ' ' < .venv/found-torch)"; \
	  $(PYTHON) -m venv --system-site-packages .venv; \
	  $(PYTHON) workflows/find_torch.py --path > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/found_torch.pth; \
	  grep -v -E '^(torch|torchvision)==' constraints.txt | cat - .venv/found-torch > .venv/constraints.txt; \
	else \
	  $(PYTHON) -m venv .venv; cp constraints.txt .venv/constraints.txt; \
	fi
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c .venv/constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv results/smoke results/check
