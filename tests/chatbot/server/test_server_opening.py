"""From flags to a server: the same bot as the shell's, with the indexes under their names, and its limits."""

from __future__ import annotations

import click
import pytest

from chatbot.api import chat
from chatbot.api.service import Caller
from chatbot.api.watch import Watch
from chatbot.assembly import open_bot
from chatbot.conversation import Conversation
from chatbot.options import bot_options, check_options
from chatbot.server.commands import open_state, server_options
from retrieval.writing.building import build_index

pytest.importorskip("pydantic", reason="needs the `server` extra")
from chatbot.api.schema import ChatRequest, read


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    for name in ("hills", "rivers"):
        (folder / f"{name}.txt").write_text(f"All about the {name} of the north. They are old.")
        build_index([folder / f"{name}.txt"], folder / name, "hash", floor=0.05)
    return folder


def options(*arguments):
    found = {}

    @server_options
    @bot_options
    def command(**values):
        check_options(values)
        found.update(values)

    given = ["--engine", "echo", "--no-moderation", *map(str, arguments)]
    click.command()(command).main(given, standalone_mode=False)
    return found


def test_a_request_is_prepared_as_the_shell_would(indexes):
    given = options("--index", indexes / "hills", "--index", indexes / "rivers", "--system", "Be brief.", "--k", 2)
    state = open_state("127.0.0.1", given)
    (name,) = state.service.collections
    question = "Which of the north are old?"
    request = read(ChatRequest, {"messages": [{"role": "user", "content": question}]})
    ours = chat.prepare(state.service, Caller("x", (name,)), request, Watch()).turn
    shells = open_bot(given).prepare(Conversation().add("user", question))
    assert ours.prompt == shells.prompt
    assert len(ours.prompt.used) == 2
    alone = read(ChatRequest, {"messages": [{"role": "user", "content": question}], "parley": {"retrieval": False}})
    ours = chat.prepare(state.service, Caller("x", (name,)), alone, Watch()).turn
    shells = open_bot(options("--system", "Be brief.")).prepare(Conversation().add("user", question))
    assert ours.prompt == shells.prompt


def test_collections_share_their_encoder_and_have_their_own_names(indexes):
    given = options(f"--index=a={indexes / 'hills'}", f"--index=b={indexes / 'rivers'}")
    service = open_state("127.0.0.1", given).service
    assert list(service.collections) == ["a", "b"]
    first, second = service.collections.values()
    assert first.encoder is second.encoder
    assert [hit.passage.title for hit in first.searcher.search(["old"], 1)[0]] == ["Hills"]


def test_limits_and_names(indexes, monkeypatch):
    monkeypatch.delenv("PARLEY_API_KEY", raising=False)
    flags = ("--concurrent", 3, "--queue", 5, "--body-bytes", 77, "--request-seconds", 9, "--drain-seconds", 4)
    state = open_state(
        "127.0.0.1", options(*flags, "--max-k", 6, "--prompt-tokens", 88, "--allowed-host", "Chat.Example")
    )
    assert (state.limits.concurrent, state.limits.queued, state.limits.body_bytes) == (3, 5, 77)
    assert (state.limits.request_seconds, state.limits.drain_seconds) == (9, 4)
    assert (state.service.max_k, state.service.max_prompt_tokens, state.service.tell_cached) == (6, 88, True)
    assert state.hosts == {"127.0.0.1", "localhost", "[::1]", "chat.example"}
    with pytest.raises(ValueError, match="PARLEY_API_KEY"):
        open_state("0.0.0.0", options())  # noqa: S104
    monkeypatch.setenv("PARLEY_API_KEY", "a-key-that-is-long")
    assert open_state("0.0.0.0", options()).hosts is None  # noqa: S104


def test_moderation_is_locked_with_a_policy_of_ones_own(tmp_path):
    (tmp_path / "policy.yaml").write_text("default: {action: warn, threshold: 0.5}\n")
    assert not open_state("127.0.0.1", options()).service.lock_moderation
    assert open_state("127.0.0.1", options("--lock-moderation")).service.lock_moderation
    given = options() | {"moderation_policy": tmp_path / "policy.yaml"}
    assert open_state("127.0.0.1", given).service.lock_moderation
    assert not open_state("127.0.0.1", given | {"lock_moderation": False}).service.lock_moderation
