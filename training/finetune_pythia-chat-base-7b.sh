#!/usr/bin/env bash
# Pythia-Chat-Base-7B: Pythia-6.9B on the dialogues of OIG, on 8 GPUs of 40 GB, as two pipelines of four.
# Run: training/finetune_pythia-chat-base-7b.sh [--dry-run] [KEY=VALUE ...]
# Before: python tools/prepare_model.py pythia-6.9b-deduped; python tools/prepare_data.py oig
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
oig='[{location: data/oig, format: oig}]'
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-pythia-6.9b-deduped}
export FINETUNE_DATA=${FINETUNE_DATA:-$oig}
export FINETUNE_STAGES=${FINETUNE_STAGES:-4} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-2}
exec bash "$(dirname "$0")/finetune.sh" pythia-chat-base-7b method=sft data.on_bad_row=skip \
    data.packing=true data.max_length=2048 \
    trainer.precision=bf16 trainer.gradient_checkpointing=true \
    trainer.schedule=linear trainer.weight_decay=0.01 trainer.epsilon=1e-6 trainer.batch_size=1 \
    trainer.accumulate=32 trainer.lr=1e-5 trainer.warmup=10 trainer.max_steps=20000 trainer.save_every=100 -- "$@"
