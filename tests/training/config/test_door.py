"""The command line: what it understands, and what it says to mistakes, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config.door import compose

GOOD = ("method=sft", "model=some/model", "data=chats.jsonl")


def test_short_names_and_sections() -> None:
    config = compose([*GOOD, "peft=lora", "trainer.lr=1e-4", "trainer.report_to=[tensorboard]"])
    assert (config.method.name, config.model.name, config.data.train) == ("sft", "some/model", "chats.jsonl")
    assert (config.peft.name, config.trainer.lr, config.trainer.report_to) == ("lora", 1e-4, ["tensorboard"])


@pytest.mark.parametrize(
    "value",
    ["a.jsonl:2,b.jsonl:1", "my file (1).jsonl", "it's.jsonl", "C:\\data\\", "https://host:80/a=b?c", "~/x", "a\\'b"],
)
def test_paths_and_mixtures_are_taken_as_they_are(value: str) -> None:
    assert compose(["method=sft", "model=m", f"data={value}"]).data.train == value


@given(
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text[0] not in "[{'\"")
)
@settings(max_examples=30, deadline=None)
def test_any_path_is_taken_as_it_is(value: str) -> None:
    if value.strip() and value != "null":
        assert compose(["method=sft", "model=m", f"data={value}"]).data.train == value


def test_a_list_of_sources() -> None:
    assert compose(["method=sft", "model=m", "data=['a,b.jsonl', c.jsonl]"]).data.train == ["a,b.jsonl", "c.jsonl"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("trainer.lrr=3",), r"unknown key 'trainer.lrr'; did you mean trainer.lr\?"),
        (("batch_size=3",), r"unknown key 'batch_size'; did you mean trainer.batch_size\?"),
        (("trainer.epochs=many",), "trainer.epochs: Value 'many'.* could not be converted to Float"),
        (("trainer.precision=bf17",), r"trainer.precision: Invalid value 'bf17', expected one of \[full, bf16, fp16\]"),
        (("trainer.batch_size=0",), "trainer.batch_size=0 must be at least 1"),
        (("trainer.lr=-1",), "trainer.lr=-1.0 must be 0 or more"),
        (("trainer.epochs=0",), "trainer.epochs=0.0 must be more than 0"),
        (("data.eval_fraction=1",), "less than 1"),
        (("data.eval=e.jsonl", "data.eval_fraction=0.1"), "give one"),
        (("trainer.keep=best",), "need evaluation data"),
        (("model.from_scratch=true", "peft=lora"), "exclude each other"),
        (("model.config={num_layers: 3}",), "only model.from_scratch=true allows"),
        (("model.quantize=int4",), "needs an adapter"),
        (("data=[a,",), "."),
    ],
)
def test_mistakes_are_told_in_a_line(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        compose([*GOOD, *overrides])
    assert "\n" not in str(caught.value)


def test_missing_things_are_named() -> None:
    with pytest.raises(ValueError, match=r"method= is missing; choose one of: ntp, sft"):
        compose(["model=m", "data=d"])
    with pytest.raises(ValueError, match="model= is missing"):
        compose(["method=sft", "data=d"])
    with pytest.raises(ValueError, match="data= is missing"):
        compose(["method=sft", "model=m"])
    with pytest.raises(ValueError, match=r"unknown method 'stf'; did you mean sft\?"):
        compose(["method=stf", "model=m", "data=d"])
    with pytest.raises(ValueError, match=r"did you mean method.length\?"):
        compose(["method=ntp", "model=m", "data=d", "method.lenght=3"])


def test_the_last_reply_is_learned_only_where_replies_are() -> None:
    last = ["model=m", "data=d", "data.train_on=last"]
    assert compose(["method=sft", *last]).data.train_on.value == "last"
    for method, learned in {"ntp": "running text", "prefix_lm": "all that follows a random beginning"}.items():
        with pytest.raises(ValueError, match=f"method={method} learns {learned}; leave it out, or use method=sft"):
            compose([f"method={method}", *last])


def test_a_file_of_keys_and_the_line_beats_it(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: {name: ntp, length: 5}\nmodel: m\ndata: {train: d.txt, packing: true}\ntrainer: {lr: 0.1}\n"
    )
    config = compose(["trainer.lr=0.2", "data=e.txt"], file)
    assert (config.method.length, config.model.name, config.data.train, config.data.packing) == (5, "m", "e.txt", True)
    assert config.trainer.lr == 0.2
    assert compose(["method=sft"], file).method.name == "sft"
    file.write_text("method: sft\nmodel: m\ndata: d\ntrainer: {lrr: 1}\n")
    with pytest.raises(ValueError, match="lrr"):
        compose([], file)
    file.write_text("just text")
    with pytest.raises(ValueError, match="a mapping of keys to values"):
        compose([], file)
    with pytest.raises(ValueError, match="no such file"):
        compose([], tmp_path / "none.yaml")


def test_a_mistake_costs_no_imports() -> None:
    code = "import sys\nfrom training.config.door import compose\ncompose(['method=sft', 'model=m', 'data=d'])\n"
    code += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
