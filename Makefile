# Two commands matter: `make deblur` and `make test`. Both make $(VENV) first; later runs find it ready.

PYTHON ?= python3
VENV ?= .venv
# The pair known to work together, installed first; the floors in requirements.txt are then met. From PyPI it is
# the CUDA build on Linux (several GB). Override it to use your own, for example the smaller one for the CPU:
#   make deblur TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.14.1 torchvision==0.29.1
# The photograph (or folder) to deblur, where to, and further options of `python -m rddm_core deblur`.
IMAGE ?= examples/sign.blur.jpg
OUT ?= out
OPTIONS ?=
# For `make report`: which part of the collection in RDDM_DATA, which rows, and the threshold of maps, chosen on
# split=dev for the shipped weights. OPTIONS may add `--peer FILE` and more.
SPLIT ?= val
ROWS ?= all
THRESHOLD ?= 0.35

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test

.DELETE_ON_ERROR:
.PHONY: help deblur test coverage bench bench-quick stress mutation report lint typecheck check clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

deblur: $(STAMP) ## deblur the example photograph, or IMAGE=..., into OUT=out
	$(RUN) -m rddm_core deblur "$(IMAGE)" -o "$(OUT)/" --compare $(OPTIONS)

test: $(TEST_STAMP) ## run all tests
	$(RUN) -m pytest -c tests/pytest.ini tests

coverage: $(TEST_STAMP) ## lines that the tests run, per module; fails below 90 %
	$(RUN) -m pytest -c tests/pytest.ini tests --cov=rddm_core --cov=nodes --cov-config=pyproject.toml \
		--cov-report=term --cov-fail-under=90

bench: $(TEST_STAMP) ## time, memory, profile and tiles into benchmarks/RESULTS.md (Linux, 20 minutes; OPTIONS="--only tiles")
	$(RUN) -m benchmarks $(OPTIONS)

bench-quick: $(TEST_STAMP) ## three figures beside NAFNet-w32 as one line of JSON (Linux, 3 minutes)
	@$(RUN) -m benchmarks --quick

stress: $(TEST_STAMP) ## kills, Ctrl-C, exhausted memory, long runs (Linux): benchmarks/STRESS.md
	$(RUN) benchmarks/stress --write $(OPTIONS)

mutation: $(TEST_STAMP) ## deliberate mistakes that the tests should notice: benchmarks/MUTATION.md
	$(PIP) --quiet --editable ".[mutation]"
	$(RUN) benchmarks/mutation.py --write $(OPTIONS)

report: $(TEST_STAMP) ## measure everything on RDDM_DATA=folder (split SPLIT) into OUT/report.html
	@test -d "$(RDDM_DATA)" || { echo "Say where the image collection is: make report RDDM_DATA=/path/to/it"; exit 1; }
	$(RUN) -m rddm_core evaluate "$(RDDM_DATA)/real_pairs" --where split=$(SPLIT) --rows $(ROWS) \
		--sharp "$(RDDM_DATA)/sharp" --masks "$(RDDM_DATA)/defocus_masks" --threshold $(THRESHOLD) \
		--report "$(OUT)/report.html" --csv "$(OUT)/report.csv" --json "$(OUT)/report.json" $(OPTIONS)

lint: $(TEST_STAMP) ## ruff
	$(RUN) -m ruff check .

# Under a package name, as the host has it: relative imports climb out of nodes/, and a folder's name may hold a dash.
typecheck: $(TEST_STAMP) ## mypy; the scripts of web/ too where npm is installed
	@mkdir -p $(VENV)/typecheck && ln -sfn "$(CURDIR)" $(VENV)/typecheck/rddm_pack
	cd $(VENV)/typecheck && MYPYPATH=. $(abspath $(RUN)) -m mypy --config-file "$(CURDIR)/pyproject.toml" \
		--cache-dir "$(CURDIR)/.mypy_cache" -p rddm_pack.rddm_core -p rddm_pack.nodes
	@if command -v npm >/dev/null; then npm ci --no-audit --no-fund && npm run typecheck; \
		else echo "npm is not installed: the scripts in web/ are not checked"; fi

check: lint typecheck test ## all three

clean: ## remove the environment, results and caches
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache tests/.pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV); the first time this downloads torch (up to several GB)."
	$(PYTHON) -m venv $(VENV)
	$(if $(strip $(TORCH)),$(PIP) $(TORCH))
	$(PIP) --quiet -r requirements.txt
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(PIP) --quiet --editable ".[test]"
	@touch $@
