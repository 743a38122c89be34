"""Bad input at the command line: exit code 2, one line on stderr that names the value and what to do, nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatbot.options import check_options
from parley.cli import COMMANDS, main
from retrieval.build import build_index

ROOT = Path(__file__).resolve().parent.parent
ECHO = ("chat", "--engine", "echo")
FILES = {
    "pairs.json": '[["a", "b"], ["only one"]]',
    "table.json": '{"a": "b"}',
    "broken.json": '[["a", "b"],\n',
    "prompts.json": '["a", 3]',
    "policy.yaml": "fail: maybe\n",
    "talk.jsonl": '{"messages": [{"role": "user", "content": "hello"}]}\nnot JSON\n',
    "roles.jsonl": '{"messages": [{"role": "robot", "content": "hello"}]}\n',
    "empty.jsonl": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files, malformed each in its way, and indexes, sound and damaged."""
    folder = tmp_path_factory.mktemp("input")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    (folder / "noise.txt").write_bytes(bytes(range(256)) * 8)
    (folder / "document.txt").write_text("The museum opens at nine. It closes at five.\n")
    build_index([folder / "document.txt"], folder / "index", "hash")
    for name, file in (("no-manifest", "manifest.json"), ("damaged", "passages.jsonl")):
        shutil.copytree(folder / "index", folder / name)
        damaged = next((folder / name).rglob(file))
        damaged.write_text(damaged.read_text()[:-20])
    return folder


