"""Does retrieval-aware finetuning make a small model answer better from documents, and say when they do not answer?

Run: python -m tools.bench.raft --data ../shared/data/retrieval/nq --work runs/raft [--rows 600 --rows 1200]

DATA is a folder with `corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv` (BEIR) and `answers.jsonl` ({"_id", "answers"}).
Each step is a command that anyone could give:

1. The corpus is indexed.
2. tools/make_qa.py splits the questions by document; some test questions are asked of an index without the
   passages that hold an answer (tools/questions/unanswerable.py). The others make training rows.
3. A LoRA adapter is trained on the first --rows of them (several numbers give a curve), merged, made a GGUF file.
4. tools/evaluate.py rag asks the untrained model and each trained one the same test questions, in the same bot: once
   with the index's floor off (--floor 0), so that the model alone refuses, and once with the floor.

What is finished in --work is not done again: after a kill give the same command. A step whose command, or what it reads
of other steps, has changed is done anew.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from common.files import atomic_write
from retrieval.index.manifest import MANIFEST
from tools.evaluation.rag import read_report
from tools.evaluation.resuming import read_records
from tools.improving.steps import Made, Step, only_one, run

_ROOT = Path(__file__).parents[2]
_MADE = "{}"  # in a command: what it makes, which is called _NAME in the step's folder, a model's file _FILE
_NAME, _FILE = "made", "model.Q8_0.gguf"
_SHOWN = (
    *("f1", "answer_contained", "exact_match", "retrieval_recall", "refusals_of_unanswerable", "false_refusals"),
    *("citation_precision", "citation_recall", "sentences_supported", "median_seconds"),
)


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Kept, and gone on with.")
@click.option("--model", default="smollm2-135m", help="What is trained.")
@click.option("--questions", type=click.IntRange(min=1), default=300, help="That the test can answer, about.")
@click.option("--unanswerable", type=click.FloatRange(0, 0.9), default=0.25, help="Of the test.")
@click.option("--limit", type=click.IntRange(min=4), help="Use only so many questions of DATA, to try it.")
@click.option(
    "--rows", type=click.IntRange(min=1), multiple=True, default=(1000,), help="Of training; may be repeated."
)
@click.option("--epochs", default=2.0)
@click.option("--steps", type=click.IntRange(min=1), help="Of training, instead of --epochs: to try it.")
@click.option("--lr", default=1e-3)
@click.option("--rank", type=click.IntRange(min=1), default=16, help="Of LoRA.")
@click.option("--k", type=click.IntRange(min=1), default=1, help="Passages that the model is shown.")
@click.option("--false-refusals", type=click.FloatRange(0, 0.5), default=0.1, help="That the floor is fitted to.")
@click.option("--window", type=click.IntRange(min=1), default=3, help="Sentences in a passage.")
@click.option("--without-gold", type=click.FloatRange(0, 0.5), default=0.1, help="Of the training rows.")
@click.option("--order", type=click.Choice(("random", "found")), default="found", help="Of the passages in training.")
@click.option("--style", type=click.Choice(("short", "sentence")), default="short", help="Of the answers learned.")
@click.option("--max-length", type=click.IntRange(min=64), default=768, help="Tokens of a packed row.")
@click.option("--engine", default="auto", help="That answers: auto takes llama.cpp where it is installed.")
@click.option("--threads", type=click.IntRange(min=1), help="Of llama.cpp; 1 beside other work.  [default: all cores]")
@click.option("--gguf/--no-gguf", default=True, help="Make a Q8_0 file of the trained model, for llama.cpp.")
@click.option("--seed", default=42)
def cli(data: Path, work: Path, rows: tuple[int, ...], **options: Any) -> None:
    """Train on questions about documents, and print the figures before and after."""
    data, work = data.resolve(), work.resolve()
    corpus, questions = data / "corpus.jsonl", work / "questions.jsonl"
    cut = ("--window", options["window"], "--stride", options["window"], "--no-screen")
    fitted = ("--false-refusals", options["false_refusals"])
    with only_one(work):
        num = _write_questions(data, corpus, questions, options["limit"])
        build = ("-m", "retrieval", "build", corpus, "--index", _MADE, *cut, *fitted)
        # Its manifest names the sums of its other files; what the first search adds is none of its result.
        index = _step(work, "index", *build, resumes=True, sure=f"{_NAME}/{MANIFEST}")
        made = _make_rows(work, index, questions, num, options)
        reports = _evaluate(work, "before", options["model"], options, index, made)
        for count in sorted(set(rows)):
            model, trained = _train(work, count, options, made)
            reports |= _evaluate(work, f"{count} rows", str(model), options, index, made, trained)
    _print_table(reports)


def _step(
    work: Path,
    name: str,
    *arguments: object,
    of: Sequence[Made] = (),
    resumes: bool = False,
    product: str = _NAME,
    sure: str = "",
) -> Made:
    """The step `python ARGUMENTS`, where _MADE stands for the file or folder `product` that it makes; `of`: the steps
    that it reads; `sure`: what of the product tells that it is as it was made, by default all. Raises ValueError where
    the command fails."""
    command = [str(each) for each in arguments]

    def make(folder: Path) -> dict[str, Any]:
        told = [each.replace(_MADE, str(folder / product)) for each in command]
        click.echo(f"$ python {' '.join(told)}", err=True)
        code = subprocess.run([sys.executable, *told], stdout=sys.stderr, cwd=_ROOT, check=False).returncode
        if code:
            raise ValueError(f"step '{name}' ended with exit code {code}; it said why above")
        return {}

    inputs = {"command": command, "of": [each.sums for each in of]}
    return run(work, Step(name, inputs, make, (sure or product,), resumes), lambda text: click.echo(text, err=True))


def _in(made: Made) -> Path:
    """What the command of a step made."""
    return made.folder / _NAME


def _write_questions(data: Path, corpus: Path, target: Path, limit: int | None) -> int:
    """The questions as tools/make_qa.py reads them; returns their number."""
    asked = {row["_id"]: row["text"] for row in read_records(data / "queries.jsonl")}
    answers = {row["_id"]: row["answers"] for row in read_records(data / "answers.jsonl")}
    judged = [line.split("\t") for line in (data / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]]
    gold = {query: document for query, document, score in judged if int(score) > 0}
    names = [name for name in asked if name in gold and answers.get(name)][:limit]
    with atomic_write(target) as file:
        for name in names:
            row = {"question": asked[name], "answers": answers[name], "document": f"{corpus}#{gold[name]}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(names)


def _make_rows(work: Path, index: Made, questions: Path, num: int, options: Mapping[str, Any]) -> Made:
    share = min(0.9, options["questions"] / (1 - options["unanswerable"]) / num)
    flags = [f"--{name.replace('_', '-')}={options[name]}" for name in ("unanswerable", "without_gold", "k", "order")]
    flags += [f"--style={options['style']}", f"--seed={options['seed']}", f"--test-share={share:.4f}"]
    given = ("--questions", questions, "--out", _MADE, *flags)
    return _step(work, f"questions-{num}", "tools/make_qa.py", _in(index), *given, of=[index])


def _train(work: Path, count: int, options: Mapping[str, Any], made: Made) -> tuple[Path, Made]:
    """An adapter, merged into its model, and that as a GGUF file: the model to ask, and the step that made it."""
    name = f"rows-{count}"
    part = work / f"{name}.jsonl"
    with (_in(made) / "train.jsonl").open(encoding="utf-8") as whole, atomic_write(part) as file:
        file.writelines(itertools.islice(whole, count))
    length = [f"trainer.max_steps={options['steps']}"] if options["steps"] else [f"trainer.epochs={options['epochs']}"]
    settings = ["method=sft", f"model={options['model']}", f"data={part}", "peft=lora", *length]
    settings += [f"peft.r={options['rank']}", f"peft.alpha={2 * options['rank']}", f"trainer.lr={options['lr']}"]
    settings += ["data.packing=true", f"data.max_length={options['max_length']}", "trainer.batch_size=2"]
    settings += [f"trainer.seed={options['seed']}", f"data.cache={work / 'tokens'}", "trainer.save_every=50"]
    settings += [f"trainer.output={_MADE}"]
    adapter = _step(work, f"{name}-adapter", "training/main.py", *settings, of=[made], resumes=True)
    merged = _step(work, f"{name}-model", "tools/merge_lora.py", _in(adapter), "--out", _MADE, of=[adapter])
    if not options["gguf"]:
        return _in(merged), merged
    convert = ("tools/convert_hf_to_gguf.py", _in(merged), "--out", _MADE, "--type", "q8_0")
    converted = _step(work, f"{name}-gguf", *convert, of=[merged], product=_FILE)
    return converted.folder / _FILE, converted


def _evaluate(
    work: Path, name: str, model: str, options: Mapping[str, Any], index: Made, *of: Made
) -> dict[str, dict[str, Any]]:
    """The reports of a model, by the heads of their columns: without the floor, and with it. The first `of` made the
    questions."""
    flags: list[object] = ["--model", model, "--engine", options["engine"], "--k", options["k"], "--max-tokens", 80]
    flags += [*(["--threads", options["threads"]] if options["threads"] else []), "--no-moderation"]
    asked = ("tools/evaluate.py", "rag", _in(index), _in(of[0]) / "test.jsonl", "--report", _MADE)
    reports = {}
    for head, floor in ((name, ("--floor", 0)), (f"{name}, floor", ())):
        step = "-".join([*head.replace(",", "").split(), "answers"])
        done = _step(work, step, *asked, *flags, *floor, of=[index, *of])
        reports[head] = read_report(_in(done) / "report.json")
    return reports


def _print_table(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each figure, a column for each report; of the answers also what the model makes of what was found."""
    first = next(iter(reports.values()))["figures"]
    num, unanswerable = first["questions_answerable"], first["questions_unanswerable"]
    click.echo(f"{num} questions that the index answers, {unanswerable} that it does not")
    click.echo(f"{'':<34}" + "".join(f"{name:>18}" for name in reports))
    lines = {name: [report["figures"][name] for report in reports.values()] for name in _SHOWN}
    found = [[row for row in report["rows"] if row["answers"] and row["found"]] for report in reports.values()]
    lines["answer_contained, of those found"] = [_share(rows, "contained") for rows in found]
    lines["false_refusals, of those found"] = [_share(rows, "refused") for rows in found]
    lines["citations"] = [sum(row["citations"] for row in report["rows"]) for report in reports.values()]
    for name, values in lines.items():
        click.echo(f"{name.replace('_', ' '):<34}" + "".join(f"{_number(value):>18}" for value in values))


def _share(rows: Sequence[Mapping[str, Any]], field: str) -> float | None:
    return sum(row[field] for row in rows) / len(rows) if rows else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli()
