"""What is learned of a row: the replies, their ends, and the newest turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot.conversation import Conversation
from chatbot.rendering import Renderer
from training.data.rows import ChatRow, LabelledRow, PairRow, TextRow
from training.examples.collate import IGNORE, causal_batch
from training.examples.making import CUT, NO_LOSS, SHORTENED, TOO_LONG, ExampleMaker


@pytest.fixture(scope="module")
def tokenizer(tiny_chat_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_chat_model)


@pytest.fixture
def make(tokenizer: Any) -> Any:
    def maker(max_length: int = 512, **more: Any) -> ExampleMaker:
        return ExampleMaker(Renderer(tokenizer), max_length, **more)

    return maker


def talk(*turns: str) -> Conversation:
    """User, assistant, user, ...; a first text that begins with ! is the system's."""
    conversation = Conversation()
    if turns[0].startswith("!"):
        conversation, turns = conversation.add("system", turns[0][1:]), turns[1:]
    for number, text in enumerate(turns):
        conversation = conversation.add(("user", "assistant")[number % 2], text)
    return conversation


def base_tokenizer(folder: Path) -> Any:
    """As training opens it: with a template that ends replies."""
    from training.config.schema import ModelConfig
    from training.models import load_tokenizer

    return load_tokenizer(ModelConfig(name=str(folder)), folder)


def learned(tokenizer: Any, example: Any) -> str:
    text: str = tokenizer.decode(example.ids[example.mask])
    return text


def test_all_replies_with_their_ends_are_learned_and_nothing_else(make: Any, tokenizer: Any) -> None:
    (example,) = make().examples(ChatRow(talk("!Be kind.", "Hi", "Hello", "And?", "Bye")))
    assert learned(tokenizer, example) == "Hello<|im_end|>Bye<|im_end|>"
    assert tokenizer.decode(example.ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nBye<|im_end|>\n"
    )


def test_on_the_last_reply_alone_if_asked(make: Any, tokenizer: Any, tiny_base_model: Path) -> None:
    whole = talk("!Be kind.", "Hi", "Hello", "And?", "Bye")
    (example,) = make(train_on="last").examples(ChatRow(whole))
    assert learned(tokenizer, example) == "Bye<|im_end|>"
    assert example.ids.tolist() == next(make().examples(ChatRow(whole))).ids.tolist()  # all of it is still read
    one_reply, pair = ChatRow(talk("Hi", "Hello")), PairRow("Hi", "Hello")
    for row in (one_reply, pair):
        (last,), (all_replies,) = make(train_on="last").examples(row), make().examples(row)
        assert last.mask.tolist() == all_replies.mask.tolist()
    (seq2seq,) = make(train_on="last", encoder_decoder=True).examples(ChatRow(whole))
    assert learned(tokenizer, seq2seq) == "Bye<|im_end|>"
    # A template without an end of its own, and a reply of which nothing is left.
    base = base_tokenizer(tiny_base_model)
    (example,) = ExampleMaker(Renderer(base), 512, train_on="last").examples(ChatRow(whole))
    assert learned(base, example) == " Bye<|endoftext|>"
    cut = make(40, train_on="last")
    assert list(cut.examples(ChatRow(talk("Hi", "Hello", "long " * 100, "Bye")))) == []
    assert cut.counts == {SHORTENED: 1, TOO_LONG: 1}


