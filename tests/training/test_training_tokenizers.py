"""Tokenizers as training opens them: of models that end a sequence with a separator, and of those that have no end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation
from chatbot.rendering import Renderer
from training.config.door import compose
from training.config.schema import ModelConfig
from training.data.rows import ChatRow
from training.examples.answers import Answer, AnswerMaker
from training.examples.making import ExampleMaker
from training.models import load, load_tokenizer

WORDS = ("human", "assistant", ":", "hi", "hello", "there", "and", "?", "bye")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as BERT's: [CLS] before a text, [SEP] after it, white space is nothing, no end-of-sequence token."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert-tokenizer")
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_what_bert_reads_of_an_answer_is_what_its_own_tokenizer_makes_of_the_text(bert: Path) -> None:
    """The oracle is transformers' tokenizer alone: [CLS], the words, [SEP]."""
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(bert)
    assert own.eos_token is None
    tokenizer = load_tokenizer(ModelConfig(name=str(bert)), bert)
    asked = Conversation().add("user", "Hi there")
    maker = AnswerMaker(Renderer(tokenizer), 64, lambda row, _: [[Answer(row, "Hello?", ())]])
    (example,) = maker.examples(asked)
    assert example.ids.tolist() == own("Human: Hi there Assistant: Hello?")["input_ids"]
    assert example.ids[example.mask].tolist() == own("Hello?")["input_ids"][1:]  # with its [SEP]


def test_each_reply_ends_in_the_separator(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(ModelConfig(name=str(bert)), bert)
    whole = Conversation().add("user", "Hi").add("assistant", "Hello").add("user", "And?").add("assistant", "Bye")
    (example,) = ExampleMaker(Renderer(tokenizer), 64).examples(ChatRow(whole))
    assert tokenizer.convert_ids_to_tokens(example.ids[example.mask].tolist()) == ["hello", "[SEP]", "bye", "[SEP]"]
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    (again,) = ExampleMaker(Renderer(saved), 64).examples(ChatRow(whole))
    assert (again.ids.tolist(), saved.eos_token, len(saved)) == (example.ids.tolist(), "[SEP]", len(WORDS) + 5)


def test_an_end_of_its_own_stays_and_none_at_all_is_refused(tiny_chat_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_chat_model)
    tokenizer.sep_token = "<|im_start|>"  # noqa: S105  # a token of sequences
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelConfig(name=str(tmp_path)), tmp_path).eos_token == "<|im_end|>"  # noqa: S105
    tokenizer.sep_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(vocab_size=len(tokenizer), eos_token_id=None, **sizes).save_pretrained(tmp_path)
    config = compose(["method=sft", f"model={tmp_path}", "data=d", "model.from_scratch=true", "model.device=cpu"])
    with pytest.raises(ValueError, match="has no end-of-sequence token, which replies must end in"):
        load(config)
