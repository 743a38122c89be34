"""Classification of texts: one task, or several at once, of which a row may name only some.

All tasks share one linear layer, each has its part of it: the same as a head for each. A task of which some row has a
list of labels is one where several hold at once (a sigmoid for each label), any other has one label (a softmax). The
model is one of transformers' for sequence classification, encoder (BERT) or decoder; moderation loads it by its path.

Run: python training/main.py method=classification model=bert-base-uncased data=labelled.jsonl data.max_length=512
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.data.rows import Label, LabelledRow

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from training.config.schema import Config
    from training.examples.collate import Batch, Row
    from training.examples.making import Example
    from training.models import Loaded
    from training.objective import Objective, Outcome

KINDS = (LabelledRow,)
ECE_BINS = 15


@dataclass
class Settings:
    """Which labels there are, and what each task counts."""

    name: str = "classification"
    labels: dict[str, Any] = field(default_factory=dict)  # {task: [labels in order]}; without it those found, sorted
    coeffs: dict[str, float] = field(default_factory=dict)  # {task: weight of its loss}; 1 where it is not named


class Heading(NamedTuple):
    """A task: its `labels` are columns `start` and on of the scores; with `multiple` several may hold at once."""

    name: str
    labels: tuple[str, ...]
    multiple: bool
    start: int

    @property
    def columns(self) -> slice:
        """Where its scores are."""
        return slice(self.start, self.start + len(self.labels))


def task_losses(
    scores_BL: torch.Tensor, targets_BL: torch.Tensor, known_BK: torch.Tensor, headings: Sequence[Heading]
) -> torch.Tensor:
    """Losses (B, K): of each task -log softmax(scores)[label], or the mean over its labels of the binary
    cross-entropy; 0 where the row does not name the task. Divide each column's sum by its known rows."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

    columns = []
    for number, heading in enumerate(headings):
        scores, targets = scores_BL[:, heading.columns], targets_BL[:, heading.columns]
        if heading.multiple:
            losses_B = binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(1)
        else:
            losses_B = -(log_softmax(scores, 1) * targets).sum(1)
        columns.append(losses_B * known_BK[:, number])
    return torch.stack(columns, 1)


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.models import Head, load
    from training.running import Task, run_task

    settings: Settings = config.method
    headings = find_headings(config)
    for named in settings.coeffs:
        if named not in {heading.name for heading in headings}:
            raise ValueError(f"method.coeffs: no row has a task '{named}'; there are: {_names(headings)}")
    one = len(headings) == 1
    labels = tuple(label if one else f"{each.name}={label}" for each in headings for label in each.labels)
    alone = one and not headings[0].multiple
    head = Head(
        labels,
        {
            "problem_type": "single_label_classification" if alone else "multi_label_classification",
            "tasks": {each.name: {"labels": list(each.labels), "multiple": each.multiple} for each in headings},
        },
    )

    def opened(config: Config, checkpoint: Path | None) -> Loaded:
        loaded = load(config, checkpoint, head)
        longest = getattr(loaded.model.config, "max_position_embeddings", None)
        if longest is not None and config.data.max_length > longest:
            raise ValueError(f"data.max_length={config.data.max_length}: this model takes {longest} tokens at most")
        return loaded

    task = Task(
        KINDS,
        lambda loaded: partial(_batch, pad_id=loaded.pad_id, headings=headings),
        lambda *_: _objective(settings, headings),
        lambda loaded: TextMaker(
            loaded.tokenizer, config.data.max_length, headings, config.data.too_long.value == "cut"
        ),
        ("classification", [list(heading) for heading in headings]),
        opened,
        generates=False,
    )
    return run_task(config, task)


# Labels --------------------------------------------------------------------------------------------------------------


def find_headings(config: Config) -> list[Heading]:
    """The tasks of the training data, sorted by name, with their labels: those of `method.labels`, in their order, or
    all that occur, sorted; so the order depends neither on the rows' nor on evaluation data.

    Raises ValueError for a task with a single label and where rows have none.
    """
    from training.data.mixture import parse_mixture
    from training.data.reading import read_rows

    settings: Settings = config.method
    found: dict[str, set[str | int | float]] = {}
    multiple: set[str] = set()
    strict = config.data.on_bad_row.value == "error"
    for source in parse_mixture(config.data.train, config.data.format, config.data.columns):
        for _, row in read_rows(source, KINDS, strict=strict):
            if not isinstance(row, LabelledRow):
                continue
            for name, value in row.labels.items():
                found.setdefault(name, set()).update(_several(value))
                if isinstance(value, tuple):
                    multiple.add(name)
    headings, start = [], 0
    for name in sorted({*found, *settings.labels}):
        given = settings.labels.get(name)
        labels = tuple(map(str, given if given else sorted(found[name], key=_by_kind)))
        if len(set(labels)) < len(labels) or len(labels) < (1 if name in multiple else 2):
            raise ValueError(f"'{name}' has the labels {', '.join(labels)}; it takes two different ones at least")
        headings.append(Heading(name, labels, name in multiple, start))
        start += len(labels)
    return headings


