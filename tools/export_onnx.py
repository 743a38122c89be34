"""Make the int8 version of a sentence encoder, and prove that it is as good: several times as fast on CPUs.

Run: python tools/export_onnx.py minilm
     python tools/export_onnx.py path/to/model --texts passages.txt

Writes int8.onnx, tokenizer.json and proof.json into the folder `onnx` of the model. proof.json says how near the int8
vectors of a sample of texts are to the float32 ones; `retrieval` uses int8 by default where they are near enough.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from common.cli import OneLineCommand
from common.files import atomic_write, read_json, sha256_of
from common.models import resolve_model
from retrieval.encoding.onnx_encoder import FOLDER, MODEL, PROOF, TOKENIZER, OnnxEncoder, Proof
from retrieval.encoding.sentence_model import read_recipe, weight_files
from tools.onnx_graph import build_graph, check_config

if TYPE_CHECKING:
    from retrieval.encoding.torch_encoder import TorchEncoder

Say = Callable[[str], None]

NEIGHBOURS = 10
MIN_TEXTS = 50  # with fewer, ten neighbours of a text are most of the others, whatever the vectors
_SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "sample"
# What the sample articles lack: questions, names, numbers, code, other languages, and texts that are hardly any.
_VARIED = (
    "who wrote the opera that opened the new theatre?",
    "how many bones are there in an adult human hand",
    "What is the boiling point of ethanol at sea level?",
    "when did the first railway between two cities open",
    "why does my program print None instead of the list?",
    "cheap vegetarian dinner ideas for two people",
    "Dr. Maria Petrova-Jones, Institute of Marine Biology, Vladivostok",
    "Invoice 2024-00317: 12 x 49.90 EUR, less 3% discount, due within 14 days.",
    "ISBN 978-0-00-000000-2; vol. 3, no. 4, pp. 211-238, doi:10.1000/182",
    "def mean(values):\n    return sum(values) / len(values)",
    "SELECT name, price FROM products WHERE stock > 0 ORDER BY price DESC LIMIT 10;",
    "error: cannot open file 'settings.yaml': Permission denied (os error 13)",
    "The patient was given 5 mg twice a day for six weeks and recovered without complications.",
    "The lessee shall keep the premises in good repair and shall not assign this agreement without written consent.",
    "Shares fell by 4.2 per cent after the company had lowered its forecast for the third quarter.",
    "The boundary layer on a flat plate becomes turbulent at a Reynolds number of about half a million.",
    "Photosynthesis turns carbon dioxide and water into sugar, and sets oxygen free.",
    "The midfielder scored twice in the second half, and the visitors won three to one.",
    "Let f be continuous on [a, b]; then f is bounded there and attains its maximum.",
    "Der Zug nach Basel fährt heute wegen Bauarbeiten von Gleis sieben.",
    "La bibliothèque est fermée le lundi et les jours fériés.",
    "El precio del pan subió un diez por ciento en un año.",
    "東京は日本の首都であり、世界最大の都市の一つである。",
    "Это письмо пришло вчера вечером. 😀",
    "bridge",
    "OK",
    "?!",
    "a a a a a a a a a a a a a a a a",
)


def export(model: str, out: Path | None = None, texts: Sequence[str] | None = None, say: Say = lambda _: None) -> Proof:
    """Write the int8 version of the encoder called `model` into `out`, by default its own folder `onnx`.

    `texts` is what it is measured on (at least MIN_TEXTS); by default the sample articles and more. A proof that falls
    short is written without the model, so that it is not tried again; see `Proof.shortcoming`. Raises ValueError for a
    model that cannot be exported, with the reason, before torch is loaded where that can be told by then.
    """
    folder = Path(resolve_model(model))
    _check(folder)
    sample = sorted(set(_sample_texts() if texts is None else texts))
    if len(sample) < MIN_TEXTS:
        raise ValueError(f"there are {len(sample)} different texts to measure on; give at least {MIN_TEXTS}")
    from retrieval.encoding.torch_encoder import TorchEncoder

    original = TorchEncoder(model, "cpu")
    tokenizer = _tokenizer_of(original)
    graph = build_graph(original.model, original.recipe.pooling, original.max_length)
    say(f"{model}: comparing int8 with float32 on {len(sample)} texts ...")
    proof = _prove(original, graph, tokenizer, sample)
    out = out or folder / FOLDER
    (out / PROOF).unlink(missing_ok=True)
    if proof.shortcoming is None:
        for name, content in ((MODEL, graph), (TOKENIZER, tokenizer.encode("utf-8"))):
            with atomic_write(out / name, "wb") as file:
                file.write(content)
    else:
        (out / MODEL).unlink(missing_ok=True)
    proof.write(out / PROOF)
    return proof


def summary(model: str, proof: Proof) -> str:
    """One line for people."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in proof.figures.items())
    if proof.shortcoming:
        return f"{model}: int8 is not good enough ({proof.shortcoming}); float32 stays"
    return f"{model}: int8 is good enough, and now the default on CPUs ({figures})"


