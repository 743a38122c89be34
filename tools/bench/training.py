"""Supervised finetuning beside its peers: a plain PyTorch loop and TRL's SFTTrainer, on the same rows in one run.

Run: python -m tools.bench.training [--model smollm2-135m] [--steps 6] [--data FILE]

Two tables: rows of 512 tokens that all have a loss, and short real conversations (`--data`; else the sample questions
of the tests), where packing counts. Tokens are useful ones, without padding; the first step is not counted. Each
contender runs in a process of its own, so that peak memory is its own. Then a proof that it learns: the held-out loss
and an answer before and after finetuning on the same conversations.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from tools.bench.contenders import measured
from tools.bench.texts import write_text

LENGTH, BATCH, LR = 512, 4, 1e-5
QUESTIONS = Path(__file__).parents[2] / "tests" / "data" / "sample_questions.jsonl"


@click.command(cls=OneLineCommand)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--steps", type=click.IntRange(2), default=6, show_default=True)
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Short conversations, in any known format.")
@click.option(
    "--epochs", default=3.0, show_default=True, help="Of the finetuning that shows learning; 0 leaves it out."
)
@click.option("--contender", hidden=True)
@click.argument("arguments", nargs=-1)
def cli(
    model: str, steps: int, data: Path | None, epochs: float, contender: str | None, arguments: Sequence[str]
) -> None:
    """Print speed and memory of finetuning beside those of its peers."""
    if contender:
        click.echo(json.dumps(CONTENDERS[contender](Path(arguments[0]), arguments[1:])))
        return
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as folder:
        work = Path(folder)
        common = [f"model={model}", f"trainer.lr={LR}", "trainer.schedule=constant", "trainer.warmup=0"]
        common += [f"data.max_length={LENGTH}", f"trainer.batch_size={BATCH}", f"data.cache={work / 'cache'}"]
        text = write_text(work / "text.md")
        long = (*common, f"data={text}", "data.format=text", "method=ntp", f"trainer.max_steps={steps}")
        _compare("rows of 512 tokens", long, ("plain", "trl", "parley"), work)
        chats = data or _sample_chats(work / "chats.jsonl")
        short = (*common, f"data={chats}", "method=sft", f"trainer.max_steps={steps}")
        _compare("short conversations", short, ("plain", "trl", "parley", "packed"), work)
        if epochs:
            _learn((*common, f"data={chats}", "method=sft", f"trainer.epochs={epochs}"), work)


def _compare(title: str, overrides: Sequence[str], names: Sequence[str], work: Path) -> None:
    rows = work / "rows.json"
    measured("tools.bench.training", "rows", rows, overrides)
    click.echo(f"{title:<24}{'tokens/s':>10}{'of plain':>10}{'of TRL':>8}{'peak GiB':>10}  losses of the first steps")
    rates: dict[str, float] = {}
    for name in names:
        found = measured("tools.bench.training", name, rows, overrides)
        rates[name] = found["rate"]
        ratios = [f"{rates[name] / rates[peer]:.2f}" if peer in rates else "" for peer in ("plain", "trl")]
        losses = " ".join(f"{loss:.4f}" for loss in found["losses"][:3])
        click.echo(f"{name:<24}{found['rate']:>10.1f}{ratios[0]:>10}{ratios[1]:>8}{found['memory']:>10.2f}  {losses}")


def _dump_rows(rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Write the rows that Parley will see, in their order, for the others."""
    from training.config.door import compose
    from training.examples.preparing import prepare
    from training.methods import METHODS
    from training.models import load

    config = compose(overrides)
    loaded = load(config)
    kinds = __import__(METHODS[config.method.name], fromlist=["KINDS"]).KINDS
    train = prepare(config, loaded, kinds).train
    num = min(len(train), BATCH * (config.trainer.max_steps or 0))
    dumped = [train.row(0, number)[0] for number in range(num)]
    rows.write_text(json.dumps([[each.ids.tolist(), each.mask.tolist()] for each in dumped]))
    return {"rows": num}


def _parley(rows: Path, overrides: Sequence[str], *more: str) -> dict[str, Any]:
    """The real door, and what it wrote into metrics.jsonl."""
    from training.config.door import compose
    from training.methods import method_run

    run = rows.parent / f"run-{time.monotonic_ns()}"
    config = compose([*overrides, f"trainer.output={run}", "trainer.log_every=1", "trainer.save_every=null", *more])
    method_run(config.method.name)(config)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in logged if "loss" in line]
    rate = statistics.median(line["tokens_per_second"] for line in lines[1:])
    return {
        "rate": rate,
        "losses": [line["loss"] for line in lines],
        "memory": max(line["memory_gib"] for line in lines),
    }


