# Every target sets up what it needs: a virtual environment, the package with its extension, the extras.
#   make quickstart   the main job on a small model, within two minutes of compute (QUICK=1: a short smoke of it)
#   make test         all tests (PYTEST_ARGS="tests/cli -k merge" for some)
#   make lint         ruff, types, C++ format
#   make bench        all benchmarks at their standard sizes (an hour or more), then one table (docs/benchmarks.md)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt tools/install.sh $(wildcard CMakeLists.txt) \
	$(shell find src csrc -type f ! -name '*.pyc' ! -name '*.so')

export PYTHON

.PHONY: quickstart test lint bench clean

quickstart: $(VENV)/.ready
	$(BIN)/python -m lorasmith.quickstart $(if $(QUICK),--quick)

# one process a core: two threads each would wait for one another
test: $(VENV)/.ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.ready-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' | xargs -r $(BIN)/clang-format --dry-run -Werror

bench: $(VENV)/.ready-bench
	failed=; for file in $(sort $(wildcard benchmarks/bench_*.py)); do \
		echo "== $$file"; $(BIN)/python $$file || failed="$$failed $$file"; done; \
	$(BIN)/python benchmarks/table.py --write || failed="$$failed benchmarks/table.py"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

clean:
	rm -rf $(VENV) build dist

$(VENV)/.ready: $(SOURCES)
	tools/install.sh $(VENV)
	touch $@

$(VENV)/.ready-%: $(VENV)/.ready
	tools/install.sh $(VENV) $*
	touch $@

.PRECIOUS: $(VENV)/.ready-%
