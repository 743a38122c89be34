"""Rows -> an adapter -> a whole model, and a model -> its answers to the held-out questions."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.default_model import RECORD
from common.files import sha256_of, write_json
from tools.evaluation.asked import read_asked
from tools.evaluation.rag import answered
from tools.evaluation.rag_figures import figures
from tools.evaluation.resuming import append_records, done_rows, read_records
from tools.improving.steps import Say

RUN, MODEL = "run", "model"  # in the folders of the steps that train, and that merge
ROWS, FIGURES = "rows.jsonl", "figures.json"  # in those that measure
# What a step decides itself.
_TAKEN = (
    *("method", "model", "model.name", "data", "data.train", "peft", "peft.name", "trainer.output", "trainer.resume"),
    *("trainer.overwrite", "distributed", "distributed.mode"),
)
_EVERY = 25  # answers between two lines of progress


def training_arguments(method: str, model: Path, rows: Path, run: Path, overrides: Sequence[str]) -> list[str]:
    """What `training/main.py` would be told. Raises ValueError for keys that are not free."""
    for each in overrides:
        key, separator, _ = each.partition("=")
        if not separator:
            raise ValueError(f"'{each}' is not KEY=VALUE, such as trainer.lr=1e-4")
        if key in _TAKEN:
            raise ValueError(f"{key}= is set by this command itself; other keys of training are free")
    return [f"method={method}", f"model={model}", f"data={rows}", "peft=lora", f"trainer.output={run}", *overrides]


def check_training(arguments: Sequence[str]) -> None:
    """ValueError for keys and values that training would refuse, before anything is made."""
    from training.config.door import compose

    compose(arguments)


def train(arguments: Sequence[str]) -> dict[str, Any]:
    """Train, going on where a checkpoint is."""
    from training.config.door import compose
    from training.methods import method_run

    config = compose(arguments)
    method_run(config.method.name)(config)
    gc.collect()  # the model, before the next step loads it again
    return {"overrides": list(arguments)}


def make_model(folder: Path, adapter: Path, base: Path, gguf: bool, about: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the adapter into `folder`/MODEL, with a GGUF file in 8 bits where that is wanted, and a record.

    What a kill left is gone on with: each file appears by a rename. Raises ValueError where the result does not say
    what base and adapter say.
    """
    from tools.convert_hf_to_gguf import convert
    from tools.merge_lora import merge

    made = folder / MODEL
    told: dict[str, Any] = {}
    if not made.exists():
        with warnings.catch_warnings():
            # PEFT asks the model by a name that transformers is about to drop.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            told["merged"] = str(merge(str(adapter), made, str(base)))
        gc.collect()
    file = made / f"{about['name']}.Q8_0.gguf"
    if gguf and not file.exists():
        told["gguf"] = str(convert(made, file, "q8_0"))
        gc.collect()
    files = {
        each.name: {"num_bytes": each.stat().st_size, "sha256": sha256_of(each)}
        for each in sorted(made.iterdir())
        if each.is_file() and each.name != RECORD
    }
    write_json(made / RECORD, {**about, "files": files})
    return told


def measure(folder: Path, options: Mapping[str, Any], model: str, questions: Path, say: Say) -> dict[str, Any]:
    """Ask a bot with `model` the questions, and write ROWS and FIGURES. What is answered is not asked again."""
    from chatbot.assembly import open_bot

    asked, rows = read_asked(questions), folder / ROWS
    num_done = done_rows(rows, {})  # the step knows of what they are
    if num_done < len(asked):
        bot = open_bot({**options, "model": model})
        for num in append_records(rows, answered(bot, asked[num_done:]), num_done):
            if num % _EVERY == 0 or num == len(asked):
                say(f"  {num:,} of {len(asked):,} questions")
        del bot
        gc.collect()
    found = figures(list(read_records(rows)))
    write_json(folder / FIGURES, found)
    return {"figures": found}