def _check(folder: Path) -> None:
    """Refuse early, and cheaply, what cannot be exported."""
    source = folder / read_recipe(folder).subfolder
    weight_files(source)
    check_config(read_json(source / "config.json"))
    if not (source / "tokenizer.json").is_file():
        raise ValueError(
            f"int8 export needs a tokenizer.json, which {source} lacks; save its tokenizer again to get it"
        )


def _tokenizer_of(encoder: TorchEncoder) -> str:
    """The tokenizer, with all that transformers set in it, as JSON for the tokenizers library."""
    from tokenizers import Tokenizer

    if not encoder.tokenizer.is_fast:
        raise ValueError("int8 export needs a tokenizer of the tokenizers library")
    if len(encoder.tokenizer("")["input_ids"]) < 2:
        raise ValueError("int8 export needs a tokenizer that puts a token before and after each text")
    tokenizer = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return str(tokenizer.to_str())


def _prove(original: TorchEncoder, graph: bytes, tokenizer: str, texts: Sequence[str]) -> Proof:
    settings: dict[str, Any] = {
        "model": hashlib.sha256(graph).hexdigest(),
        "tokenizer": hashlib.sha256(tokenizer.encode("utf-8")).hexdigest(),
        "source": original.fingerprint,
        "weights": {file.name: sha256_of(file) for file in original.weights},
        "max_length": original.max_length,
        "lower_case": original.recipe.lower_case,
    }
    int8 = OnnxEncoder(original.name, graph, tokenizer, Proof(**settings, num_texts=0, figures={}))
    if int8.count_tokens(texts) != original.count_tokens(texts):
        raise ValueError("int8 export needs a tokenizer that works without transformers, which counts otherwise here")
    return Proof(**settings, num_texts=len(texts), figures=compare(original.encode(texts), int8.encode(texts)))


def compare(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, float]:
    """The figures of a proof for two (n, dim) arrays of unit rows, n > NEIGHBOURS; see `THRESHOLDS`."""
    cosines = (wanted * got).sum(axis=1)
    near_wanted, near_got = _neighbours(wanted), _neighbours(got)
    shared = [len(set(a) & set(b)) for a, b in zip(near_wanted.tolist(), near_got.tolist(), strict=True)]
    return {
        "mean_cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
        "recall_at_10": float(np.mean(shared)) / NEIGHBOURS,
    }


def _neighbours(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """(n, NEIGHBOURS): for each row the nearest others."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    nearest: NDArray[np.int64] = np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return nearest


def _sample_texts() -> list[str]:
    """Paragraphs of the sample articles, some of their sentences, and `_VARIED`, also joined to a long text."""
    texts = [*_VARIED, " ".join(_VARIED), " ".join(_VARIED) * 4]
    for i, first in enumerate(_VARIED):
        texts.append(f"{first} {_VARIED[(i + 1) % len(_VARIED)]}")
    for file in sorted(_SAMPLE.rglob("*.*")):
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"<(style|script|head)\b.*?</\1>|<[^>]+>", "", text, flags=re.DOTALL)
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
        texts += [part for part in paragraphs if len(part) > 40]
        texts += [part.split(". ")[0] for part in paragraphs if part.count(". ") > 1]
    return texts


@click.command(cls=OneLineCommand)
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the three files.  [default: MODEL/onnx]")
@click.option(
    "--texts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure on these: UTF-8, one text a line.  [default: the sample articles and more]",
)
def cli(model: str, out: Path | None, texts: Path | None) -> None:
    """Export the sentence encoder MODEL (a known name, a directory or a hub id) as int8, and prove it."""
    started = time.monotonic()
    lines = None
    if texts is not None:
        try:
            lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{texts}: not UTF-8 text (byte {error.start})") from None
    proof = export(model, out, lines, lambda line: click.echo(line, err=True))
    if proof.shortcoming:
        raise ValueError(summary(model, proof))
    click.echo(f"{summary(model, proof)}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli()
