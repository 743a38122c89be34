#!/usr/bin/env bash
# Llama 3.1 and 3.2 on conversations of your own; FINETUNE_SIZE chooses the model: 1b, 3b, 8b (without it 3b).
# Run: training/finetune_llama-3.sh [--dry-run] [KEY=VALUE ...]
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
size=${FINETUNE_SIZE:-3b}
case $size in
1b) model=llama-3.2-1b-instruct stages=1 ;;
3b) model=llama-3.2-3b-instruct stages=4 ;;
8b) model=llama-3.1-8b-instruct stages=8 ;;
*)
    echo "error: FINETUNE_SIZE=$size is unknown; choose one of: 1b, 3b, 8b" >&2
    exit 2
    ;;
esac
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-$model}
export FINETUNE_DATA=${FINETUNE_DATA:-chats.jsonl}
export FINETUNE_STAGES=${FINETUNE_STAGES:-$stages} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-1}
exec bash "$(dirname "$0")/finetune.sh" "$model" method=sft data.max_length=4096 \
    trainer.precision=bf16 trainer.gradient_checkpointing=true \
    trainer.batch_size=1 trainer.accumulate=16 trainer.lr=1e-5 -- "$@"
