"""The whole loop, as steps: rows, old, train, model, new; then the gate, the report and the switch."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot.engines import LoadOptions
from chatbot.engines.auto import choose_engine
from chatbot.engines.decoding.adapters import is_adapter
from common.default_model import RECORD, read_default
from common.files import read_json, sha256_of, write_json
from common.models import resolve_model
from retrieval.index.manifest import MANIFEST, read_manifest
from retrieval.qdrant.retriever import is_remote
from tools.evaluation.asked import read_asked
from tools.evaluation.resuming import NOT_IN_SETTINGS, read_records
from tools.improving import making, promoting, reporting
from tools.improving.figures import compare
from tools.improving.gate import Line, Verdict, judge
from tools.improving.rows import TEST, TRAIN, make_rows
from tools.improving.steps import Made, Say, Step, read_record, run, sums_of

_BEGUN = "begun.json"  # in the work folder: the model that is to be improved


@dataclass(frozen=True)
class Plan:
    """What to do. `bot`: the bot's options (chatbot/options.py), checked, with the model to improve; `named`: a person
    chose that model. `questions`: a folder with TEST and maybe TRAIN, without which they are made; `first`: the default
    model where nothing was promoted."""

    work: Path
    bot: Mapping[str, Any]
    named: bool
    first: str
    method: str
    feedback: Sequence[Path]
    questions: Path | None
    gate: Sequence[Line]
    gguf: bool | None = None
    overrides: Sequence[str] = ()
    mask: Sequence[str] = ()
    reviewed_only: bool = False
    promote: bool = True


@dataclass(frozen=True)
class Outcome:
    """What the gate said, line by line, the report's folder, and what was done about it, in words."""

    verdicts: Sequence[Verdict]
    report: Path
    table: str
    done: str

    @property
    def passed(self) -> bool:
        """Whether the new model may take the old one's place."""
        return all(verdict.passed for verdict in self.verdicts)


def model_to_improve(work: Path, named: str | None, default: str) -> str:
    """The model that a work folder is about: the one that is named, else the default at the time it was begun. (After
    the switch the default is the new one, and the same command must still mean the old.)"""
    if named is not None:
        return named
    begun = read_record(work / _BEGUN).get("model")
    if not isinstance(begun, str):
        begun = default
        write_json(work / _BEGUN, {"model": begun})
    return begun


def improve(plan: Plan, say: Say) -> Outcome:
    """Do all that is not done yet. Raises ValueError for what can be seen to be wrong, the cheap checks first."""
    model = str(plan.bot["model"])
    base, gguf = _base(plan), _wants_gguf(plan)
    making.check_training(_arguments(plan, base))
    for index in map(str, plan.bot["index"]):
        if not is_remote(index):
            read_manifest(Path(index))
    if plan.questions:
        read_asked(plan.questions / TEST)
    weights = sums_of(base, tuple(sorted(each.name for each in base.iterdir() if each.is_file())))
    questions = plan.questions or run(plan.work, _questions_step(plan, weights), say).folder
    rows = run(plan.work, _rows_step(plan, questions), say)
    _tell_rows(rows, say)
    # Before training: this opens the whole bot, so that whatever is wrong with that is seen now.
    old = run(plan.work, _measuring_step("old", plan, model, weights, rows, say), say)
    adapter = run(plan.work, _train_step(plan, base, weights, rows), say)
    made = run(plan.work, _model_step(plan, base, weights, adapter, gguf), say)
    new = run(plan.work, _measuring_step("new", plan, str(made.folder / making.MODEL), made.sums, rows, say), say)
    old_rows, new_rows = (list(read_records(each.folder / making.ROWS)) for each in (old, new))
    compared = compare(old_rows, new_rows)
    verdicts = judge(tuple(plan.gate), compared)
    name = _new_name(model, made)
    done = _switch(plan, model, made, name, all(verdict.passed for verdict in verdicts))
    report = reporting.Report(model, name, compared, verdicts, rows.told, done, old_rows, new_rows)
    reporting.write(plan.work / "report", report)
    return Outcome(verdicts, plan.work / "report", reporting.table(report), done)


def _base(plan: Plan) -> Path:
    """The directory of the old model. ValueError for what cannot be trained further and then take its place."""
    model = str(plan.bot["model"])
    if plan.bot["base_url"] or plan.bot["engine"] == "openai":
        raise ValueError(f"model '{model}' runs on a service, and cannot be trained here; name a model directory")
    if is_adapter(model) or plan.bot["adapters"]:
        raise ValueError("the old model has an adapter; merge the two first: python tools/merge_lora.py")
    base = Path(resolve_model(model))
    if not any(base.glob("*.safetensors")):
        raise ValueError(f"{base} holds no safetensors, which training needs; name a model directory that does")
    return base


def _wants_gguf(plan: Plan) -> bool:
    """As told, else where the bot would run the old model with llama.cpp."""
    if plan.gguf is not None:
        return plan.gguf
    if plan.bot["engine"] == "auto":
        return choose_engine(str(plan.bot["model"]), LoadOptions(device=plan.bot["device"])) == "llamacpp"
    return bool(plan.bot["engine"] == "llamacpp")


