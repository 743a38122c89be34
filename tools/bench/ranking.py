"""nDCG@10 of the ranking in use beside words alone, vectors alone and reciprocal-rank fusion, on the same indexes.

Run: python -m tools.bench.ranking [--sets nq,cranfield,npl] [--data DIR] [--encoder minilm]
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from common.cli import OneLineCommand
from retrieval.encoders import open_encoder
from retrieval.measuring.evaluate import read_beir
from retrieval.measuring.trials import evaluate_index

MEASURE = "nDCG@10"


@click.command(cls=OneLineCommand)
@click.option("--sets", default="nq,cranfield,npl", show_default=True, help="BEIR folders in --data.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data/retrieval"), show_default=True)
@click.option("--encoder", default="minilm", show_default=True, help="Sentence encoder.")
def cli(sets: str, data: Path, encoder: str) -> None:
    """Print nDCG@10 for each set, the mean, and the differences to the rivals."""
    opened = open_encoder(encoder)
    table: dict[str, list[float]] = {}
    names = sets.split(",")
    for name in names:
        for way, result in evaluate_index(read_beir(data / name), encoder=opened).items():
            table.setdefault(way, []).append(result.figures[MEASURE])
    click.echo(f"{MEASURE:<12}" + "".join(f"{name:>11}" for name in [*names, "mean"]))
    for way, figures in table.items():
        click.echo(f"{way:<12}" + "".join(f"{figure:>11.4f}" for figure in [*figures, np.mean(figures)]))
    used = np.array(table["in use"])
    for way in ("words", "vectors", "rrf"):
        gains = used - np.array(table[way])
        click.echo(f"over {way:<7}" + "".join(f"{gain:>+11.4f}" for gain in [*gains, gains.mean()]))


if __name__ == "__main__":
    cli()
