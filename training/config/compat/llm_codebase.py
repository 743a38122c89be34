"""llm_codebase's arguments, for `python training/main.py task_type=reward model_name_or_path=MODEL data_paths=a.json`.

Each is understood where it stands, beside Parley's own keys; docs/migrating.md tells what differs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TASKS = {
    "sft": "sft",
    "reward": "reward",
    "rm": "reward",
    "classification": "classification",
    "multi_objective_classification": "classification",
    "offline_rejection_sampling": "rejection",
    "offline_rrhf": "rrhf",
    "weighted_learning": "weighted",
    "offline_ppo": "offline_ppo",
    "dpo": "dpo",
    "kto": "kto",
}
# What a column is called there -> what the formats of training/data/formats.py call it.
COLUMNS = {
    "preference_data_text_name": "text",
    "preference_data_score_name": "score",
    "cls_data_text_name": "text",
    "cls_data_label_name": "label",
    "sft_data_prompt_name": "prompt",
    "sft_data_answer_name": "answer",
}
KEYS = {
    "model_name_or_path": "model",
    "model_max_length": "data.max_length",
    "data_paths": "data",
    "data_dir": "data",
    "eval_data_paths": "data.eval",
    "eval_data_dir": "data.eval",
    "lm_loss_coeff": "method.lm_coeff",
    "lm_score_thresh": "method.lm_threshold",
    "pooling_type": "method.pooling",
    "calibration_bins": "method.calibration_bins",
    "length_penalty": "method.length_penalty",
    "rrhf_weight": "method.rank_weight",
    "construct_method": "method.pairs",
    "dpo_beta": "method.beta",
    "kl_coef": "method.kl_coeff",
    "kl_penalty_mode": "method.kl_penalty",
    "token_level": "method.token_level",
    "clip_range": "method.clip_range",
    "lm_coef": "method.lm_coeff",
    "kl_target": "method.kl_target",
    "evaluate_at_beginning": "trainer.eval_at_start",
    "output_dir": "trainer.output",
    "per_device_train_batch_size": "trainer.batch_size",
    "gradient_accumulation_steps": "trainer.accumulate",
    "num_train_epochs": "trainer.epochs",
    "max_steps": "trainer.max_steps",
    "learning_rate": "trainer.lr",
    "warmup_ratio": "trainer.warmup",
    "lr_scheduler_type": "trainer.schedule",
    "weight_decay": "trainer.weight_decay",
    "logging_steps": "trainer.log_every",
    "eval_steps": "trainer.eval_every",
    "save_steps": "trainer.save_every",
    "save_total_limit": "trainer.keep_checkpoints",
    "deepspeed": "distributed.deepspeed",
}
# Key -> its values, and what says the same.
_CHOICES = {
    "task_type": {name: f"method={method}" for name, method in TASKS.items()},
    "only_predict_answer": {"true": "data.train_on=replies", "false": "data.train_on=all"},
    "training_type": {"full": "peft=null", "lora": "peft=lora", "p-tuning": "peft=p_tuning"},
    "bf16": {"true": "trainer.precision=bf16", "false": "trainer.precision=full"},
}
_NEEDLESS = {
    "model_type": "a model's kind is found out",
    "truncation_side": "the oldest turns go first",
    "padding_side": "padding has no loss",
    "pad_labels_with_ignore": "padding has no loss",
    "ignore_token_id": "padding has no loss",
    "sep_token": "<sep> is understood",
    "cls_data_label_nums": "labels are those that occur, or method.labels",
    "add_lm_loss": "lm_loss_coeff=0 is none",
    "rm_calibration": "it is always told; calibration_bins says for which numbers of bins",
    "eval_dataset_merge_mode": "evaluation data is merged; for a figure each: tools/evaluate.py ppl",
    "max_prompt_length": "prompts lose their oldest turns within model_max_length",
    "adaptive_kl_ctrl": "kl_target switches it on, in method=ppo",
    "debug_mode": "max_steps=10 makes a short run",
}
_NAME = re.compile(r"[\w-]+")


def translated(overrides: Sequence[str]) -> list[str]:
    """The same in our keys; what is of no key here comes back as it is.

    Raises ValueError for arguments that have no counterpart, and for values that are none.
    """
    ours, columns = [], {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            ours.append(override)
        elif key in _NEEDLESS:
            raise ValueError(f"{key} of llm_codebase has no counterpart: {_NEEDLESS[key]}; leave it out")
        elif key in _CHOICES:
            if value.lower() not in _CHOICES[key]:
                raise ValueError(f"{key}={value} is unknown; choose one of: {', '.join(_CHOICES[key])}")
            ours.append(_CHOICES[key][value.lower()])
        elif key in COLUMNS:
            if not _NAME.fullmatch(value):
                raise ValueError(
                    f"{key}='{value}' must be letters, digits, _ and -; say others by data.columns in YAML"
                )
            columns[value] = COLUMNS[key]
        else:
            ours.append(f"{KEYS.get(key, key)}={value}")
    named = ", ".join(f"{theirs}: {name}" for theirs, name in columns.items())
    return [*ours, f"data.columns={{{named}}}"] if columns else ours