def test_last_replies_that_are_packed_have_these_labels(make: Any, tokenizer: Any) -> None:
    """Two conversations in one row: a label where the next token is of a last reply, and nowhere else."""
    maker = make(train_on="last")
    rows = [ChatRow(talk("a", "b", "c", "de")), ChatRow(talk("f", "g"))]
    examples = [example for row in rows for example in maker.examples(row)]
    labels = causal_batch([examples], pad_id=0, packed=True)["shift_labels"][0].tolist()
    said = ["<|im_start|>user\na", "<|im_start|>assistant\nb", "<|im_start|>user\nc", "<|im_start|>assistant\n"]
    before = len(tokenizer("<|im_end|>\n".join(said))["input_ids"])
    reply, after = tokenizer("de<|im_end|>")["input_ids"], len(tokenizer("\n")["input_ids"])
    second = len(tokenizer("<|im_start|>user\nf<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    other = tokenizer("g<|im_end|>")["input_ids"]
    expected = [IGNORE] * (before - 1) + reply + [IGNORE] * (after + 1)
    expected += [IGNORE] * (second - 1) + other + [IGNORE] * (after + 1)
    assert labels == expected


def test_on_everything_if_asked(make: Any) -> None:
    (example,) = make(train_on="all").examples(ChatRow(talk("Hi", "Hello")))
    assert example.mask.all()


def test_the_newest_turns_are_kept_and_the_system_message(make: Any, tokenizer: Any) -> None:
    conversation = talk("!S", *[f"question {number} or answer" for number in range(10)])
    whole = len(next(make().examples(ChatRow(conversation))).ids)
    maker = make(whole - 5)
    (example,) = maker.examples(ChatRow(conversation))
    text = tokenizer.decode(example.ids)
    assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nquestion 2")
    assert "question 9" in text
    assert maker.counts == {SHORTENED: 1}


def test_a_last_exchange_that_is_too_long_is_cut_or_left_out(make: Any, tokenizer: Any) -> None:
    row = ChatRow(talk("Hi", "long " * 100))
    cutting, dropping = make(40), make(40, cut=False)
    (example,) = cutting.examples(row)
    assert len(example.ids) == 40
    assert "<|im_end|>" not in learned(tokenizer, example)  # a cut reply does not end there
    assert cutting.counts == {CUT: 1}
    assert list(dropping.examples(row)) == []
    assert dropping.counts == {TOO_LONG: 1}


def test_a_prompt_that_fills_everything_leaves_nothing_to_learn(make: Any) -> None:
    maker = make(30)
    assert list(maker.examples(ChatRow(talk("long " * 100, "Hi")))) == []
    assert maker.counts == {TOO_LONG: 1}


def test_a_pair_is_verbatim_and_ends(make: Any, tokenizer: Any) -> None:
    (example,) = make().examples(PairRow("<|im_start|>user\nHi<|im_end|>\n", "Hello"))
    assert tokenizer.decode(example.ids) == "<|im_start|>user\nHi<|im_end|>\nHello<|im_end|>"
    assert learned(tokenizer, example) == "Hello<|im_end|>"
    (example,) = make().examples(PairRow("Hi", "Hello<|im_end|>"))
    assert learned(tokenizer, example) == "Hello<|im_end|>"  # not twice


def test_a_pairs_prompt_loses_its_beginning(make: Any, tokenizer: Any) -> None:
    maker = make(20)
    (example,) = maker.examples(PairRow("first " * 40 + "last", " done"))
    assert len(example.ids) == 20
    assert tokenizer.decode(example.ids).endswith("last done<|im_end|>")
    assert maker.counts == {"beginning of the prompt cut to fit": 1}


def test_a_text_is_cut_into_pieces_that_join_again(make: Any, tokenizer: Any) -> None:
    text = "The bridge was opened in 1932. " * 30
    pieces = list(make(50).examples(TextRow(text)))
    joined = [token for piece in pieces for token in piece.ids.tolist()]
    assert tokenizer.decode(joined) in (text + "<|im_end|>", text)
    assert all(len(piece.ids) == 50 for piece in pieces[:-1])
    assert all(piece.mask.all() for piece in pieces)


def test_encoder_and_decoder_get_prompt_and_last_reply(make: Any, tokenizer: Any) -> None:
    conversation = talk("Hi", "Hello", "And?", "Bye <|im_end|>")
    (example,) = make(encoder_decoder=True).examples(ChatRow(conversation))
    assert learned(tokenizer, example) == "Bye < |im_end|><|im_end|>"
    assert example.ids[~example.mask].tolist() == Renderer(tokenizer).ids(conversation.upto(3))


def test_what_cannot_be_learned_is_counted(make: Any) -> None:
    maker = make()
    assert list(maker.examples(ChatRow(talk("Only a question")))) == []
    assert maker.counts == {NO_LOSS: 1}
    with pytest.raises(TypeError, match="LabelledRow"):
        next(maker.examples(LabelledRow("text", {})))


def test_a_template_without_an_end_gets_one(tiny_base_model: Path) -> None:
    """A base model has no template; the one it gets for training ends each reply, and generation will stop there."""
    tokenizer = base_tokenizer(tiny_base_model)
    (example,) = ExampleMaker(Renderer(tokenizer), 512).examples(ChatRow(talk("Hi", "Hello", "And?", "Bye")))
    assert tokenizer.decode(example.ids) == (
        "Human: Hi\n\nAssistant: Hello<|endoftext|>\n\nHuman: And?\n\nAssistant: Bye<|endoftext|>\n\n"
    )
    assert learned(tokenizer, example) == " Hello<|endoftext|> Bye<|endoftext|>"
    # The prompt of chat is the beginning of what was trained on.
    prompt = Renderer(tokenizer).ids(talk("Hi"))
    assert example.ids[: len(prompt)].tolist() == prompt


@given(
    turns=st.lists(st.text(min_size=1, max_size=30), min_size=2, max_size=8),
    max_length=st.integers(8, 120),
    cut=st.booleans(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_said_fits_and_only_replies_are_learned(
    make: Any, tokenizer: Any, turns: list[str], max_length: int, cut: bool
) -> None:
    try:
        conversation = talk(*[turn.lstrip("!") or "x" for turn in turns])
    except ValueError:
        return  # half a character
    maker = make(max_length, cut=cut)
    for example in maker.examples(ChatRow(conversation)):
        assert len(example.ids) == len(example.mask) <= max_length
        assert example.mask[1:].any()
        text = learned(tokenizer, example)
        ends = text.count("<|im_end|>")
        assert ends <= sum(turn.role == "assistant" for turn in conversation)
        assert "<|im_start|>" not in text
