#!/usr/bin/env bash
# What all finetune_*.sh share: the FINETUNE_* variables, and one torchrun call of training/main.py.
# Run by them: finetune.sh NAME KEY=VALUE ... -- [--dry-run] [KEY=VALUE ...]
#
# Each script has defaults for its model, which the environment beats; paths are seen from the repository's root.
#   FINETUNE_MODEL_DIR         a directory of a model, or what tools/prepare_model.py calls it
#   FINETUNE_DATA              what it is trained on: data= of training/main.py
#   FINETUNE_CHECKPOINT_PATH   the run's directory, runs/NAME without it; a run that was killed goes on from there
#   FINETUNE_TOTAL_STEPS       steps in all
#   FINETUNE_CHECKPOINT_STEPS  steps between checkpoints
#   FINETUNE_STAGES            parts that the model is cut into; 1 is the whole model in each process
#   FINETUNE_DATA_PARALLEL     pipelines (or whole models) side by side
#   FINETUNE_PROCESSES         where a process has more than one stage; without it one process a stage
#   FINETUNE_DEVICE            cuda or cpu
#   FINETUNE_TORCHRUN          more for torchrun, as "--nnodes 4 --rdzv-endpoint HOST:29500"; see docs/pipeline.md
#   PYTHON                     without it .venv/bin/python where that is, else python
# What else training/main.py can be told is given as KEY=VALUE and beats the script's keys. `--dry-run` as the first
# argument prints the plan: memory of each process, steps, time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1
shift
keys=("model=$FINETUNE_MODEL_DIR" "data=$FINETUNE_DATA" "model.device=${FINETUNE_DEVICE:-cuda}")
keys+=("trainer.output=${FINETUNE_CHECKPOINT_PATH:-runs/$name}")
while [[ $1 != -- ]]; do
    keys+=("$1")
    shift
done
shift

stages=$FINETUNE_STAGES pipelines=$FINETUNE_DATA_PARALLEL
if ((stages > 1)); then
    keys+=(distributed=pipeline "distributed.stages=$stages" "distributed.data_parallel=$pipelines")
fi
if [[ -n ${FINETUNE_TOTAL_STEPS:-} ]]; then
    keys+=("trainer.max_steps=$FINETUNE_TOTAL_STEPS")
fi
if [[ -n ${FINETUNE_CHECKPOINT_STEPS:-} ]]; then
    keys+=("trainer.save_every=$FINETUNE_CHECKPOINT_STEPS")
fi

python=${PYTHON:-python}
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
processes=${FINETUNE_PROCESSES:-$((stages * pipelines))}
if [[ ${1:-} == --dry-run ]]; then
    shift
    exec env WORLD_SIZE="$processes" "$python" training/main.py "${keys[@]}" "$@" --dry-run
fi
nodes=1
if [[ ${FINETUNE_TORCHRUN:-} =~ --nnodes[=\ ]([0-9]+) ]]; then
    nodes=${BASH_REMATCH[1]}
fi
# Its words are meant to be split.
# shellcheck disable=SC2086
exec "$python" -m torch.distributed.run --nproc-per-node $((processes / nodes)) ${FINETUNE_TORCHRUN:-} \
    training/main.py "${keys[@]}" "$@"
