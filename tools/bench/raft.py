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

What is finished in --work is not done again: after a kill give the same command. A step whose command, or a step before
it, has changed is done anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from common.files import atomic_write, read_json, write_json
from tools.evaluation.rag import read_report
from tools.evaluation.resuming import read_records

_ROOT = Path(__file__).parents[2]
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
    work.mkdir(parents=True, exist_ok=True)
    steps = Steps(work)
    corpus = data / "corpus.jsonl"
    cut = ("--window", options["window"], "--stride", options["window"], "--no-screen")
    fitted = ("--false-refusals", options["false_refusals"])
    build = ("-m", "retrieval", "build", corpus, "--index", work / "index", *cut, *fitted)
    index = steps.run("index", work / "index", *build, resumes=True)
    num = _write_questions(data, corpus, work / "questions.jsonl", options["limit"])
    made = _make_rows(steps, work, num, options, index)
    reports = _evaluate(steps, work, "before", options["model"], options, made)
    for count in sorted(set(rows)):
        folder = work / f"rows-{count}"
        trained = _train(steps, work, folder, count, options, made)
        reports |= _evaluate(steps, work, f"{count} rows", str(folder / "model"), options, trained)
    _print_table(reports)


@dataclass(frozen=True)
class Steps:
    """Commands that are run once. A step's digest is of its command and of the step before it."""

    work: Path

    def run(self, name: str, product: Path, *arguments: object, after: str = "", resumes: bool = False) -> str:
        """Run `python arguments`, which makes `product`, unless that was done; return the step's digest. A product that
        another command has made, or begun, is deleted first, and so is an unfinished one, unless the command `resumes`
        it. Raises ValueError where the command fails."""
        command = [str(each) for each in arguments]
        digest = hashlib.sha256("\0".join([after, *command]).encode()).hexdigest()
        record = self.work / "steps" / f"{name}.json"
        known = read_json(record) if record.is_file() else {}
        if known == {"digest": digest, "done": True} and product.exists():
            return digest
        if not (resumes and known.get("digest") == digest):
            shutil.rmtree(product) if product.is_dir() else product.unlink(missing_ok=True)
        write_json(record, {"digest": digest, "done": False})
        click.echo(f"$ python {' '.join(command)}", err=True)
        code = subprocess.run([sys.executable, *command], stdout=sys.stderr, cwd=_ROOT, check=False).returncode
        if code:
            raise ValueError(f"step '{name}' ended with exit code {code}; it said why above")
        write_json(record, {"digest": digest, "done": True})
        return digest


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


def _make_rows(steps: Steps, work: Path, num: int, options: Mapping[str, Any], after: str) -> str:
    share = min(0.9, options["questions"] / (1 - options["unanswerable"]) / num)
    flags = [f"--{name.replace('_', '-')}={options[name]}" for name in ("unanswerable", "without_gold", "k", "order")]
    flags += [f"--style={options['style']}", f"--seed={options['seed']}", f"--test-share={share:.4f}"]
    given = ("--questions", work / "questions.jsonl", "--out", work / "qa", *flags)
    return steps.run("questions", work / "qa", "tools/make_qa.py", work / "index", *given, after=f"{after} {num}")


def _train(steps: Steps, work: Path, folder: Path, count: int, options: Mapping[str, Any], after: str) -> str:
    """An adapter, merged into its model, and that as a GGUF file."""
    folder.mkdir(exist_ok=True)
    with (work / "qa" / "train.jsonl").open(encoding="utf-8") as whole, atomic_write(folder / "train.jsonl") as part:
        part.writelines(itertools.islice(whole, count))
    length = [f"trainer.max_steps={options['steps']}"] if options["steps"] else [f"trainer.epochs={options['epochs']}"]
    settings = ["method=sft", f"model={options['model']}", f"data={folder / 'train.jsonl'}", "peft=lora", *length]
    settings += [f"peft.r={options['rank']}", f"peft.alpha={2 * options['rank']}", f"trainer.lr={options['lr']}"]
    settings += ["data.packing=true", f"data.max_length={options['max_length']}", "trainer.batch_size=2"]
    settings += [f"trainer.seed={options['seed']}", f"data.cache={work / 'tokens'}", "trainer.save_every=50"]
    settings += [f"trainer.output={folder / 'adapter'}"]
    name, model = folder.name, folder / "model"
    done = steps.run(f"{name}-train", folder / "adapter", "training/main.py", *settings, after=after, resumes=True)
    merge = ("tools/merge_lora.py", folder / "adapter", "--out", model)
    done = steps.run(f"{name}-merge", model, *merge, after=done)
    if not options["gguf"]:
        return done
    file = model / "model.Q8_0.gguf"
    convert = ("tools/convert_hf_to_gguf.py", model, "--out", file, "--type", "q8_0")
    return steps.run(f"{name}-gguf", file, *convert, after=done)


def _evaluate(
    steps: Steps, work: Path, name: str, model: str, options: Mapping[str, Any], after: str
) -> dict[str, dict[str, Any]]:
    """The reports of a model, by the heads of their columns: without the floor, and with it."""
    flags: list[object] = ["--model", model, "--engine", options["engine"], "--k", options["k"], "--max-tokens", 80]
    flags += [*(["--threads", options["threads"]] if options["threads"] else []), "--no-moderation"]
    reports = {}
    for head, floor in ((name, ("--floor", 0)), (f"{name}, floor", ())):
        target = work / "reports" / head.replace(", ", "-").replace(" ", "-")
        asked = ("tools/evaluate.py", "rag", work / "index", work / "qa" / "test.jsonl", "--report", target)
        steps.run(f"{target.name}-answers", target, *asked, *flags, *floor, after=after)
        reports[head] = read_report(target / "report.json")
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
