#!/usr/bin/env bash
# GPT-NeoXT-Chat-Base-20B: GPT-NeoX-20B on the dialogues of OIG, on 8 GPUs of 80 GB.
# Run: training/finetune_gpt-neoxt-chat-base-20b.sh [--dry-run] [KEY=VALUE ...]
# Before: python tools/prepare_model.py gpt-neox-20b; python tools/prepare_data.py oig
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
oig='[{location: data/oig, format: oig}]'
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-gpt-neox-20b}
export FINETUNE_DATA=${FINETUNE_DATA:-$oig}
export FINETUNE_STAGES=${FINETUNE_STAGES:-8} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-1}
exec bash "$(dirname "$0")/finetune.sh" gpt-neoxt-chat-base-20b method=sft data.on_bad_row=skip \
    data.packing=true data.max_length=2048 \
    trainer.precision=bf16 trainer.gradient_checkpointing=true \
    trainer.schedule=linear trainer.weight_decay=0.01 trainer.epsilon=1e-6 trainer.batch_size=1 \
    trainer.accumulate=64 trainer.lr=1e-6 trainer.warmup=10 trainer.max_steps=20000 trainer.save_every=100 -- "$@"
