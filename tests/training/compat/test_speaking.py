"""Speaker's evaluation modes: prompts from a file, then lines; what is kept of them can be trained on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from chatbot.conversation import Conversation
from chatbot.rendering import Renderer
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import ChatRow, PairRow
from training.examples.making import Example, ExampleMaker
from training.main import cli

ROOT = Path(__file__).resolve().parents[3]
Speak = Callable[..., Result]
PROMPTS = ["Hello, who are you?", "1 + 1 = ?", "reset", "Hello, who are you?"]
FEW_SHOT = [["Hello?", "I am a small model."], ["1 + 1?", "2"]]


@pytest.fixture
def speak(tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Speak:
    """(keys, what is piped) -> what the command did; its pairs are in pairs.json."""
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "")  # what a command puts there is gone afterwards

    def run(*keys: str, piped: str = "") -> Result:
        common = [f"pretrained_path={tiny_chat_model}", "context_window=12", "device=cpu"]
        common += [f"save_conversation_pairs={tmp_path / 'pairs.json'}"]
        given = {each.partition("=")[0] for each in keys}
        return CliRunner().invoke(
            cli, [each for each in common if each.partition("=")[0] not in given] + list(keys), piped
        )

    return run


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def pairs(folder: Path) -> list[list[str]]:
    rows: list[list[str]] = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    return rows


def rendered(model: Path, turns: Sequence[tuple[str, str]]) -> str:
    """What transformers makes of a conversation."""
    from transformers import AutoTokenizer

    messages = [{"role": role, "content": text} for role, text in turns]
    tokenizer = AutoTokenizer.from_pretrained(model)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def continued(model: Path, prompt: str, num: int) -> str:
    """What transformers' own greedy search continues a text with."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(prompt, return_tensors="pt")
    out = AutoModelForCausalLM.from_pretrained(model).generate(**ids, max_new_tokens=num, do_sample=False)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_chat_prompts_first_then_piped_lines(speak: Speak, tmp_path: Path, tiny_chat_model: Path) -> None:
    data, few = write(tmp_path / "prompts.json", PROMPTS), write(tmp_path / "few.json", FEW_SHOT)
    done = speak(
        "eval_mode=chat",
        f"eval_data={data}",
        f"few_shot_pairs={few}",
        "system=Be kind.",
        piped="Hello, who are you?\nreset\n1 + 1 = ?\nquit\nnever read\n",
    )
    assert done.exit_code == 0, done.output
    assert "never read" not in done.output
    said = pairs(tmp_path)
    assert len(said) == 5
    opening = [("system", "Be kind.")]
    for asked, answered in FEW_SHOT:
        opening += [("user", asked), ("assistant", answered)]
    first = [*opening, ("user", PROMPTS[0])]
    assert said[0][0] == rendered(tiny_chat_model, first)
    assert said[1][0] == rendered(tiny_chat_model, [*first, ("assistant", said[0][1]), ("user", PROMPTS[1])])
    assert said[2] == said[0]  # after reset, and when lines begin: the same conversation anew
    assert said[3] == said[0]
    assert said[4][0] == rendered(tiny_chat_model, [*opening, ("user", "1 + 1 = ?")])
    assert all(answer == continued(tiny_chat_model, prompt, 12) for prompt, answer in said)


def test_completion_is_of_the_text_as_it_is(speak: Speak, tmp_path: Path, tiny_chat_model: Path) -> None:
    data = write(tmp_path / "prompts.json", ["The bridge was", "reset"])
    done = speak("eval_mode=complete", f"eval_data={data}", piped="1 + 1 =\n")  # the input ends without quit
    assert done.exit_code == 0, done.output
    said = pairs(tmp_path)
    assert [prompt for prompt, _ in said] == ["The bridge was", "reset", "1 + 1 ="]
    assert all(answer == continued(tiny_chat_model, prompt, 12) for prompt, answer in said)


