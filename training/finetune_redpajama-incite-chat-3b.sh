#!/usr/bin/env bash
# RedPajama-INCITE 3B on the dialogues of OIG-chip2, on 8 GPUs of 16 GB.
# Run: training/finetune_redpajama-incite-chat-3b.sh [--dry-run] [KEY=VALUE ...]
# Before: python tools/prepare_model.py redpajama-incite-3b; python tools/prepare_data.py oig-chip2
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-redpajama-incite-3b}
export FINETUNE_DATA=${FINETUNE_DATA:-data/oig-chip2}
export FINETUNE_STAGES=${FINETUNE_STAGES:-8} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-1}
exec bash "$(dirname "$0")/finetune.sh" redpajama-incite-chat-3b method=sft data.packing=true data.max_length=2048 \
    trainer.precision=bf16 trainer.gradient_checkpointing=true \
    trainer.schedule=linear trainer.weight_decay=0.01 trainer.epsilon=1e-6 trainer.batch_size=1 \
    trainer.accumulate=32 trainer.lr=1e-5 trainer.warmup=0 trainer.max_steps=10 trainer.save_every=10 -- "$@"
