"""The vocabulary, special tokens and chat template of a model directory, written into a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatbot.engines.decoding.loading import load_tokenizer
from common.files import read_text

# tokenizer.json's way of cutting text before BPE -> llama.cpp's name for it. Parley gives llama.cpp token ids, so
# that this matters to other programs only.
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def add_vocabulary(writer: Any, folder: Path, vocab_size: int) -> None:
    """BPE over bytes, or over characters with bytes for what the vocabulary lacks (SentencePiece), as the tokenizer has
    it; its special tokens, and the chat template. ValueError for other kinds."""
    import gguf

    tokenizer: Any = load_tokenizer(str(folder))
    # As it runs: for some architectures transformers cuts text otherwise than tokenizer.json says.
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    model = stored["model"]
    if model["type"] != "BPE":
        raise ValueError(f"{folder}: only BPE vocabularies can be written as GGUF yet, not {model['type']}")
    words = {id_: word for word, id_ in model["vocab"].items()}
    added = {each["id"]: each for each in stored["added_tokens"]}
    kinds = gguf.TokenType
    tokens, types = [], []
    for id_ in range(vocab_size):
        if id_ in added:
            tokens.append(added[id_]["content"])
            types.append(kinds.CONTROL if added[id_]["special"] else kinds.USER_DEFINED)
        else:
            tokens.append(words.get(id_, f"[PAD{id_}]"))
            types.append(kinds.NORMAL if id_ in words else kinds.UNUSED)
    merges = [tuple(each.split(" ") if isinstance(each, str) else each) for each in model["merges"]]
    if model.get("byte_fallback"):
        _add_sentencepiece(writer, tokens, types, merges, tokenizer)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(stored.get("pre_tokenizer")))
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    ends = _end_ids(folder) or [tokenizer.eos_token_id]
    special: tuple[tuple[Callable[[int], None], int | None], ...] = (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, ends[0]),
        (writer.add_eot_token_id, ends[1] if len(ends) > 1 else None),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    )
    for add, id_or_none in special:
        if id_or_none is not None:
            add(id_or_none)
    writer.add_add_bos_token(tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _add_sentencepiece(
    writer: Any, tokens: list[str], types: list[Any], merges: list[tuple[str, ...]], tokenizer: Any
) -> None:
    """What llama.cpp needs besides tokens: it joins the pair whose result has the highest score, which is here the one
    that is merged first. Changes `types` in place."""
    import gguf

    scores = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(token, -float(len(merges))) for token in tokens])
    writer.add_add_space_prefix(tokenizer.tokenize("x")[0].startswith("\u2581"))
    for id_, token in enumerate(tokens):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[id_] = gguf.TokenType.BYTE
        elif token == tokenizer.unk_token:
            types[id_] = gguf.TokenType.UNKNOWN


def _pre_tokenizer(stored: dict[str, Any] | None) -> str:
    steps = (stored or {}).get("pretokenizers", [stored])
    if steps == [_GPT2]:
        return "gpt-2"
    if steps == [_DIGITS, _GPT2]:
        return "smollm"
    text = json.dumps(stored)
    if r"\\p{N}{1,3}" in text:
        return "llama-bpe"
    if r"[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" in text:
        return "qwen2"
    raise ValueError("the tokenizer cuts text in a way that cannot be named in a GGUF file yet")


def _end_ids(folder: Path) -> list[int]:
    file = folder / "generation_config.json"
    ids = json.loads(read_text(file)).get("eos_token_id") if file.is_file() else None
    return [ids] if isinstance(ids, int) else list(ids or [])