def _questions_step(plan: Plan, weights: Mapping[str, str]) -> Step:
    """The bot's own model asks. tools/make_qa.py keeps every answer, and so goes on after a kill."""
    index, *others = map(str, plan.bot["index"])
    if others or not (Path(index) / MANIFEST).is_file():
        raise ValueError(f"questions are made from one index on this machine, not from {index}; give --questions")
    settings = ["--model", plan.bot["model"], "--k", plan.bot["k"], "--system", plan.bot["system"]]
    inputs = {"model": dict(weights), "index": sums_of(Path(index), (MANIFEST,)), "settings": settings}

    def make(folder: Path) -> dict[str, Any]:
        from tools.make_qa import cli

        with contextlib.redirect_stdout(sys.stderr):
            cli.main([index, "--out", str(folder), *map(str, settings)], standalone_mode=False)
        return {}

    return Step("questions", inputs, make, (TRAIN, TEST), resumes=True)


def _rows_step(plan: Plan, questions: Path) -> Step:
    files = {str(file): sha256_of(file) for file in plan.feedback}
    inputs = {
        "method": plan.method,
        "feedback": files,
        "questions": sums_of(questions, (TRAIN, TEST)),
        "mask": list(plan.mask),
        "reviewed_only": plan.reviewed_only,
    }

    def make(folder: Path) -> dict[str, Any]:
        indexes = [str(each) for each in plan.bot["index"]]
        return make_rows(folder, plan.method, plan.feedback, questions, indexes, plan.mask, plan.reviewed_only)

    return Step("rows", inputs, make, (TRAIN, TEST))


def _tell_rows(rows: Made, say: Say) -> None:
    for kind in ("feedback", "test"):
        for reason, num in rows.told[kind].get("left_out", {}).items():
            say(f"  {num:,} of {kind} left out: {reason}")
    say(f"  {rows.told['train_rows']:,} rows to learn from, {rows.told['test']['rows']:,} questions to test with")


def _arguments(plan: Plan, base: Path) -> list[str]:
    data, output = plan.work / "rows" / TRAIN, plan.work / "train" / making.RUN
    return making.training_arguments(plan.method, base, data, output, plan.overrides)


def _train_step(plan: Plan, base: Path, weights: Mapping[str, str], rows: Made) -> Step:
    inputs = {
        "method": plan.method,
        "base": _without_gguf(weights),
        "rows": rows.sums[TRAIN],
        "overrides": list(plan.overrides),
    }

    def make(_: Path) -> dict[str, Any]:
        return making.train(_arguments(plan, base))

    outputs = tuple(f"{making.RUN}/{name}" for name in ("adapter_model.safetensors", "adapter_config.json"))
    return Step("train", inputs, make, outputs, resumes=True)


def _model_step(plan: Plan, base: Path, weights: Mapping[str, str], adapter: Made, gguf: bool) -> Step:
    stem = _stem(str(plan.bot["model"]))
    about = {"name": stem, "made_from": str(plan.bot["model"]), "num_passages": plan.bot["k"]}
    inputs = {"base": _without_gguf(weights), "adapter": adapter.sums, "gguf": gguf, "about": about}

    def make(folder: Path) -> dict[str, Any]:
        return making.make_model(folder, adapter.folder / making.RUN, base, gguf, about)

    return Step("model", inputs, make, (making.MODEL,), resumes=True)


def _without_gguf(weights: Mapping[str, str]) -> dict[str, str]:
    """What training and merging read: not the GGUF files."""
    return {name: each for name, each in weights.items() if not name.lower().endswith(".gguf")}


def _measuring_step(name: str, plan: Plan, model: str, weights: Mapping[str, str], rows: Made, say: Say) -> Step:
    without = (*NOT_IN_SETTINGS, "model")
    settings = {key: str(value) for key, value in plan.bot.items() if key not in without}
    inputs = {
        "model": dict(weights),
        "questions": rows.sums[TEST],
        "bot": settings,
        "indexes": [sums_of(Path(each), (MANIFEST,)) for each in plan.bot["index"]],
    }

    def make(folder: Path) -> dict[str, Any]:
        return making.measure(folder, plan.bot, model, rows.folder / TEST, say)

    return Step(name, inputs, make, (making.ROWS,), resumes=True)


def _stem(model: str) -> str:
    """`smollm2-135m` of `smollm2-135m-improved-1a2b3c4d`, and of a path."""
    return re.sub(r"-improved-[0-9a-f]{8}$", "", Path(model).name) or "model"


def _new_name(model: str, made: Made) -> str:
    """What the new model is called under models/: the same for the same files."""
    record = read_json(made.folder / making.MODEL / RECORD)
    sums = "".join(entry["sha256"] for _, entry in sorted(record["files"].items()))
    return f"{_stem(model)}-improved-{hashlib.sha256(sums.encode()).hexdigest()[:8]}"


def _switch(plan: Plan, model: str, made: Made, name: str, passed: bool) -> str:
    """What is done about the verdict, in words."""
    if not passed:
        return f"refused: {model} stays"
    if not plan.promote:
        return f"passed; not promoted (--no-promote): {made.folder / making.MODEL}"
    replaces = None if plan.named else model
    if promoting.promote(made.folder / making.MODEL, name, plan.first, replaces, plan.work / "report" / "report.html"):
        return f"promoted: the default model is {name} now"
    default = read_default()
    now = default.model if default else plan.first
    return f"promoted before: {name}; the default model is {now} now"
