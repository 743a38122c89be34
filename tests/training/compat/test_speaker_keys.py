"""Speaker's keys in ours: what each means, and what is said to mistakes, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import get_token
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config.compat.speaker import KEYS, translated
from training.config.door import compose
from training.config.door import keys as our_keys

SFT = ("train_mode=sft", "train_data=pairs.json", "pretrained_path=some/model", "device=cpu")


def config_of(*overrides: str):
    request = translated(overrides)
    assert request.overrides is not None
    return compose(request.overrides, request.file)


def test_each_of_our_names_exists() -> None:
    ours = {key.ours for key in KEYS.values() if key.ours}
    assert ours <= {*our_keys("ntp")}


def test_everything_given_arrives() -> None:
    config = config_of(
        "train_mode=ntp",
        "train_data=my text, part 1.txt",
        "pretrained_path=some/model",
        "save_folder=out dir",
        "save_freq=7",
        "length=11",
        "context_window=13",
        "epochs=3",
        "lr=0.5",
        "batch_size=4",
        "precision=float16",
        "device=cuda:1",
        "peft=lora",
        "lora=train",
        "peft.r=2",
        "peft.lora_alpha=5",
        "dropout=0.25",
    )
    assert (config.method.name, config.method.sampling.value, config.method.length) == ("ntp", "windows", 11)
    assert (config.data.train, config.model.name) == ("my text, part 1.txt", "some/model")
    assert (config.data.max_length, config.model.device) == (13, "cuda:1")
    trainer = config.trainer
    assert (trainer.output, trainer.save_every, trainer.epochs, trainer.lr) == ("out dir", 7, 3, 0.5)
    assert (trainer.batch_size, trainer.accumulate, trainer.precision.value) == (4, 1, "fp16")
    assert trainer.folder_names.value == "epoch_step"
    assert (config.peft.name, config.peft.r, config.peft.alpha, config.peft.dropout) == ("lora", 2, 5, 0.25)


def test_speakers_defaults() -> None:
    """As its README has them."""
    config = config_of(*SFT)
    trainer = config.trainer
    assert (trainer.epochs, trainer.lr, trainer.save_every) == (1000, 0.001, 1000)
    assert trainer.batch_size * trainer.accumulate == 512
    assert (trainer.schedule, trainer.warmup) == ("constant", 0)
    assert (config.data.max_length, config.peft.name) == (512, None)
    assert config_of(*SFT, "train_mode=ntp").method.length == 1_000_000
    lora = config_of(*SFT, "lora=train").peft
    assert (lora.name, lora.r, lora.alpha, lora.dropout) == ("lora", 16, 16, 0.1)


def test_on_a_cpu_float32_unless_asked() -> None:
    assert config_of(*SFT).trainer.precision.value == "full"
    assert config_of(*SFT, "precision=bfloat16").trainer.precision.value == "bf16"


@given(st.integers(1, 5000))
def test_a_batch_keeps_its_size(size: int) -> None:
    overrides = dict(each.split("=", 1) for each in translated([*SFT, f"batch_size={size}"]).overrides or ())
    assert int(overrides["trainer.batch_size"]) * int(overrides["trainer.accumulate"]) == size
    assert int(overrides["trainer.batch_size"]) <= 8


@given(
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text[0] not in "[{'\"")
)
@settings(deadline=None)
def test_any_text_arrives_as_it_is(text: str) -> None:
    if text.strip() and text != "null":
        overrides = ["train_mode=sft", "pretrained_path=m", "device=cpu", f"train_data={text}", f"save_folder={text}"]
        config = config_of(*overrides)
        assert (config.data.train, config.trainer.output) == (text, text)
        evaluation = translated(["eval_mode=chat", "pretrained_path=m", f"system={text}"]).evaluation or {}
        assert evaluation["system"] == text


def test_null_is_nothing_and_quotes_are_hydras() -> None:
    request = translated(
        ["eval_mode=chat", "train_mode=null", "pretrained_path='a b'", "stream=True", 'system="Be kind, \\"very\\"."']
    )
    assert request.overrides is None
    assert request.model == "a b"
    assert request.evaluation is not None
    assert request.evaluation["system"] == 'Be kind, "very".'
    assert request.evaluation["stream"] is True
    assert request.evaluation["eval_data"] is None


def test_a_file_of_speakers_keys(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "train_mode: sft\neval_mode: null\ntrain_data: pairs.json\npretrained_path: m\ndevice: cpu\nlr: 0.01\n"
        "lora: train\npeft:\n  r: 4\n  lora_alpha: 8\n  lora_dropout: 0.0\n"
    )
    request = translated(["lr=0.02"], path)
    assert request.file is None
    config = compose(request.overrides or ())
    assert (config.trainer.lr, config.peft.r, config.peft.alpha, config.peft.dropout) == (0.02, 4, 8, 0)


def test_our_own_language_is_left_alone() -> None:
    overrides = ["method=sft", "model=m", "data=d", "peft.r=3"]
    request = translated(overrides)
    assert (request.overrides, request.evaluation, request.told) == (overrides, None, "")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("trainer.lr=1",), "'trainer.lr' is a key of Parley.* say lr, or"),
        (("model=m",), "'model' is a key of Parley.* say pretrained_path, or"),
        (("trainer.seed=1",), "'trainer.seed' is a key of Parley.* leave it out, or"),
        (("batchsize=3",), r"unknown key 'batchsize'; did you mean batch_size\?"),
        (("wibble=3",), "unknown key 'wibble'; Speaker's are: train_mode, train_data"),
        (("epochs=many",), "epochs=many must be a whole number"),
        (("epochs=0",), "epochs=0 must be 1 or more"),
        (("lr=nan",), "lr=nan must be 0 or more"),
        (("lr=-1",), "lr=-1 must be 0 or more"),
        (("stream=maybe",), "stream=maybe must be true or false"),
        (("train_mode=stf",), "train_mode=stf is unknown; choose one of: ntp, sft, null"),
        (("precision=int8",), "choose one of: bfloat16, float16, float32"),
        (("train_data=null",), "train_data= is missing"),
        (("pretrained_path=",), "pretrained_path= is missing"),
        (("train_mode=null",), "nothing to do; give train_mode"),
        (("lora=load",), "no directory with adapter_config.json"),
    ],
)
def test_mistakes(more: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        translated([*SFT, *more])


def test_a_token_goes_into_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_before")
    request = translated([*SFT, "eval_mode=chat", "use_auth_token=hf_of_the_command_line"])
    assert get_token() == "hf_of_the_command_line"
    assert "hf_of_the" not in repr(request)


def test_speakers_own_variable_counts_where_ours_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_of_speaker")
    monkeypatch.setenv("HF_TOKEN", "hf_of_before")
    translated(SFT)
    assert get_token() == "hf_of_before"
    monkeypatch.delenv("HF_TOKEN")
    translated(SFT)
    assert get_token() == "hf_of_speaker"


def test_nothing_heavy_is_loaded_to_understand_a_command() -> None:
    code = (
        "import sys, training.main; from training.config.compat.speaker import translated;"
        f"translated({[*SFT, 'eval_mode=chat']!r}); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "datasets", "peft"} & set(done.stdout.split()) == set()