def _several(value: Label) -> tuple[str | int | float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _by_kind(label: str | int | float) -> tuple[bool, float, str]:
    """Numbers by size, then texts."""
    return (True, 0.0, label) if isinstance(label, str) else (False, float(label), "")


def _names(headings: Sequence[Heading]) -> str:
    return ", ".join(heading.name for heading in headings)


@dataclass
class TextMaker:
    """Makes an example of each text, tokenised as transformers' classifiers do. Its values are the targets (L), 1 for
    a label that holds, and which tasks are known (K). `counts` says how often a text was cut or left out."""

    tokenizer: Any
    max_length: int
    headings: Sequence[Heading]
    cut: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def examples(self, row: LabelledRow) -> Iterator[Example]:
        """The example of a row. Raises ValueError for a label that training data does not have."""
        import numpy as np

        from training.data.converting import LeftOut
        from training.examples.making import CUT, Example

        values = self._values(row.labels)
        ids = self.tokenizer(row.text)["input_ids"]
        if len(ids) > self.max_length:
            if not self.cut:
                self.counts["texts left out: too long"] += 1
                return
            ids = self.tokenizer(row.text, truncation=True, max_length=self.max_length)["input_ids"]
            self.counts[CUT] += 1
        if not ids or not any(values):
            raise LeftOut("no token, or no label of a task")
        yield Example(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_), 1.0, values)

    def _values(self, labels: Mapping[str, Label]) -> tuple[float, ...]:
        targets: list[float] = []
        known: list[float] = []
        for heading in self.headings:
            mine = {str(each) for each in _several(labels[heading.name])} if heading.name in labels else set()
            if unknown := sorted(mine - set(heading.labels)):
                raise ValueError(
                    f"'{unknown[0]}' is no label of '{heading.name}'; there are: {', '.join(heading.labels)} "
                    "(method.labels can name them all)"
                )
            if len(mine) > 1 and not heading.multiple:
                raise ValueError(f"'{heading.name}' has several labels here, and one at most in the training data")
            targets += [float(label in mine) for label in heading.labels]
            known.append(float(heading.name in labels))
        return (*targets, *known)


# Losses and metrics --------------------------------------------------------------------------------------------------


def _batch(rows: Sequence[Row], pad_id: int, headings: Sequence[Heading]) -> Batch:
    """`input_ids` and `attention_mask` (B, T), `targets` (B, L), `known` (B, K), `row_weights` (B)."""
    from training.examples.answers import answers_batch
    from training.heads import attention_mask

    num_labels = sum(len(heading.labels) for heading in headings)
    batch = answers_batch(rows, pad_id)
    del batch["shift_labels"]
    batch["attention_mask"] = attention_mask([example for row in rows for example in row], batch["input_ids"])
    values = batch.pop("values").reshape(len(batch["rows"]), num_labels + len(headings))
    batch["targets"], batch["known"] = values[:, :num_labels], values[:, num_labels:]
    return batch


def _objective(settings: Settings, headings: Sequence[Heading]) -> Objective:
    import torch

    from training.heads import sequence_scores
    from training.objective import Objective, Outcome

    coeffs = [settings.coeffs.get(heading.name, 1.0) for heading in headings]

    def loss(model: Any, batch: Batch) -> Outcome:
        scores, _ = sequence_scores(model, batch)
        scores_BL = scores[: len(batch["targets"])].float()
        losses_BK = task_losses(scores_BL, batch["targets"], batch["known"], headings)
        sums_K = (batch["row_weights"][:, None] * losses_BK).sum(0) * scores_BL.new_tensor(coeffs)
        nothing = 0.0 * scores.float().sum()  # every process must compute gradients, if only zeros
        return Outcome(sums_K + nothing, judgements(scores_BL.detach(), batch["targets"], batch["known"], headings))

    return Objective(loss, lambda batch: batch["known"].sum(0).to(torch.int64), partial(label_metrics, headings))


def judgements(
    scores_BL: torch.Tensor, targets_BL: torch.Tensor, known_BK: torch.Tensor, headings: Sequence[Heading]
) -> torch.Tensor:
    """(n, 5): task, label (-1 where the task has one alone), what was said, what is true, how sure that was said; a
    line for each known task of a row, or for each label of it where several may hold."""
    import torch

    lines = [scores_BL.new_zeros(0, 5)]
    for number, heading in enumerate(headings):
        mine_B = known_BK[:, number] > 0
        scores, targets = scores_BL[mine_B, heading.columns], targets_BL[mine_B, heading.columns]
        if heading.multiple:
            p = torch.sigmoid(scores)
            label = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
            parts = [label, p > 0.5, targets, torch.maximum(p, 1 - p)]
        else:
            sure, said = torch.softmax(scores, 1).max(1)
            parts = [torch.full_like(sure, -1.0), said, targets.argmax(1), sure]
        flat = [part.to(scores).reshape(-1) for part in parts]
        lines.append(torch.stack([torch.full_like(flat[0], float(number)), *flat], 1))
    return torch.cat(lines)


def label_metrics(
    headings: Sequence[Heading], _: float, __: list[float], lines: NDArray[np.float64]
) -> dict[str, float]:
    """Of each task `accuracy`, `f1` (the mean over its labels) and `ece` (15 bins); with several tasks after their
    name, as `topic_accuracy`. Where several labels hold at once every label is judged by itself."""
    from common.calibration import expected_calibration_error
    from training.measures import f1

    told: dict[str, float] = {}
    for number, heading in enumerate(headings):
        mine = lines[lines[:, 0] == number] if len(lines) else lines
        if not len(mine):
            continue
        prefix = "" if len(headings) == 1 else f"{heading.name}_"
        label, said, true, sure = mine[:, 1:].T
        told[f"{prefix}accuracy"] = float((said == true).mean())
        if heading.multiple:
            each = [f1(said[label == place], true[label == place], 1) for place in range(len(heading.labels))]
        else:
            each = [f1(said, true, place) for place in range(len(heading.labels))]
        counted = [score for score in each if score is not None]
        if counted:
            told[f"{prefix}f1"] = sum(counted) / len(counted)
        told[f"{prefix}ece"] = expected_calibration_error(sure, said == true, ECE_BINS)
    return told
