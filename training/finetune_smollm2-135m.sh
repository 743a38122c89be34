#!/usr/bin/env bash
# SmolLM2-135M on questions about the sample library and their answers, in minutes on two CPU processes.
# Run: training/finetune_smollm2-135m.sh [--dry-run] [KEY=VALUE ...], and then
#      python chatbot/bot.py --model runs/smollm2-135m
# training/finetune.sh tells of the FINETUNE_* variables.
set -euo pipefail
sample='[{location: tests/data/sample_questions.jsonl, format: prompt-answer, columns: {question: prompt}}]'
export FINETUNE_MODEL_DIR=${FINETUNE_MODEL_DIR:-smollm2-135m}
export FINETUNE_DATA=${FINETUNE_DATA:-$sample}
export FINETUNE_STAGES=${FINETUNE_STAGES:-2} FINETUNE_DATA_PARALLEL=${FINETUNE_DATA_PARALLEL:-1}
export FINETUNE_DEVICE=${FINETUNE_DEVICE:-cpu} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec bash "$(dirname "$0")/finetune.sh" smollm2-135m method=sft data.on_bad_row=skip \
    data.max_length=512 trainer.batch_size=2 \
    trainer.accumulate=4 trainer.lr=5e-5 trainer.epochs=5 trainer.save_every=20 trainer.log_every=1 -- "$@"
