"""Flags that several commands share."""

from __future__ import annotations

import click

from retrieval.scoring.calibration import TARGET_FALSE_REFUSAL

index_option = click.option("--index", required=True, metavar="DIR", help="Folder of the index.")
device_option = click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: a GPU if there is one.")
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
encoder_option = click.option("--encoder", help="Where the encoder of the index is now, if it has moved.")
where_option = click.option(
    "--where", multiple=True, metavar="COND", help="Only such documents: source=docs/*, year>=1990."
)
false_refusals_option = click.option(
    "--false-refusals",
    type=click.FloatRange(0, 0.5),
    default=TARGET_FALSE_REFUSAL,
    show_default=True,
    metavar="SHARE",
    help="Of questions with an answer, that the floor may refuse.",
)
