# Everything a newcomer does: `make help`.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.up-to-date
SWARM := $(BIN)/python -m intellect_jax.swarm --config=configs/demo.py
PROTO := intellect_jax/elastic/protocol/*.proto

.DEFAULT_GOAL := help
.PHONY: help setup run demo-kill corpus instruct test test-extras chaos soak storm simulate \
  simulate-plants gpu-smoke bench lint proto lock clean
.DELETE_ON_ERROR:

help:  ## Show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s%s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

setup: $(SETUP)  ## Make .venv with the locked versions; PYTHON=… picks another

run: setup  ## Train a small Llama with a swarm of three islands, 5 minutes
	$(SWARM) --islands=3 --workdir=runs/demo

demo-kill: setup  ## The same in a minute, while parts of it are killed
	$(SWARM) --islands=3 --workdir=runs/demo-kill \
	  --config.run.tokens=184320 --config.run.outer.inner_steps=10 \
	  --kill=island-1@2 --kill=coordinator@4

corpus: setup  ## Fetch and prepare 30 MB of text in three sources, 1 minute
	$(BIN)/python experiments/corpus.py --output=runs/corpus

instruct: setup  ## Fine-tune a small model on conversations, then preferences
	$(BIN)/python experiments/conversations.py --output=runs/instruct
	$(BIN)/python -m intellect_jax.finetune --config=configs/instruct.py \
	  --workdir=runs/instruct/sft
	$(BIN)/python -m intellect_jax.export --workdir=runs/instruct/sft \
	  --output=runs/instruct/sft-llama
	$(BIN)/python -m intellect_jax.finetune --config=configs/preference.py \
	  --init-from=runs/instruct/sft-llama --workdir=runs/instruct/dpo
	$(BIN)/python experiments/answers.py
	@echo "Talk to it: $(BIN)/python -m intellect_jax.chat --workdir=runs/instruct/dpo"

test: setup  ## Run the tests, under 8 minutes on two cores
	# Three on two cores: tests that start processes mostly wait for them.
	$(BIN)/python -m pytest -n 3 --dist=worksteal
	$(BIN)/python -m pytest -m alone

test-extras: setup  ## Install torch, lm-eval, openai, an S3 server …; test with them
	$(BIN)/python -m pip install --quiet --constraint requirements.lock \
	  --editable '.[hf,data,remote-test,eval,serve-test]'
	$(BIN)/python -m pytest -m 'hf or data or remote or eval or serve'

gpu-smoke: setup  ## Test what only a GPU can show, where there is one
	$(BIN)/python tests/gpu_smoke.py

bench: setup  ## Steps, codecs, exchange, overlap, links, faults, quality; short
	$(BIN)/python -m benchmarks.inner_step
	$(BIN)/python -m benchmarks.codec --quick
	$(BIN)/python -m benchmarks.exchange --quick
	$(BIN)/python -m benchmarks.overlap --quick
	$(BIN)/python -m benchmarks.wan --quick
	$(BIN)/python -m benchmarks.elastic --quick
	$(BIN)/python -m benchmarks.quality --quick
	$(BIN)/python -m benchmarks.sparse --quick

chaos: setup  ## 68 faults of every kind, real processes; ARGS=--quick: 1 min
	PYTHONPATH=. $(BIN)/python tests/chaos/chaos.py $(ARGS)

soak: setup  ## Eight islands and a fault every 30 s, for MINUTES=10
	PYTHONPATH=. $(BIN)/python tests/chaos/chaos.py \
	  --soak=$(or $(MINUTES),10) $(ARGS)

storm: setup  ## Faults on top of each other, real processes, 5 minutes
	PYTHONPATH=. $(BIN)/python tests/chaos/storm.py $(ARGS)

simulate: setup  ## Runs under faults: SEEDS=2000 FIRST=0, or SEED=123 to see one
	PYTHONPATH=tests $(BIN)/python -m simulation $(if $(SEED),--seed=$(SEED),\
	  --seeds=$(or $(SEEDS),2000) --first=$(or $(FIRST),0))

simulate-plants: setup  ## How many seeds it takes to find planted errors
	PYTHONPATH=tests $(BIN)/python -m simulation.plants

lint: setup  ## Check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

proto: setup  ## Generate the messages from the .proto files again
	$(BIN)/python -m grpc_tools.protoc -I . \
	  --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)

lock: setup  ## Write the newest versions that go together to requirements.lock
	$(BIN)/python -m pip install --upgrade --upgrade-strategy=eager \
	  --editable '.[dev]'
	{ echo '# What `make setup` installs. Written by `make lock`.' && \
	  $(BIN)/python -m pip freeze --exclude-editable; } > requirements.lock

clean:  ## Remove .venv and all caches, but no results
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} +

$(SETUP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  2>/dev/null || { echo "intellect_jax needs Python 3.11 or newer, and" \
	  "$(PYTHON) is not one: install it (on Debian: apt install python3.11" \
	  "python3.11-venv) or name one with make setup PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  2>/dev/null || { echo "$(PYTHON) has no venv or no ensurepip, which make" \
	  "an environment with pip: install them (on Debian: apt install" \
	  "python3.11-venv) or name another with make setup PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
