# The two commands for newcomers are `make up` and `make test`; everything else builds on the same environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: up test check format bench bench-gateway chaos soak lock clean

up: $(STAMP) ## everything on this machine, with the demo fleet, until Ctrl-C
	$(BIN)/meta-agent up --demo $(ARGS)

test: $(STAMP) ## the whole test suite, on two cores
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

check: $(STAMP) ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## gateway against a bare reverse proxy, agent cycle, requests until a bad candidate is out
	$(BIN)/python -m benchmarks

bench-gateway: $(STAMP) ## the gateway beside nginx, a bare proxy and LiteLLM's, route flips, outages, a million requests; 20 min
	$(BIN)/python -m benchmarks.gateway --everything --litellm $(ARGS)

chaos: $(STAMP) ## random kill -9 while rollouts run, several times over; minutes
	$(BIN)/python -m pytest -m chaos -o timeout=900 tests/scenarios $(ARGS)

soak: $(STAMP) ## the demo under traffic for MINUTES (15): memory stays flat, nothing is lost
	META_AGENT_SOAK_MINUTES=$(or $(MINUTES),15) $(BIN)/python -m pytest -m soak -o timeout=7200 tests/scenarios $(ARGS)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

lock: ## rewrite requirements.lock from what is installed
	$(BIN)/python -m pip freeze --exclude-editable --exclude meta-agent | sort -f > requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
