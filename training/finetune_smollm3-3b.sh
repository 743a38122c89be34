#!/usr/bin/env bash
# SmolLM3-3B on conversations of your own, on 4 GPUs of 24 GB.
# Run: training/finetune_smollm3-3b.sh [--dry-run] [KEY=VALUE ...]
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-smollm3-3b}
export FINETUNE_DATA=${FINETUNE_DATA:-chats.jsonl}
export FINETUNE_STAGES=${FINETUNE_STAGES:-4} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-1}
exec bash "$(dirname "$0")/finetune.sh" smollm3-3b method=sft data.max_length=4096 \
    trainer.precision=bf16 trainer.gradient_checkpointing=true \
    trainer.batch_size=1 trainer.accumulate=16 trainer.lr=1e-5 -- "$@"