def test_a_streamed_answer_is_the_same(speak: Speak, tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.json", PROMPTS)
    shown = [
        speak("eval_mode=chat", f"eval_data={data}", f"stream={stream}", "save_conversation_pairs=null").output
        for stream in ("true", "false")
    ]
    assert shown[0] == shown[1]
    assert shown[0].count(">>> ") == 3
    assert not (tmp_path / "pairs.json").exists()


def test_a_temperature_draws_by_chance(speak: Speak, tmp_path: Path) -> None:
    for _ in range(3):
        speak("eval_mode=complete", "temperature=5", piped="The bridge was\n")
    speak("eval_mode=complete", "temperature=0", piped="The bridge was\n")
    speak("eval_mode=complete", piped="The bridge was\n")
    answers = [answer for _, answer in pairs(tmp_path)]
    assert len(set(answers[:3])) > 1
    assert answers[3] == answers[4]


def test_a_trained_model_is_tried_at_once_and_again_by_its_folder(
    speak: Speak, tmp_path: Path, tiny_chat_model: Path
) -> None:
    data = write(tmp_path / "data.json", [["USER: 1 + 1? ASSISTANT:", "2"], ["USER: 2 + 2? ASSISTANT:", "4"]] * 4)
    out = tmp_path / "out"
    training = (
        "train_mode=sft",
        f"train_data={data}",
        f"save_folder={out}",
        "epochs=12",
        "batch_size=4",
        "save_freq=3",
        "lr=0.02",
        "context_window=64",
        "use_auth_token=hf_neverneverneverneverwritten",
    )
    done = speak(*training, "eval_mode=complete", piped="USER: 1 + 1? ASSISTANT:\n")
    assert done.exit_code == 0, done.output
    assert pairs(tmp_path) == [["USER: 1 + 1? ASSISTANT:", "2"]]  # it has learned where to stop, too
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert {"0", "1", "1_3", "11"} <= names
    speak("eval_mode=complete", f"pretrained_path={out}", piped="USER: 1 + 1? ASSISTANT:\n")
    speak("eval_mode=complete", f"pretrained_path={out / 'checkpoints' / '11'}", piped="USER: 1 + 1? ASSISTANT:\n")
    assert pairs(tmp_path) == [["USER: 1 + 1? ASSISTANT:", "2"]] * 3
    assert "neverwritten" not in done.output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if b"neverwritten" in path.read_bytes()] == []


def test_an_adapter_is_loaded_with_its_model(speak: Speak, tmp_path: Path) -> None:
    data = write(tmp_path / "data.txt", [["USER: 1 + 1? ASSISTANT:", "2"]] * 4)  # as Speaker's README calls it
    out = tmp_path / "out"
    common = ("train_mode=sft", f"train_data={data}", "epochs=30", "batch_size=4", "lr=0.1")
    done = speak(*common, f"save_folder={out}", "peft=lora", "lora=train", "peft.r=4", "peft.lora_dropout=0")
    assert done.exit_code == 0, done.output
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 16, 0)
    done = speak("eval_mode=complete", f"pretrained_path={out}", "lora=load", piped="USER: 1 + 1? ASSISTANT:\n")
    assert pairs(tmp_path) == [["USER: 1 + 1? ASSISTANT:", "2"]], done.output


