# Needs Python >= 3.11 and make, nothing else. Everything goes into .venv and results/.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.histomri-setup
DEMO := results/demo-input
BENCH := .venv-bench
# Tests run in two processes, a file at a time: most of what they do (compiling, Snakemake's own start) keeps one core busy.
# Linear algebra of a few hundred unknowns in each waits for threads of its own rather than computes, where cores are busy.
WORKERS := 2

# The first Python on the path that is new enough and can make virtual environments.
FIND_PYTHON = for p in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo "$$p"; break; fi; done

.PHONY: help setup demo test test-studies test-cluster test-faults bench-env lint config lock clean
.DELETE_ON_ERROR:

help:
	@echo "make setup         install into $(VENV), exactly as envs/requirements.lock says"
	@echo "make demo          make the digital block and run the whole chain on it (results/demo)"
	@echo "make test          run the tests"
	@echo "make test-studies  run the long studies"
	@echo "make test-cluster  run the digital block on a real SLURM on this machine (needs root and Debian's packages)"
	@echo "make test-faults   kill runs at KILLS random moments (default 100), fill the disk, change files under a run"
	@echo "make bench-env     install the peers of tests/benchmarks into $(BENCH) (1.6 GB)"
	@echo "make lint          ruff and mypy"
	@echo "make config        write config/config.yaml and config/README.md from config/schema"
	@echo "make lock          resolve envs/requirements.in into envs/requirements.lock (needs uv)"
	@echo "make clean         remove $(VENV), results and caches"

setup: $(STAMP)

$(STAMP): envs/requirements.lock pyproject.toml
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer with venv and pip is needed (make PYTHON=/path/to/python3 names one)." >&2; exit 1; fi; \
	echo "Installing into $(VENV) with $$($$python --version) (a minute or two) ..."; \
	"$$python" -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r envs/requirements.lock
	@$(PY) -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# The stamp is written last: a folder that was left half made is made again.
$(DEMO)/.complete: | $(STAMP)
	rm -rf $(DEMO)
	$(PY) -m histomri.testing.phantom $(DEMO) --preset demo --output ../demo
	@touch $@

demo: $(STAMP) $(DEMO)/.complete
	$(PY) -m histomri run $(DEMO)/config.yaml
	@$(PY) -m histomri summary $(DEMO)/config.yaml

test: $(STAMP)
	OPENBLAS_NUM_THREADS=1 $(PY) -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-studies: $(STAMP)
	$(PY) -m pytest tests/studies -m study

test-cluster: $(STAMP)
	$(PY) -m pytest tests/cluster -m cluster

# How many kills and how many spoilt files; CI takes fewer.
KILLS := 100
FUZZ := 10000

test-faults: $(STAMP)
	HISTOMRI_KILLS=$(KILLS) HISTOMRI_FUZZ=$(FUZZ) $(PY) -m pytest tests/faults -m faults

bench-env: $(BENCH)/.histomri-bench

$(BENCH)/.histomri-bench: envs/bench.txt
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer with venv and pip is needed (make PYTHON=/path/to/python3 names one)." >&2; exit 1; fi; \
	echo "Installing greedy, ANTs, elastix and libvips into $(BENCH) with $$($$python --version) (a few minutes) ..."; \
	"$$python" -m venv --clear $(BENCH)
	@$(BENCH)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r envs/bench.txt
	@touch $@

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

config: $(STAMP)
	$(PY) -m histomri.io.defaults

lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		envs/requirements.in -o envs/requirements.lock

clean:
	rm -rf $(VENV) $(BENCH) results build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
