"""Leave out of a data set what does not fit the context of every model that will see it, into a new file.

Run: python tools/clean_dataset.py chats.jsonl clean.jsonl --model runs/actor --model runs/reward

Rows are written as they are. A prompt must leave room for an answer of --min-tokens; of everything else the whole must
fit, of several answers each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatbot.options import FILE
from common.cli import OneLineCommand
from common.files import expand
from tools.generating.raw_rows import read_raw_rows
from tools.generating.writing import only_writer, write_rows
from training.data.mixture import Source
from training.data.reading import Report
from training.data.rows import (
    KIND_NAMES,
    ChatRow,
    LabelledRow,
    PairRow,
    PreferenceRow,
    PromptRow,
    RankedRow,
    RatedRow,
    Row,
    TextRow,
)

if TYPE_CHECKING:
    from chatbot.conversation import Conversation
    from chatbot.rendering import Renderer

SAFETY = 20  # tokens to spare, as ChatLLaMA has them: its own rendering differs a little


@dataclass(frozen=True)
class Reader:
    """A model's tokenizer and the tokens that it can read."""

    name: str
    renderer: Renderer
    limit: int

    def num_tokens(self, row: Row, min_tokens: int) -> int:
        """Tokens of the longest sequence that training makes of a row."""
        if isinstance(row, ChatRow):
            return len(self.renderer.encode(row.conversation, add_generation_prompt=False).ids)
        if isinstance(row, PromptRow):
            return self.renderer.count(row.prompt) + min_tokens
        if isinstance(row, PreferenceRow):
            return self._longest(row.prompt, (row.chosen, row.rejected))
        if isinstance(row, RankedRow):
            return self._longest(row.prompt, row.responses)
        if isinstance(row, RatedRow):
            return self._longest(row.prompt, (row.response,))
        text = row.prompt + row.completion if isinstance(row, PairRow) else row.text
        return len(self.renderer.plain_ids(text)) + 1  # the end of the sequence

    def _longest(self, prompt: Conversation | None, answers: tuple[str, ...]) -> int:
        if prompt is None:
            return max(len(self.renderer.plain_ids(answer)) + 1 for answer in answers)
        whole = (prompt.add("assistant", answer) for answer in answers)
        return max(len(self.renderer.encode(each, add_generation_prompt=False).ids) for each in whole)


def open_reader(name: str, max_length: int | None) -> Reader:
    """The tokenizer of a model, whose weights are not read. ValueError where the model does not say how much it can
    read, and `max_length` does not either."""
    from transformers import AutoConfig, AutoTokenizer

    from chatbot.rendering import Renderer
    from common.models import loading_errors, resolve_model

    folder = resolve_model(name)
    with loading_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = min(each for each in (own, max_length) if each) if own or max_length else None
    if limit is None:
        raise ValueError(f"'{name}' does not say how many tokens it can read; give --max-length")
    return Reader(name, Renderer(tokenizer), limit)


KINDS: tuple[type[Row], ...] = (ChatRow, PromptRow, RankedRow, PreferenceRow, RatedRow, PairRow, LabelledRow, TextRow)


def fitting(source: Source, readers: list[Reader], spare: int, min_tokens: int, report: Report) -> Iterator[Any]:
    """The rows as they are which every reader can read with `spare` tokens left; the others are counted in `report`."""
    report.location = source.location
    for each in read_raw_rows(source, KINDS):
        report.num_read += 1
        report.formats.update({each.format})
        if each.row is None:
            report.skip(str(each.problem), each.place)
            continue
        for reader in readers:
            if reader.num_tokens(each.row, min_tokens) + spare > reader.limit:
                kind = KIND_NAMES[type(each.row)]
                report.skip(f"a {kind} row that does not fit the {reader.limit} tokens of {reader.name}", each.place)
                break
        else:
            report.num_given += 1
            yield each.value


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.argument("data")
@click.argument("out", type=FILE)
@click.option("--model", "models", multiple=True, required=True, help="Directory or Hugging Face id; may be repeated.")
@click.option("--max-length", type=click.IntRange(min=1), help="Tokens, where that is less than a model's context.")
@click.option("--min-tokens", type=click.IntRange(min=0), default=50, help="Tokens of an answer to a prompt.")
@click.option("--spare", type=click.IntRange(min=0), default=SAFETY, help="Tokens to spare in each row.")
@click.option("--format", "format_", help="Format of DATA.  [default: found out]")
def cli(
    data: str,
    out: Path,
    models: tuple[str, ...],
    max_length: int | None,
    min_tokens: int,
    spare: int,
    format_: str | None,
) -> None:
    """Write the rows of DATA that every --model can read into OUT, a new file."""
    if Path(data).exists() and expand(out).resolve() == expand(data).resolve():
        raise ValueError(f"{out} is the data itself, which stays as it is; name a new file")
    readers, report = [open_reader(name, max_length) for name in models], Report()
    with only_writer(out) as target:
        num = write_rows(target, fitting(Source(data, format=format_), readers, spare, min_tokens, report))
    for line in report.lines():
        click.echo(line, err=True)
    click.echo(f"{target}: {num:,} of {report.num_read:,} rows", err=True)


if __name__ == "__main__":
    cli()