@pytest.mark.parametrize("begins", [False, True], ids=["", "the tokenizer begins a text by itself"])
def test_saved_chats_are_training_data_again(speak: Speak, tmp_path: Path, tiny_chat_model: Path, begins: bool) -> None:
    """An example made of a saved pair is, token for token, the one made of the conversation itself."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    speak("eval_mode=chat", piped="Hello, who are you?\n1 + 1 = ?\n")
    report = Report()
    rows = [row for _, row in read_rows(Source(str(tmp_path / "pairs.json")), (ChatRow, PairRow), report)]
    assert report.num_given == 2
    (_, first), (prompt, second) = pairs(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_chat_model)
    if begins:
        bos = "<|endoftext|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
        tokenizer.chat_template = f"{{{{ '{bos}' }}}}" + tokenizer.chat_template
        assert tokenizer("x")["input_ids"][0] == tokenizer.convert_tokens_to_ids(bos)
        rows = [rows[0], PairRow(bos + prompt, second)]
    talk = Conversation().add("user", "Hello, who are you?").add("assistant", first)
    talk = talk.add("user", "1 + 1 = ?").add("assistant", second)
    maker = ExampleMaker(Renderer(tokenizer), 512)
    (of_pair,), (of_chat,) = list(maker.examples(rows[1])), list(maker.examples(ChatRow(talk)))
    size = len(of_pair.ids)
    assert of_pair.ids.tolist() == of_chat.ids[:size].tolist()
    assert tokenizer.decode(of_chat.ids[size:]).strip() == ""  # the line break after a turn
    assert learned(tokenizer, of_pair) == second + "<|im_end|>"


def learned(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode(example.ids[example.mask]))


def test_an_interrupt_loses_no_pair(tiny_chat_model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "training" / "main.py"),
        "eval_mode=chat",
        f"pretrained_path={tiny_chat_model}",
    ]
    command += ["context_window=8", "device=cpu", f"save_conversation_pairs={tmp_path / 'pairs.json'}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(2):
            child.stdin.write(b"Hello?\n")
            child.stdin.flush()
            while len(pairs(tmp_path)) <= number if (tmp_path / "pairs.json").exists() else True:
                assert child.poll() is None, child.stderr.read() if child.stderr else ""
                time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
    assert len(pairs(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty.*:DeprecationWarning")
def test_in_a_terminal_a_mistake_does_not_end_it(tiny_chat_model: Path, tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")
    command = ["training/main.py", "eval_mode=complete", f"pretrained_path={tiny_chat_model}", "context_window=8"]
    command += ["device=cpu", f"save_conversation_pairs={tmp_path / 'pairs.json'}"]
    quiet = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    child: Any = pexpect.spawn(
        sys.executable, command, env={**os.environ, **quiet}, encoding="utf-8", timeout=60, cwd=str(ROOT)
    )
    child.delaybeforesend = None
    ready = "\x1b\\[\\?2004h"
    for line, told in (("The bridge", ""), ("word " * 700, "exceed the model's context"), ("1 + 1", "")):
        child.expect(ready)
        child.send(f"{line}\r")
        child.expect(told)
    child.expect(ready)
    child.send("quit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert [prompt for prompt, _ in pairs(tmp_path)] == ["The bridge", "1 + 1"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("eval_data=none.json",), "none.json: no such file"),
        (("few_shot_pairs=none.json",), "none.json: no such file"),
        (("eval_mode=complete", "few_shot_pairs=none.json"), "few_shot_pairs is for eval_mode=chat"),
        (("eval_mode=complete", "system=x"), "system is for eval_mode=chat"),
        (("save_conversation_pairs=/proc/nowhere/x.json",), "cannot write /proc/nowhere/x.json"),
        (("pretrained_path=./nowhere",), "model directory './nowhere' does not exist"),
    ],
)
def test_mistakes_are_one_line(speak: Speak, keys: Sequence[str], told: str) -> None:
    done = speak("eval_mode=chat", *keys)
    assert done.exit_code == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_of_the_evaluation_are_checked_before_training(speak: Speak, tmp_path: Path) -> None:
    data = write(tmp_path / "data.json", [["a", "b"]])
    done = speak(
        "train_mode=sft",
        f"train_data={data}",
        f"save_folder={tmp_path / 'out'}",
        "eval_mode=chat",
        "eval_data=none.json",
    )
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_too_long_is_told(speak: Speak) -> None:
    done = speak("eval_mode=complete", piped="word " * 2000 + "\n")
    assert done.exit_code == 2
    assert "exceed the model's context of 512" in done.stderr
