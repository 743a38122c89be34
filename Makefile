# Each target works from nothing: what it needs is installed, prepared or built on the way, once.
# PYTHON=python3.12 chooses another Python. TORCH=... is what pip is given for PyTorch first, such as a wheel file or
# `torch --index-url URL` for one of PyTorch's own indexes (CPU only, or a CUDA version).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?=
SAMPLE := indexes/sample/manifest.json
CHAT_MODEL := models/smollm2-135m/config.json
ENCODER := models/minilm/onnx/proof.json
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: setup chat serve test check bench bench-chat bench-train bench-pipeline bench-retrieval bench-moderation bench-align loop-demo torture format clean help
.DEFAULT_GOAL := help

help:
	@echo "make chat    talk to a model that answers from the sample library"
	@echo "make serve   the same bot over HTTP on 127.0.0.1:8000"
	@echo "make test    all tests      make check  lint and types      make bench  speed, beside its peers"
	@echo "make loop-demo  feedback and documents make the model better, or the gate refuses it (ten minutes)"
	@echo "make torture kills, damaged indexes, hostile documents and requests (an hour)"
	@echo "make setup   install only   make format  tidy the code      make clean  remove what was made"

# All that is only progress goes to stderr, so that the output of `make -s chat` is the answers alone.
$(VENV)/.base: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a minute or two) ..." >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) >&2
	@$(if $(TORCH),$(INSTALL) --quiet $(TORCH) >&2,true)
	@$(INSTALL) --quiet --editable . >&2
	@touch $@

$(VENV)/.server: $(VENV)/.base
	@$(INSTALL) --quiet --editable ".[server]" >&2
	@touch $@

$(VENV)/.dev: $(VENV)/.server
	@echo "Installing what the tests need ..." >&2
	@$(INSTALL) --quiet --editable ".[gguf,lora,server,train,trackers,dev]" >&2
	@touch $@

$(CHAT_MODEL): | $(VENV)/.base
	@$(BIN)/python tools/prepare_model.py smollm2-135m

$(ENCODER): | $(VENV)/.base
	@$(BIN)/python tools/prepare_model.py minilm

$(SAMPLE): $(shell find docs -type f -name "*.*") CONTRIBUTING.md CHANGELOG.md | $(ENCODER)
	@$(BIN)/python -m retrieval build docs CONTRIBUTING.md CHANGELOG.md --index $(@D) >&2

setup: $(VENV)/.dev $(CHAT_MODEL) $(ENCODER)

chat: $(VENV)/.base $(CHAT_MODEL) $(SAMPLE)
	@$(BIN)/python chatbot/bot.py --index $(dir $(SAMPLE)) $(ARGS)

serve: $(VENV)/.server $(CHAT_MODEL) $(SAMPLE)
	@$(BIN)/python -m chatbot.server --index $(dir $(SAMPLE)) $(ARGS)

test: $(VENV)/.dev $(CHAT_MODEL) $(SAMPLE)
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: bench-chat bench-retrieval bench-moderation bench-train bench-pipeline bench-align

bench-chat: $(VENV)/.dev $(CHAT_MODEL) $(SAMPLE)
	$(BIN)/python -m tools.bench.chat
	$(BIN)/python -m tools.bench.startup
	$(BIN)/python -m tools.bench.overhead
	$(BIN)/python -m tools.bench.clients -- --index $(dir $(SAMPLE))

# DATA=folder of BEIR data sets: nq, cranfield, npl, wikibig
bench-retrieval: $(VENV)/.dev $(CHAT_MODEL) $(SAMPLE)
	$(BIN)/python -m tools.bench.ranking $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tools.bench.encoding $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tools.bench.building $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tools.bench.followups
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.bench.search_structures lexical $(if $(DATA),--data $(DATA))
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.bench.search_structures vectors $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tools.bench.scale $(if $(DATA),--data $(DATA))

# DATA=folder of labelled texts (JSON Lines)
bench-moderation: $(VENV)/.dev $(CHAT_MODEL) $(SAMPLE)
	@$(INSTALL) --quiet alt-profanity-check >&2
	$(BIN)/python -m tools.bench.moderation $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tools.bench.injection $(if $(DATA),--data $(DATA))

# DATA=file of short conversations
bench-train: $(VENV)/.dev $(CHAT_MODEL)
	$(BIN)/python -m tools.bench.training $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tools.torture.resumes --kills 20

bench-pipeline: $(VENV)/.dev $(CHAT_MODEL)
	$(BIN)/python -m tools.bench.pipeline
	$(BIN)/python -m tools.bench.bubbles
	$(BIN)/python -m tools.bench.estimate

# DATA=file of preferences: then also whether a chain of methods raises a learned reward (an hour or two)
bench-align: $(VENV)/.dev $(CHAT_MODEL) $(ENCODER)
	$(BIN)/python -m tools.bench.align
	$(if $(DATA),$(BIN)/python -m tools.bench.alignment_quality --data $(DATA) --work runs/alignment-quality)

# ARGS="--work DIR" keeps it elsewhere
loop-demo: $(VENV)/.dev $(CHAT_MODEL) $(ENCODER)
	$(BIN)/python tools/loop_demo.py $(ARGS)

torture: $(VENV)/.dev
	$(BIN)/python -m tools.torture.kills --kills 200
	$(BIN)/python -m tools.torture.mutations --files 2000
	$(BIN)/python -m tools.torture.documents --files 300
	$(BIN)/python -m tools.torture.requests --num 100000
	$(BIN)/python -m tools.torture.texts --texts 50000
	$(BIN)/python -m tools.torture.improving --kills 40

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(dir $(CHAT_MODEL) $(SAMPLE)) models/minilm build *.egg-info .*_cache .hypothesis
