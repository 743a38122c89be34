#!/usr/bin/env bash
# Llama-2-7B-32K on questions over many documents (Long-Data-Collections), on 8 GPUs of 80 GB.
# Run: training/finetune_llama-2-7b-32k-mqa.sh [--dry-run] [KEY=VALUE ...]
# Before: python tools/prepare_model.py llama-2-7b-32k; python tools/prepare_data.py natural-questions
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-llama-2-7b-32k}
export FINETUNE_DATA=${FINETUNE_DATA:-data/natural-questions}
export FINETUNE_STAGES=${FINETUNE_STAGES:-8} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-1}
exec bash "$(dirname "$0")/finetune.sh" llama-2-7b-32k-mqa method=sft data.max_length=32768 \
    distributed.schedule=gpipe \
    trainer.precision=bf16 trainer.gradient_checkpointing=true \
    trainer.schedule=linear trainer.weight_decay=0.01 trainer.epsilon=1e-6 trainer.batch_size=1 \
    trainer.accumulate=4 trainer.lr=2e-5 trainer.warmup=0 trainer.max_steps=10 trainer.save_every=10 -- "$@"