@pytest.fixture
def refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `parley` with these arguments (`{}` stands for `folder`); returns the line that it must fail with."""

    def run(*arguments: object) -> str:
        filled = [str(argument).replace("{}", str(folder)) for argument in arguments]
        result = CliRunner().invoke(main, filled, input="hello\n")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert capfd.readouterr().err == ""  # nothing beside it, as from a library's own logging
        return result.stderr

    return run


def parley(*arguments: object, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "parley", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, **environment}, check=False)


# Arguments, and what the line must name: the value, and what to do.
BAD = [
    # The model
    (("chat", "--model", "no-such/model"), ("no-such/model", "HF_HUB_OFFLINE", "smollm2-135m")),
    (("chat", "--model", "nosuchmodel"), ("nosuchmodel", "known name")),
    (("chat", "--model", "{}/nowhere"), ("nowhere", "does not exist")),
    (("chat", "--model", "{}/document.txt"), ("document.txt", "is a file")),
    (("chat", "--model", "{}/empty"), ("{}/empty", "cannot load model")),
    (("chat", "--model", ""), ("the model name is empty",)),
    (("chat", "--engine", "steam"), ("steam", "auto, transformers, llamacpp, openai, echo")),
    (("chat", "--dtype", "int3"), ("int3", "auto, float32, float16, bfloat16")),
    (("chat", "-g", "nonsense"), ("nonsense", "0:10")),
    (("chat", "-g", "0:ten"), ("0:ten", "0:10")),
    (("chat", "-g", "0:10,1:0"), ("1:0", "0:10")),
    (("chat", "-r", "-5"), ("-5", "--cpu-ram")),
    (("chat", "--gpu-id", "first"), ("first", "--gpu-id")),
    # The documents
    ((*ECHO, "--index", "{}/nowhere"), ("nowhere", "python -m retrieval build")),
    ((*ECHO, "--index", "{}/empty"), ("{}/empty", "python -m retrieval build")),
    ((*ECHO, "--index", "{}/document.txt"), ("document.txt", "build")),
    ((*ECHO, "--index", "{}/damaged"), ("damaged", "passages.jsonl", "rebuild it with")),
    ((*ECHO, "--index", "{}/no-manifest"), ("no-manifest", "manifest.json", "rebuild it with")),
    ((*ECHO, "--index", "{}/index", "--encoder", "{}/nowhere"), ("nowhere", "does not exist")),
    ((*ECHO, "--index", "{}/index", "--layout", "round"), ("round", "latest, kept")),
    ((*ECHO, "--index", "{}/index", "--k", "0"), ("0", "--k")),
    ((*ECHO, "--index", "{}/index", "--complete"), ("--complete", "leave out one")),
    (("index", "build", "{}/empty", "--index", "{}/new", "--encoder", "hash"), ("{}/empty", ".md", ".txt")),
    (("index", "build", "{}/noise.txt", "--index", "{}/new", "--encoder", "hash"), ("noise.txt", "not text")),
    (("index", "build", "{}/nowhere", "--index", "{}/new", "--encoder", "hash"), ("nowhere", "does not exist")),
    (("index", "build", "{}/document.txt", "--index", "{}/new", "--encoder", "{}/nowhere"), ("nowhere",)),
    (("index", "search", "museum", "--index", "{}/nowhere"), ("nowhere", "python -m retrieval build")),
    # The prompt and the answer
    ((*ECHO, "--few-shot", "{}/pairs.json"), ("pairs.json", "row 2", "only one")),
    ((*ECHO, "--few-shot", "{}/table.json"), ("table.json", "list")),
    ((*ECHO, "--few-shot", "{}/broken.json"), ("broken.json:2", "not JSON")),
    ((*ECHO, "--few-shot", "{}/noise.txt"), ("noise.txt", "UTF-8")),
    ((*ECHO, "--few-shot", "{}/nowhere.json"), ("nowhere.json", "no such file")),
    ((*ECHO, "--eval-data", "{}/prompts.json"), ("prompts.json", "row 2", "3")),
    ((*ECHO, "--eval-data", "{}/table.json"), ("table.json", "list")),
    ((*ECHO, "--temperature", "-1"), ("temperature=-1", "0 (greedy) or more")),
    ((*ECHO, "--temperature", "nan"), ("temperature=nan", "finite")),
    ((*ECHO, "--temperature", "warm"), ("warm", "--temperature")),
    ((*ECHO, "--top-p", "0"), ("top_p=0", "at most 1")),
    ((*ECHO, "--top-p", "1.5"), ("top_p=1.5", "at most 1")),
    ((*ECHO, "--top-k", "-1"), ("top_k=-1", "0 (no limit)")),
    ((*ECHO, "--repetition-penalty", "0"), ("repetition_penalty=0", "above 0")),
    ((*ECHO, "--max-tokens", "0"), ("max_tokens=0", "at least 1")),
    ((*ECHO, "--max-tokens", "9000"), ("9000", "8192")),
    ((*ECHO, "--seed", "1" * 30), ("1" * 30, "64 bits")),
    # Moderation
    ((*ECHO, "--moderation-model", "{}/nowhere"), ("nowhere", "does not exist")),
    (
        (*ECHO, "--moderation-model", "x", "--moderation-policy", "{}/policy.yaml"),
        ("policy.yaml:1", "auto, open, closed"),
    ),
    ((*ECHO, "--moderation-model", "x", "--moderation-policy", "{}/nowhere.yaml"), ("nowhere.yaml",)),
    (("moderate", "policy", "{}/policy.yaml"), ("policy.yaml:1", "auto, open, closed")),
    # Files
    ((*ECHO, "--load", "{}/nowhere.jsonl"), ("nowhere.jsonl", "No such file")),
    ((*ECHO, "--load", "{}/talk.jsonl"), ("talk.jsonl:2", "JSON")),
    ((*ECHO, "--load", "{}/roles.jsonl"), ("roles.jsonl:1", "robot", "system, user, assistant")),
    ((*ECHO, "--load", "{}/empty.jsonl"), ("empty.jsonl", "no conversation")),
    ((*ECHO, "--load", "{}/noise.txt"), ("noise.txt:1", "JSON")),
    ((*ECHO, "--save", "{}/document.txt/talk.jsonl"), ("document.txt/talk.jsonl", "name another file")),
    ((*ECHO, "--save-pairs", "{}/document.txt/pairs.json"), ("document.txt/pairs.json", "name another file")),
    ((*ECHO, "--feedback", "{}/document.txt/f.jsonl"), ("document.txt/f.jsonl", "name another file")),
    ((*ECHO, "--save", "{}/empty"), ("{}/empty", "is a directory")),
    # The command itself
    (("chta",), ("chta",)),
    ((*ECHO, "--temprature", "1"), ("--temprature", "--temperature")),
    ((*ECHO, "hello"), ("hello",)),
    (("models", "nosuchmodel"), ("nosuchmodel", "smollm2-135m, minilm")),
    (("serve", "--engine", "echo", "--port", "99999"), ("99999", "65535")),
    (("serve", "--engine", "echo", "--top-p", "0"), ("top_p=0",)),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=lambda value: " ".join(value[-2:]))
def test_bad_input_is_one_line_with_the_value_and_the_remedy(refused, folder, arguments, named):
    line = refused(*arguments)
    for each in named:
        assert each.replace("{}", str(folder)) in line


def test_a_template_is_checked_before_the_model_is_loaded(refused, tiny_chat_model):
    line = refused("chat", "--model", tiny_chat_model, "--template", "baroque")
    assert "baroque" in line
    assert "human-bot" in line


def test_max_tokens_beyond_the_model(refused, tiny_chat_model):
    line = refused("chat", "--model", tiny_chat_model, "--max-tokens", 512)
    assert "--max-tokens 512" in line
    assert "context of 512" in line


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("flag", ["--load-in-8bit", "--load-in-4bit"])
def test_quantising_needs_bitsandbytes(refused, tiny_chat_model, flag):
    line = refused("chat", "--model", tiny_chat_model, flag)
    assert "bitsandbytes" in line
    assert "pip install" in line


def test_both_ways_to_quantise_exclude_each_other(refused, tiny_chat_model):
    line = refused("chat", "--model", tiny_chat_model, "--load-in-8bit", "--load-in-4bit")
    assert "--load-in-8bit and --load-in-4bit" in line


@pytest.mark.parametrize("flags", [("--gpu-id", 0), ("-g", "0:10"), ("-g", "0:10,1:8", "-r", 4), ("--device", "cuda")])
def test_flags_for_gpus_need_gpus(refused, tiny_chat_model, flags):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    line = refused("chat", "--model", tiny_chat_model, *flags)
    assert "0 CUDA GPUs" in line
    assert "leave out" in line


def test_a_known_model_that_was_not_prepared(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    assert "run: python tools/prepare_model.py smollm2-135m" in refused("chat")
    line = refused("index", "build", "{}/document.txt", "--index", tmp_path / "index")
    assert "run: python tools/prepare_model.py minilm" in line


def test_an_index_of_another_encoder(refused, minilm, folder, tmp_path):
    build_index([folder / "document.txt"], tmp_path / "index", str(minilm))
    for index, encoder, built_with in (
        (folder / "index", minilm, "hash"),
        (tmp_path / "index", "hash", f"{minilm}:int8"),
    ):
        line = refused(*ECHO, "--index", index, "--encoder", encoder)
        assert f"index '{index}' was built with encoder '{built_with}'" in line
        assert f"--index {index} --encoder {encoder}" in line


def test_an_index_whose_encoder_is_gone(refused, minilm, folder, tmp_path, monkeypatch):
    build_index([folder / "document.txt"], tmp_path / "index", "minilm")
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    line = refused(*ECHO, "--index", tmp_path / "index")
    assert "was built with encoder 'minilm:" in line
    assert "run: python tools/prepare_model.py minilm" in line


def test_a_debugger_may_see_the_traceback(monkeypatch):
    monkeypatch.setenv("PARLEY_DEBUG", "1")
    result = CliRunner().invoke(main, [*ECHO, "--top-p", "0"])
    assert isinstance(result.exception, ValueError)


# In a process of its own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_input_that_is_not_utf_8(locale):
    stdin = "good\ncafé\n".encode("latin-1")
    done = parley(*ECHO, stdin=stdin, LC_ALL=locale)
    assert done.returncode == 2
    assert done.stdout == b"good\n"  # what came before is answered
    line = done.stderr.decode()
    assert line.startswith("error: line 2 of the input is not UTF-8")
    assert "convert it" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_input_in_utf_8_comes_out_as_it_went_in(mark):
    text = "Grüße, 世界 😀\n".encode()
    done = parley(*ECHO, stdin=mark + text, LC_ALL="C.UTF-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, text, b"")


def test_no_input_is_no_error():
    done = parley(*ECHO)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_mistake_is_one_line_in_a_real_process_too(folder):
    done = parley(*ECHO, "--index", folder / "nowhere")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().count("\n") == 1


def test_a_folder_for_saving_is_made(tmp_path):
    path = tmp_path / "new" / "folder" / "talk.jsonl"
    result = CliRunner().invoke(main, [*ECHO, "--save", str(path)], input="hello\n")
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert path.read_text().count("hello") == 2


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "parley", *ECHO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write(b"hello\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


# Help ----------------------------------------------------------------------------------------------------------------

FLAGS = """--model --retrieval --index --engine --system --few-shot --max-tokens --sample --temperature --top-k --top-p
--repetition-penalty --seed --gpu-id -g --gpu-vram -r --cpu-ram --load-in-8bit --load-in-4bit --dtype --k
--moderation"""


def words(help_text: str) -> set[str]:
    return set(help_text.replace(",", " ").replace("/", " ").split())


def test_the_doors_help_names_every_subcommand():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, (_, about) in COMMANDS.items():
        assert name in words(result.stdout)
        assert about in result.stdout
    assert CliRunner().invoke(main, []).stdout == result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_help(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"Usage: main {name}" in result.stdout
    assert "--help" in words(result.stdout)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("chat", ["--stream", "--load", "--save", "--json", "--eval-data", "--save-pairs", "--complete"]),
        ("serve", ["--host", "--port"]),
    ],
)
def test_help_mentions_every_flag(name, own):
    result = CliRunner().invoke(main, [name, "--help"])
    assert {*FLAGS.split(), *own} - words(result.stdout) == set()


def test_the_scripts_have_the_same_help_as_the_door():
    for script, name in (("chatbot/bot.py", "chat"), ("tools/prepare_model.py", "models")):
        done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True)
        door = CliRunner().invoke(main, [name, "--help"]).stdout
        assert words(done.stdout) - words(door) == {Path(script).name}
        assert done.stderr == ""


def test_the_version_is_shown():
    done = parley("--version")
    assert done.returncode == 0
    assert done.stdout.decode().split()[-1].count(".") == 2


@pytest.mark.parametrize("given", ["moderation_model", "moderation_policy"])
def test_a_classifier_or_a_policy_that_cannot_be_had_is_an_error(given):
    asked = dict.fromkeys(("model", "k", "retrieval", "index", "moderation", "moderation_model", "moderation_policy"))
    asked[given] = "x"
    check_options(asked)
    assert asked["moderation"] is True


def test_known_small_models_are_given_fewer_passages():
    asked = dict.fromkeys(("model", "k", "retrieval", "index", "moderation", "moderation_model", "moderation_policy"))
    for model, k, wanted in (("smollm2-135m", None, 1), ("smollm2-135m", 5, 5), ("some/model", None, 3)):
        options = asked | {"model": model, "k": k}
        check_options(options)
        assert options["k"] == wanted


def test_moderation_is_on_unless_its_encoder_is_missing(tmp_path):
    hidden = {"PARLEY_HOME": str(tmp_path)}
    done = parley("chat", "--engine", "echo", "--json", stdin=b"hello\n")
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert set(answer["verdicts"]) == {"input", "output"}
    assert answer["verdicts"]["input"]["scores"]["harassment"] < 0.5
    without = parley("chat", "--engine", "echo", "--json", stdin=b"hello\n", **hidden)
    assert json.loads(without.stdout)["verdicts"] == {}
    (line,) = without.stderr.decode().splitlines()
    assert line.startswith("moderation is off: model 'minilm' is not prepared yet; run: python tools/prepare_model.py")
    off = parley("chat", "--engine", "echo", "--json", "--no-moderation", stdin=b"hello\n", **hidden)
    assert (json.loads(off.stdout)["verdicts"], off.stderr) == ({}, b"")
    asked = parley("chat", "--engine", "echo", "--moderation", stdin=b"hello\n", **hidden)
    assert (asked.returncode, asked.stdout) == (2, b"")
    assert "minilm" in asked.stderr.decode()
