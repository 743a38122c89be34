"""docs/migrating.md: no key of the older systems is missing from it, and all that it names of ours is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.config.compat.speaker import KEYS
from training.config.door import keys as our_keys
from training.data.formats import FORMATS
from training.methods import METHODS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "migrating.md").read_text(encoding="utf-8")
THEIRS = {
    "OpenChatKit": """
        --gpu-id --model --max-tokens --sample --no-stream --temperature --top-k --retrieval --gpu-vram --cpu-ram
        --use-cuda --cuda-id --cuda-num --debug-mem --dist-backend --dp-backend --dist-url --world-size
        --pipeline-group-size --data-group-size --rank --net-interface --seq-length --embedding-dim --num-layers
        --num-heads --optimizer --train-log-backend --project-name --batch-size --micro-batch-size --lr --num-iters
        --gradient-accumulate-step --fp16 --loss-scale --initial-loss-scale --min-loss-scale --loss-scale-window
        --hysteresis --use-offload --pp-mode --dp-mode --model-name --tokenizer-name --model-type --checkpoint-path
        --task-name --warmup-steps --train-warmup-steps --nepochs --total-steps --load-pretrained-model
        --load-checkpoint --seed --profiling --trace-postfix --evaluation-steps --evaluation-data
        --evaluation-num-batch --checkpoint-steps --num-checkpoints --job-id --checkpoint-upload-prefix
        --aws-endpoint-url --aws-access-key-id --aws-secret-access-key --aws-session-token --aws-region --event-host
        --event-auth-token --train-data --valid-data --tokenizer-type --vocab-file --vocab-extra-ids
        --make-vocab-size-divisible-by SHOW_DATA UL2R_DENOISE_ENABLED dist_prefixlm_train.py upload_manager.py
        prepare_data.py convert_to_hf_gptneox.py convert_to_hf_llama.py model_load_benchmark.py wiki-server.py
    """,
    "ChatLLaMA": """
        --type --actor --reward --local_rank model model_folder tokenizer_path load_8bit train_dataset_path
        validation_dataset_path froze_embeddings use_fairscale max_sequence_length max_tokens min_tokens
        additonal_prompt_tokens temperature batch_size iteration_per_print lr epochs checkpoint_steps
        n_checkpoints_to_keep checkpoint_name deepspeed_enable deepspeed_config_path accelerate_enable peft_enable
        peft_config_path trainer_config reward_config critic_config model_head_hidden_size download_dataset
        generate_rewards generate_actor_dataset extend_rlhf_dataset templates.json training_stats.json
    """,
    "llm_codebase": """
        model_type model_max_length truncation_side padding_side ignore_token_id only_predict_answer
        pad_labels_with_ignore sep_token data_paths data_dir eval_dataset_merge_mode cls_data_text_name
        cls_data_label_name cls_data_label_nums sft_data_prompt_name sft_data_answer_name preference_data_text_name
        preference_data_score_name add_lm_loss lm_loss_coeff lm_score_thresh pooling_type rm_calibration
        calibration_bins length_penalty rrhf_weight construct_method dpo_beta max_prompt_length debug_mode
        training_type evaluate_at_beginning kto_ kl_coef kl_penalty_mode adaptive_kl_ctrl kl_target token_level
        clip_range lm_coef SFT reward classification multi_objective_classification offline_rejection_sampling
        offline_RRHF weighted_learning DPO KTO offline_ppo
    """,
}


def section(name: str) -> str:
    return PAGE.split(f"## {name}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("system", THEIRS)
def test_every_key_of_theirs_is_there(system: str) -> None:
    text = section(system)
    assert [name for name in THEIRS[system].split() if not re.search(rf"`[^`\n]*{re.escape(name)}", text)] == []


def test_speakers_keys_and_defaults_are_the_codes() -> None:
    rows = [line.split(" | ") for line in section("Speaker").splitlines() if line.startswith("| `")]
    defaults = {name: row[1] for row in rows for name in re.findall(r"`([\w.]+)", row[0])}
    assert defaults.keys() - {"peft.r", "peft.lora_alpha", "peft.lora_dropout"} == KEYS.keys()
    for name, key in KEYS.items():
        if isinstance(key.default, bool):
            assert defaults[name] == str(key.default).lower()
        elif key.default is not None:
            assert float(defaults[name]) == key.default, name


def test_every_key_of_ours_exists() -> None:
    ours = {key for method in METHODS for key in our_keys(method)} | {"peft.lora_alpha", "peft.lora_dropout"}
    named = re.findall(r"(?:^|[` ])((?:model|peft|data|trainer|distributed|method)\.[a-z_]+)", PAGE)
    assert set(named) - ours == set()
    assert len(set(named)) >= 40


def test_the_formats_named_exist() -> None:
    rows = [line.split(" | ")[2] for line in section("Formats of data").splitlines() if line.startswith("| `")]
    named = {found[1] for row in rows if (found := re.match(r"`([\w-]+)`", row))}
    assert named <= FORMATS.keys()
    assert len(named) >= 8