def _packed(rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    return _parley(rows, overrides, "data.packing=true")


def _plain(rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The shortest loop that does the same: pad, model(labels=...), AdamW."""
    import torch

    model, batches = _opened(rows, overrides)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    model.train()
    rates, losses = [], []
    for batch in batches:
        width = max(len(ids) for ids, _ in batch)
        ids_BT, labels_BT = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -100)
        for number, (ids, mask) in enumerate(batch):
            ids_BT[number, : len(ids)] = torch.tensor(ids)
            labels_BT[number, : len(ids)] = torch.tensor(
                [id_ if on else -100 for id_, on in zip(ids, mask, strict=True)]
            )
        attended = torch.arange(width)[None] < torch.tensor([len(ids) for ids, _ in batch])[:, None]
        began = time.perf_counter()
        loss = model(input_ids=ids_BT, attention_mask=attended.long(), labels=labels_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.append(sum(len(ids) for ids, _ in batch) / (time.perf_counter() - began))
        losses.append(loss.item())
    return {"rate": statistics.median(rates[1:]), "losses": losses, "memory": _peak_gib()}


def _trl(rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """TRL's SFTTrainer on the same rows in the same order, without what would only slow it down on a CPU."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model, batches = _opened(rows, overrides)
    flat = [{"input_ids": ids, "labels": _labels(ids, mask)} for batch in batches for ids, mask in batch]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] += time.perf_counter()

    config = SFTConfig(
        output_dir=str(rows.parent / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=len(batches),
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_length=LENGTH,
        packing=False,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(flat),
        processing_class=_tokenizer(overrides),
        callbacks=[Clock()],
    )
    trainer.train()
    rates = [sum(len(ids) for ids, _ in batch) / seconds for batch, seconds in zip(batches, times, strict=True)]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"rate": statistics.median(rates[1:]), "losses": losses, "memory": _peak_gib()}


CONTENDERS = {"rows": _dump_rows, "plain": _plain, "trl": _trl, "parley": _parley, "packed": _packed}


def _labels(ids: list[int], mask: list[bool]) -> list[int]:
    return [id_ if on else -100 for id_, on in zip(ids, mask, strict=True)]


def _opened(rows: Path, overrides: Sequence[str]) -> tuple[Any, list[list[Any]]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(_model_folder(overrides), dtype=torch.float32)
    content = json.loads(rows.read_text())
    return model, [content[start : start + BATCH] for start in range(0, len(content), BATCH)]


def _tokenizer(overrides: Sequence[str]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_model_folder(overrides))


def _model_folder(overrides: Sequence[str]) -> str:
    from common.models import resolve_model

    return resolve_model(next(each for each in overrides if each.startswith("model=")).partition("=")[2])


def _peak_gib() -> float:
    from training.tracking.throughput import peak_memory

    return peak_memory()["memory_gib"]


def _learn(overrides: Sequence[str], work: Path) -> None:
    """Finetune on nine tenths of the conversations; loss and answers on the rest, before and after."""
    from training.config.door import compose
    from training.methods import method_run

    more = ("data.eval_fraction=0.1", "data.packing=true", "trainer.samples=1000", "trainer.sample_tokens=48")
    rate = ("trainer.lr=2e-5", "trainer.schedule=cosine", "trainer.eval_every=1000000")  # only before and after
    config = compose([*overrides, *more, *rate, f"trainer.output={work / 'learned'}", "trainer.save_epochs=false"])
    run = method_run(config.method.name)(config)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in logged if "eval_loss" in line]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    before, after = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    shared = [statistics.mean(_overlap(each["answer"], each["expected"]) for each in half) for half in (before, after)]
    click.echo(f"held-out conversations ({len(before)}): loss {losses[0]:.3f} -> {losses[-1]:.3f}, ", nl=False)
    click.echo(f"words shared with the expected answer (F1) {shared[0]:.3f} -> {shared[1]:.3f}")
    for old, new in list(zip(before, after, strict=True))[:5]:
        click.echo(f"\n{old['prompt'].strip()[-200:]}\n  expected: {_short(old['expected'])}")
        click.echo(f"  before:   {_short(old['answer'])}\n  after:    {_short(new['answer'])}")


def _overlap(answer: str, expected: str) -> float:
    """F1 of the words of two texts, each as often as it occurs (Rajpurkar et al. 2016, section 6.1); 1 is best. The
    expected text counts as far as the answer could have gone."""
    ours, theirs = (re.findall(r"\w+", text.lower()) for text in (answer, expected))
    shared = sum((Counter(ours) & Counter(theirs[:48])).values())
    return 2 * shared / (len(ours) + len(theirs[:48])) if ours or theirs else 1.0


def _short(text: str) -> str:
    return " ".join(text.split())[:160]


def _sample_chats(path: Path) -> Path:
    """The tests' questions, each answered with the words that are expected."""
    with open(path, "w", encoding="utf-8") as file:
        for line in QUESTIONS.read_text("utf-8").splitlines():
            row = json.loads(line)
            turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


if __name__ == "__main__":
    cli()
