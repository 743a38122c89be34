#!/usr/bin/env bash
# Qwen3 on conversations of your own; FINETUNE_SIZE chooses the model: 0.6b, 1.7b, 4b, 8b, 14b, 32b (without it 4b).
# Run: training/finetune_qwen3.sh [--dry-run] [KEY=VALUE ...]
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
size=${FINETUNE_SIZE:-4b}
case $size in
0.6b | 1.7b) model=qwen3-$size stages=1 ;;
4b) model=qwen3-$size stages=4 ;;
8b | 14b | 32b) model=qwen3-$size stages=8 ;;
*)
    echo "error: FINETUNE_SIZE=$size is unknown; choose one of: 0.6b, 1.7b, 4b, 8b, 14b, 32b" >&2
    exit 2
    ;;
esac
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-$model}
export FINETUNE_DATA=${FINETUNE_DATA:-chats.jsonl}
export FINETUNE_STAGES=${FINETUNE_STAGES:-$stages} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-1}
exec bash "$(dirname "$0")/finetune.sh" "$model" method=sft data.max_length=4096 \
    trainer.precision=bf16 trainer.gradient_checkpointing=true \
    trainer.batch_size=1 trainer.accumulate=16 trainer.lr=1e-5 -- "$@"
