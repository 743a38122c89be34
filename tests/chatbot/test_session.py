"""A chat session: its commands, and what is on disk after each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation, Message, load_conversations, save_conversations
from chatbot.core import NOT_IN_DOCUMENTS, Bot, Done, Event, Notice, Text
from chatbot.engines.base import Delta, Generation, Usage
from chatbot.engines.echo import EchoModel
from chatbot.prompt_files import load_examples, load_prompts
from chatbot.prompting import PromptAssembler
from chatbot.session import Files, Session
from moderation.types import Verdict
from retrieval.types import Hit, Passage

HIT = Hit(Passage("p1", "It spans the bay.", "Bridge", "bridge.txt", 3, 4), 0.75)


class Searcher:
    """Finds HIT for whatever mentions a bridge."""

    floor = 0.3

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        return [[HIT] if "bridge" in query else [] for query in queries]


class Moderator:
    """Blocks messages with `bad` in them."""

    refusal = "No."

    def can_block(self, direction: str) -> bool:
        return direction == "input"

    def can_flag(self, direction: str) -> bool:
        return direction == "input"

    def check(self, texts: Sequence[str], direction: str = "input", vectors: Any = None) -> list[Verdict]:
        blocked = [direction == "input" and "bad" in text for text in texts]
        return [Verdict(each, "block" if each else "allow", {"toxic": float(each)}) for each in blocked]


class Recorder(EchoModel):
    """An echo that remembers how it was asked to generate."""

    def __init__(self, context_length: int = 8192) -> None:
        super().__init__(context_length=context_length)
        self.asked: list[tuple[Conversation, Generation]] = []

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        self.asked.append((conversation, generation))
        yield from super().stream(conversation, generation)


class Counting(EchoModel):
    """Gives another answer each time."""

    num = 0

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        self.num += 1
        yield Delta(f"answer {self.num}", "stop", Usage(1, 1))


class Failing(EchoModel):
    """Breaks off before its first word when the newest message is `fail`."""

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        if conversation.last.content == "fail":
            raise ValueError("the model broke")
        yield from super().stream(conversation, generation)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "chat.jsonl", tmp_path / "pairs.json", tmp_path / "feedback.jsonl")


def make(files: Files = Files(), model: Any = None, system: str = "", **parts: Any) -> Session:
    model = model or EchoModel()
    return Session(Bot(model, PromptAssembler(model.count_tokens, model.context_length, system), **parts), files)


def say(session: Session, text: str) -> str:
    """Ask, and read the answer to its end."""
    return "".join(event.text for event in session.ask(text) if isinstance(event, Text))


def contents(session: Session) -> list[str]:
    return [message.content for message in session.conversation]


# Talking ------------------------------------------------------------------------------------------------------------


def test_questions_and_answers_join_the_conversation() -> None:
    session = make()
    assert [say(session, "one"), say(session, "two")] == ["one", "two"]
    assert session.conversation.to_dicts() == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "two"},
    ]


def test_the_model_sees_the_conversation_so_far() -> None:
    model = Recorder()
    session = make(model=model)
    say(session, "one")
    say(session, "two")
    assert [message.content for message in model.asked[-1][0]] == ["one", "one", "two"]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_nothing_to_say_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="nothing to say"):
        say(make(), text)


def test_a_stopped_answer_stays_as_far_as_it_came(files: Files) -> None:
    session = make(files)
    events = session.ask("one two three")
    assert [next(events), next(events)] == [Text("one"), Text(" two")]
    events.close()  # type: ignore[attr-defined]  # a generator
    assert contents(session) == ["one two three", "one two"]
    assert [m.content for m in load_conversations(files.save or Path())[0]] == ["one two three", "one two"]
    assert files.pairs is not None
    assert not files.pairs.exists(), "pairs are there to be trained on: whole answers only"
    assert say(session, "go on") == "go on"


def test_a_question_without_an_answer_gives_way_to_the_next() -> None:
    model = Failing()
    session = make(model=model)
    say(session, "one")
    with pytest.raises(ValueError, match="the model broke"):
        say(session, "fail")
    assert say(session, "two") == "two"
    assert contents(session) == ["one", "one", "two", "two"]


def test_a_failed_question_can_be_taken_back() -> None:
    session = make(model=Failing())
    with pytest.raises(ValueError, match="the model broke"):
        say(session, "fail")
    assert session.undo() == "fail"
    assert contents(session) == []


def test_a_blocked_message_leaves_no_trace_in_the_conversation(files: Files) -> None:
    session = make(files, moderator=Moderator())
    say(session, "one")
    assert say(session, "something bad") == "No."
    assert contents(session) == ["one", "one"]
    assert "bad" not in (files.save or Path()).read_text()
    assert "bad" not in (files.pairs or Path()).read_text()


def test_a_plain_completion_leaves_the_conversation_alone(files: Files) -> None:
    session = make(files)
    say(session, "one")
    *_, done = session.complete("Once upon a time")
    assert isinstance(done, Done)
    assert (done.reply.text, done.reply.usage) == ("Once upon a time", Usage(4, 4))
    assert contents(session) == ["one", "one"]
    assert json.loads((files.pairs or Path()).read_text())[-1] == ["Once upon a time", "Once upon a time"]


# Taking back and changing -------------------------------------------------------------------------------------------


def test_undo_takes_back_a_question_and_its_answer(files: Files) -> None:
    session = make(files)
    say(session, "one")
    say(session, "two")
    assert session.undo() == "two"
    assert contents(session) == ["one", "one"]
    assert [m.content for m in load_conversations(files.save or Path())[0]] == ["one", "one"]


@pytest.mark.parametrize("command", ["undo", "regenerate"])
def test_there_must_be_something_to_take_back_or_repeat(command: str) -> None:
    with pytest.raises(ValueError, match="nothing has been said yet"):
        list(getattr(make(), command)() or ())


def test_regenerate_replaces_the_answer() -> None:
    session = make(generation=Generation(sample=True, seed=1))
    say(session, "one")
    session.edit("another")
    events = list(session.regenerate())
    assert not any(isinstance(event, Notice) for event in events)
    assert contents(session) == ["one", "one"]


@pytest.mark.parametrize(
    ("generation", "temperature"),
    [(Generation(temperature=0.9), 0.9), (Generation(sample=True, temperature=0), Generation().temperature)],
    ids=["not-sampling", "temperature-0"],
)
def test_regenerate_samples_where_decoding_is_greedy_and_says_so(generation: Generation, temperature: float) -> None:
    model = Recorder()
    session = make(model=model, generation=generation)
    say(session, "one")
    first = next(iter(events := session.regenerate()))
    assert first == Notice(f"sampling at temperature {temperature:g}, since greedy decoding would repeat the answer")
    list(events)
    assert model.asked[0][1].greedy
    assert not model.asked[1][1].greedy
    assert model.asked[1][1].temperature == temperature
    assert session.bot.generation == generation, "the setting itself stays"


def test_regenerate_looks_into_the_documents_again() -> None:
    session = make(retriever=Searcher())
    say(session, "Where is the bridge?")
    *_, done = session.regenerate()
    assert isinstance(done, Done)
    assert done.reply.sources == (HIT,)
    assert len(session.conversation) == 2


def test_reset_forgets_the_conversation_and_keeps_the_settings(files: Files) -> None:
    session = make(files, system="Be brief.", generation=Generation(max_tokens=9))
    say(session, "one")
    session.reset()
    assert contents(session) == []
    assert (session.bot.assembler.system, session.bot.generation.max_tokens) == ("Be brief.", 9)
    with pytest.raises(ValueError, match="no answer to rate"):
        session.rate("good")


def test_edit_puts_a_text_in_the_answers_place_and_keeps_both_as_feedback(files: Files) -> None:
    session = make(files)
    say(session, "one")
    session.edit("a better one")
    assert contents(session) == ["one", "a better one"]
    assert [m.content for m in load_conversations(files.save or Path())[0]] == ["one", "a better one"]
    (record,) = records(files)
    assert (record["rating"], record["answer"], record["edit"]) == ("edit", "one", "a better one")


def test_edit_needs_no_feedback_file() -> None:
    session = make()
    say(session, "one")
    session.edit("two")
    assert contents(session) == ["one", "two"]


def test_edit_needs_an_answer_and_a_text() -> None:
    session = make()
    with pytest.raises(ValueError, match="no answer to edit"):
        session.edit("x")
    say(session, "one")
    with pytest.raises(ValueError, match="the new answer is empty"):
        session.edit(" \n")
    assert contents(session) == ["one", "one"]


def test_what_moderation_said_is_saved_and_read_back(files: Files) -> None:
    session = make(files, moderator=Moderator())
    say(session, "Where is the bridge?")
    expected = (("input", Verdict(False, "allow", {"toxic": 0.0})), ("output", Verdict(False, "allow", {"toxic": 0.0})))
    assert session.conversation.last.verdicts == expected
    assert files.save is not None
    (saved,) = load_conversations(files.save)
    assert saved.last == session.conversation.last
    session.rate("good")
    assert records(files)[0]["verdicts"]["input"] == {
        "flagged": False,
        "action": "allow",
        "scores": {"toxic": 0.0},
        "labels": [],
        "error": None,
    }


# Ratings ------------------------------------------------------------------------------------------------------------


def records(files: Files) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (files.feedback or Path()).read_text(encoding="utf-8").splitlines()]


def test_a_rating_is_a_whole_record(files: Files) -> None:
    session = make(files, system="Be brief.", retriever=Searcher(), generation=Generation(seed=7), k=2)
    answer = say(session, "Where is the bridge in Zürich?")
    assert session.rate("good", "it is right 😀") == files.feedback
    (record,) = records(files)
    assert record.pop("time").endswith("+00:00")
    assert record.pop("id").startswith("answer-")
    settings = record.pop("settings")
    assert record == {
        "rating": "good",
        "reason": "it is right 😀",
        "messages": [{"role": "user", "content": "Where is the bridge in Zürich?"}],
        "passages": [
            {
                "id": "p1",
                "text": "It spans the bay.",
                "title": "Bridge",
                "source": "bridge.txt",
                "start": 3,
                "end": 4,
                "unit": "line",
                "meta": {},
                "injection": None,
                "score": 0.75,
            }
        ],
        "verdicts": {},
        "answer": answer,
        "finish_reason": "stop",
        "edit": None,
        "replaced": None,
        "prompt": f"system: Be brief.\nuser: {answer}\nassistant:",
        "prompt_messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": answer}],
        "model": "echo",
    }
    assert (settings["seed"], settings["k"], settings["system"], settings["max_tokens"]) == (7, 2, "Be brief.", 256)


def test_ratings_are_appended(files: Files) -> None:
    session = make(files)
    for text, rating in (("one", "good"), ("two", "bad")):
        say(session, text)
        session.rate(rating)  # type: ignore[arg-type]
    assert [(record["answer"], record["rating"]) for record in records(files)] == [("one", "good"), ("two", "bad")]
    assert [len(record["messages"]) for record in records(files)] == [1, 3]


def test_ratings_of_one_answer_have_one_id_and_the_last_holds(files: Files) -> None:
    session = make(files)
    say(session, "one")
    session.rate("good")
    session.rate("bad", "dull")
    say(session, "two")
    session.rate("good")
    for _ in session.regenerate():  # the echo gives the same answer, which replaces nothing
        pass
    session.rate("bad")
    session.edit("2")
    session.rate("good")
    ids = [record["id"] for record in records(files)]
    assert ids[0] == ids[1]
    assert ids[3] == ids[4]
    assert len(set(ids)) == 4  # the last is of the corrected text
    lasting = {record["id"]: record for record in records(files)}
    found = [(record["rating"], record["reason"], record["edit"]) for record in lasting.values()]
    assert found == [("bad", "dull", None), ("good", "", None), ("edit", "", "2"), ("good", "", None)]


def test_an_answer_in_anothers_place_is_kept_with_what_it_replaced(files: Files) -> None:
    session = make(files, model=Counting())
    say(session, "one")
    list(session.regenerate())
    session.rate("bad")
    list(session.regenerate())
    session.edit("better")
    session.rate("good")
    list(session.regenerate())
    say(session, "two")
    session.rate("good")
    kept = [(each["rating"], each["replaced"], each["answer"], each["edit"]) for each in records(files)]
    assert kept == [
        ("regenerate", "answer 1", "answer 2", None),
        ("bad", "answer 1", "answer 2", None),
        ("regenerate", "answer 2", "answer 3", None),
        ("edit", "answer 2", "answer 3", "better"),
        ("good", None, "better", None),
        ("regenerate", "better", "answer 4", None),
        ("good", None, "answer 5", None),
    ]
    ids = [each["id"] for each in records(files)]
    assert [ids[0] == ids[1], ids[2] == ids[3], len(set(ids))] == [True, True, 5]
    assert all(each["messages"] == [{"role": "user", "content": "one"}] for each in records(files)[:-1])


def test_an_answer_that_was_stopped_is_kept_as_cut_off(files: Files) -> None:
    session = make(files)
    events = session.ask("one two three")
    next(events)
    events.close()  # type: ignore[attr-defined]  # a generator
    session.rate("good")
    session.edit("one and all")
    session.rate("good")
    assert [(each["answer"], each["finish_reason"]) for each in records(files)] == [
        ("one", "length"),
        ("one", "length"),
        ("one and all", "stop"),
    ]


def test_without_a_file_another_answer_is_kept_nowhere() -> None:
    session = make(model=Counting())
    say(session, "one")
    list(session.regenerate())
    assert contents(session) == ["one", "answer 2"]


def test_an_answer_that_no_model_gave_has_no_prompt(files: Files) -> None:
    session = make(files, retriever=Searcher())
    say(session, "Where is Zürich?")
    session.rate("bad")
    assert (records(files)[0]["answer"], records(files)[0]["prompt"]) == (NOT_IN_DOCUMENTS, None)


def test_a_rating_needs_a_file_and_an_answer(files: Files) -> None:
    with pytest.raises(ValueError, match="no feedback file; start with --feedback FILE"):
        make().rate("good")
    with pytest.raises(ValueError, match="no answer to rate"):
        make(files).rate("good")


def test_nothing_is_left_to_rate_after_undo(files: Files) -> None:
    session = make(files)
    say(session, "one")
    session.undo()
    with pytest.raises(ValueError, match="no answer to rate"):
        session.rate("good")


# Files --------------------------------------------------------------------------------------------------------------


def test_conversation_and_pairs_are_on_disk_after_each_turn(files: Files) -> None:
    session = make(files)
    for n, text in enumerate(["one", "two 😀"], start=1):
        say(session, text)
        assert [m.content for m in load_conversations(files.save or Path())[0]] == contents(session)
        pairs = json.loads((files.pairs or Path()).read_text(encoding="utf-8"))
        assert len(pairs) == n
        assert pairs[-1][1] == text
        assert pairs[-1][0].endswith(f"user: {text}\nassistant:")


def test_pairs_hold_what_the_model_saw(files: Files) -> None:
    session = make(files, system="Be brief.", retriever=Searcher())
    say(session, "Where is the bridge?")
    ((prompt, _),) = json.loads((files.pairs or Path()).read_text(encoding="utf-8"))
    assert prompt.startswith("system: Be brief.\nuser: ")
    assert "[1] Bridge\nIt spans the bay." in prompt


def test_without_files_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = make()
    say(session, "one")
    session.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_saved_chat_is_loaded_with_its_system_prompt_and_passages(tmp_path: Path) -> None:
    first, second = make(system="Be brief.", retriever=Searcher()), make(system="Be long.")
    say(first, "Where is the bridge?")
    first.save(tmp_path / "chat.jsonl")
    second.load(tmp_path / "chat.jsonl")
    assert second.conversation == first.conversation
    assert second.conversation.messages[0].passages == (HIT.passage,)
    assert second.bot.assembler.system == "Be brief."
    assert say(second, "Go on") == "Go on"


def test_loading_goes_on_with_the_last_conversation_of_a_file(tmp_path: Path) -> None:
    chats = [Conversation().add("user", text).add("assistant", text) for text in ("one", "two")]
    save_conversations(tmp_path / "chats.jsonl", chats)
    session = make(system="Be brief.")
    session.load(tmp_path / "chats.jsonl")
    assert contents(session) == ["two", "two"]
    assert session.bot.assembler.system == "Be brief."


@pytest.mark.parametrize("text", ["", "\n", "{}", '{"messages": [{"role": "user"}]}'])
def test_a_file_that_cannot_be_loaded_changes_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(text)
    session = make(system="Be brief.")
    say(session, "one")
    with pytest.raises(ValueError, match=r"chat\.jsonl"):
        session.load(tmp_path / "chat.jsonl")
    assert contents(session) == ["one", "one"]
    assert session.bot.assembler.system == "Be brief."


def test_a_new_system_prompt_takes_effect_with_the_next_message() -> None:
    model = Recorder()
    session = make(model=model)
    say(session, "one")
    session.set_system("Be brief.")
    say(session, "two")
    session.set_system("")
    say(session, "three")
    assert [asked.messages[0].content for asked, _ in model.asked] == ["one", "Be brief.", "one"]


# Settings -----------------------------------------------------------------------------------------------------------


def test_settings_are_set_and_shown() -> None:
    typed = {
        "max_tokens": ("9", 9),
        "sample": ("on", True),
        "temperature": ("0.5", 0.5),
        "top_k": ("0", 0),
        "top_p": ("0.9", 0.9),
        "repetition_penalty": ("1.2", 1.2),
        "seed": ("5", 5),
        "stop": ("a,b", ("a", "b")),
        "k": ("2", 2),
        "floor": ("0.25", 0.25),
        "layout": ("kept", "kept"),
    }
    session = make()
    session.set_hyperparameters([f"{name}={text}" for name, (text, _) in typed.items()])
    assert session.hyperparameters() == {name: value for name, (_, value) in typed.items()}


def test_settings_can_be_unset() -> None:
    session = make(generation=Generation(seed=5, stop=("a",), sample=True), floor=0.2)
    session.set_hyperparameters(["seed=none", "stop=", "sample=off", "floor=none"])
    shown = session.hyperparameters()
    assert [shown[name] for name in ("seed", "stop", "sample", "floor")] == [None, (), False, None]


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("max_tokens=0", "max_tokens=0 must be at least 1"),
        ("max_tokens=1.5", "max_tokens=1.5 must be a whole number"),
        ("max_tokens=8192", "max_tokens=8192 must be below the model's context of 8192"),
        ("temperature=-1", "temperature=-1 must be 0"),
        ("temperature=nan", "temperature=nan must be a finite number"),
        ("temperature=hot", "temperature=hot must be a number"),
        ("top_k=-1", "top_k=-1 must be 0"),
        ("top_p=0", "top_p=0 must be above 0"),
        ("top_p=1.1", "top_p=1.1 must be above 0 and at most 1"),
        ("repetition_penalty=0", "repetition_penalty=0 must be above 0"),
        ("repetition_penalty=inf", "repetition_penalty=inf must be a finite number"),
        ("seed=x", "seed=x must be a whole number"),
        ("seed=99999999999999999999", "seed=99999999999999999999 must be"),
        ("sample=yes", "sample=yes must be on or off"),
        ("k=0", "k=0 must be at least 1"),
        ("k=two", "k=two must be a whole number"),
        ("floor=low", "floor=low must be a number"),
        ("floor=nan", "floor=nan must be a finite number"),
        ("layout=new", "unknown layout 'new'; choose one of: latest, kept"),
        ("warmth=1", "unknown setting 'warmth'; choose one of: max_tokens, sample"),
        ("temperature", "'temperature' is not name=value"),
        ("", "'' is not name=value"),
    ],
)
def test_a_bad_setting_is_explained_and_no_other_is_set(assignment: str, complaint: str) -> None:
    session = make()
    before = session.hyperparameters()
    with pytest.raises(ValueError, match=complaint):
        session.set_hyperparameters(["seed=5", "k=7", assignment])
    assert session.hyperparameters() == before


def test_another_model_brings_its_context() -> None:
    session = make()
    session.set_model(EchoModel("small", context_length=100))
    assert (session.bot.model.name, session.bot.assembler.context_length) == ("small", 100)
    with pytest.raises(ValueError, match="leave no room in the model's context of 100"):
        say(session, "one")


def test_retrieval_is_switched_off_and_on_again() -> None:
    session = make(retriever=Searcher())
    session.set_retrieval(False)
    assert say(session, "Where is Zürich?") == "Where is Zürich?"
    assert session.has_index
    session.set_retrieval(True)
    assert say(session, "Where is Zürich?") == NOT_IN_DOCUMENTS


def test_searching_needs_no_model() -> None:
    assert make(retriever=Searcher()).search("bridge") == [HIT]


def test_retrieval_needs_an_index() -> None:
    session = make()
    assert not session.has_index
    for action in (lambda: session.set_retrieval(True), lambda: session.search("bridge")):
        with pytest.raises(ValueError, match="no index is open; start with --index DIR"):
            action()
    session.set_retriever(Searcher())
    assert session.search("bridge") == [HIT]


# Files of examples and prompts --------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    (folder / "rows.json").write_text(text, encoding="utf-8")
    return folder / "rows.json"


def test_examples_become_alternating_messages(tmp_path: Path) -> None:
    file = write(tmp_path, '[["Hi", "Hello 😀"], ["Bye", "Goodbye"]]')
    assert load_examples(file) == (
        Message("user", "Hi"),
        Message("assistant", "Hello 😀"),
        Message("user", "Bye"),
        Message("assistant", "Goodbye"),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[["a", "b"], ["a"]]', r'rows\.json: row 2 must be \[user, assistant\], two texts; it is \["a"\]'),
        ('[["a", ""]]', "row 1 must be"),
        ('[["a", 1]]', "row 1 must be"),
        ('["ab"]', "row 1 must be"),
        ('[{"user": "a"}]', "row 1 must be"),
        ("{}", r"rows\.json: must be a list of \[user, assistant\] pairs, not dict"),
        ('[["a",\n"b"]', r"rows\.json:2: not JSON"),
    ],
)
def test_a_bad_row_of_examples_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_examples(write(tmp_path, text))


def test_prompts_are_a_list_of_texts(tmp_path: Path) -> None:
    assert load_prompts(write(tmp_path, '["one", "reset", "two"]')) == ["one", "reset", "two"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('["one", 2]', r"rows\.json: row 2 must be a text; it is 2"),
        ('["one", " "]', "row 2 must be a text"),
        ('["one", ["' + "x" * 99 + '"]]', r"row 2 must be a text; it is \[\"xxx.{1,60}\.\.\.$"),
        ('"one"', r"rows\.json: must be a list of prompts, not str"),
    ],
)
def test_a_bad_row_of_prompts_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_prompts(write(tmp_path, text))


def test_events_end_with_the_reply() -> None:
    events: list[Event] = list(make().ask("one two"))
    assert [type(event) for event in events] == [Text, Text, Done]


def test_a_rating_after_an_edit_is_of_the_new_text(tmp_path: Path) -> None:
    feedback = tmp_path / "feedback.jsonl"
    session = make(Files(feedback=feedback))
    say(session, "first words")
    session.edit("better words")
    session.rate("good")
    edited, rated = [json.loads(line) for line in feedback.read_text().splitlines()]
    assert (edited["rating"], edited["answer"], edited["edit"]) == ("edit", "first words", "better words")
    assert (rated["rating"], rated["answer"]) == ("good", "better words")


def test_what_earlier_runs_saved_stays(tmp_path: Path) -> None:
    files = Files(save=tmp_path / "chats.jsonl", pairs=tmp_path / "pairs.json")
    for words in ("monday", "tuesday"):
        session = make(files)
        say(session, f"{words} one")
        session.reset()
        say(session, f"{words} two")
    saved = [each.messages[0].content for each in load_conversations(tmp_path / "chats.jsonl")]
    assert saved == ["monday one", "monday two", "tuesday one", "tuesday two"]
    pairs = json.loads((tmp_path / "pairs.json").read_text())
    assert [response for _, response in pairs] == saved


def test_a_loaded_conversation_goes_on_in_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    save_conversations(path, [Conversation().add("user", "old"), Conversation().add("user", "a").add("assistant", "b")])
    session = make(Files(save=path))
    session.load(path)
    say(session, "more")
    assert [len(each) for each in load_conversations(path)] == [1, 4]


def test_a_rating_names_the_model_that_answered(tmp_path: Path) -> None:
    session = make(Files(feedback=tmp_path / "feedback.jsonl"), system="be brief")
    say(session, "hello")
    session.set_model(EchoModel("another"))
    session.set_system("be long")
    session.rate("good")
    record = json.loads((tmp_path / "feedback.jsonl").read_text())
    assert (record["model"], record["settings"]["system"]) == ("echo", "be brief")
    assert "be brief" in record["prompt"]


def test_a_plain_completion_can_be_rated_but_not_edited(tmp_path: Path) -> None:
    session = make(Files(feedback=tmp_path / "feedback.jsonl"))
    say(session, "a question")
    assert [event.text for event in session.complete("go on ") if isinstance(event, Text)] == ["go", " on", " "]
    session.rate("bad")
    record = json.loads((tmp_path / "feedback.jsonl").read_text())
    assert (record["prompt"], record["answer"]) == ("go on ", "go on ")
    with pytest.raises(ValueError, match="not part of the conversation"):
        session.edit("other words")


def test_a_plain_completion_follows_system_prompt_and_examples() -> None:
    examples = (Message("user", "2 + 2 ="), Message("assistant", "4"))
    model = EchoModel()
    assembler = PromptAssembler(model.count_tokens, model.context_length, "Sums.", examples)
    session = Session(Bot(model, assembler))
    for _ in session.complete("3 + 3 ="):
        pass
    assert session.seen == "Sums.\n\n2 + 2 = 4\n\n3 + 3 ="
