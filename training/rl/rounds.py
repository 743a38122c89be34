"""Rounds: the model answers prompts, the answers are scored, and become the rows that the next steps learn from.

To the trainer a round is an epoch of rows, made when the first of them is asked for. What is sampled follows from the
seed, the round and an answer's number alone; with the rows of the round at hand a run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.examples.collate import Batch, Collate
from training.examples.making import Example
from training.processes import is_first, num_processes, rank
from training.rl.policy import kept_pairs, token_numbers
from training.rl.prompts import Prompt
from training.rl.sampling import Sampled, Sampling, sample

if TYPE_CHECKING:
    from training.examples.order import Mixture
    from training.models import Loaded
    from training.rl.rewards import Reward
    from training.rl.served import Server

FROM_EVALUATION = 1 << 20  # rounds from here on are those of evaluations


@dataclass
class Rollout:
    """An answer, `ids` after the first `start` of them; its `reward`; and `tokens`: numbers for each of its tokens."""

    ids: NDArray[np.int32]
    start: int
    text: str
    reward: float
    ended: bool
    kept: list[NDArray[np.int32]] | None = None
    tokens: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def example(self) -> Example:
        """The answer has a loss, its prompt has none."""
        return Example(self.ids, np.arange(len(self.ids)) >= self.start)

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.start

    @property
    def kl(self) -> float:
        """log p - log p_ref of the answer, in nats: its mean is how far the policy is from the reference."""
        return float((self.tokens["logp"].astype(np.float64) - self.tokens["ref_logp"]).sum())


Groups = list[list[Rollout]]  # the answers to each prompt
Learn = Callable[[Groups, dict[str, float]], tuple[list[Rollout], dict[str, float]]]


def rollout_batch(rows: Sequence[Sequence[Rollout]], collate: Collate) -> Batch:
    """The batch that `collate` makes of the answers, with `rewards`, `kl` and `lengths` (B), and each of their `tokens`
    (N): of all answers in turn, as the positions with a label are."""
    import torch

    rollouts = [rollout for row in rows for rollout in row]
    batch = collate([[rollout.example] for rollout in rollouts])
    for name in rollouts[0].tokens if rollouts else ():
        batch[name] = torch.from_numpy(np.concatenate([rollout.tokens[name] for rollout in rollouts]))
    if rollouts and "ref_logp" in rollouts[0].tokens:
        batch["kl"] = torch.tensor([rollout.kl for rollout in rollouts])
    batch["rewards"] = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float32)
    batch["lengths"] = torch.tensor([rollout.length for rollout in rollouts], dtype=torch.int64)
    if rollouts and rollouts[0].kept is not None:
        kept = [rollout.kept for rollout in rollouts if rollout.kept is not None]
        batch["kept_rows"], batch["kept_ids"] = kept_pairs(kept)
    return batch


@dataclass
class Writer:
    """Writes and scores answers with the model as it is at that moment."""

    loaded: Loaded
    reference: Callable[[Any], Any]
    reward: Reward
    collate: Collate
    sampling: Sampling
    seed: int
    batch_size: int
    server: Server | None = None  # writes in the model's place

    def groups(self, prompts: Sequence[Prompt], samples: int, round_: int) -> Groups:
        """`samples` answers to each prompt, scored, with `logp`, `ref_logp` and `values` for each token; made by all
        processes together."""
        mine = range(rank(), len(prompts), num_processes())
        numbers = [place * samples + each for place in mine for each in range(samples)]
        if self.server is not None:
            self.server.take(self.loaded.model)
        answers = self._sampled(prompts, samples, numbers, round_)
        texts = [self._text(answers[number]) for number in numbers]
        by_prompt = [texts[place : place + samples] for place in range(0, len(texts), samples)]
        scores = self.reward([prompts[place].conversation for place in mine], by_prompt) if by_prompt else []
        flat_scores = [score for each in scores for score in each]
        rollouts = []
        for number, text, score in zip(numbers, texts, flat_scores, strict=True):
            prompt, answer = prompts[number // samples].ids, answers[number]
            ids = np.asarray([*prompt, *answer.ids], np.int32)
            rollouts.append(Rollout(ids, len(prompt), text, score, answer.ended, answer.kept))
        self._add_numbers(rollouts)
        gathered = _gathered(list(zip(numbers, rollouts, strict=True)))
        in_order = [rollout for _, rollout in sorted(gathered, key=lambda each: each[0])]
        return [in_order[place : place + samples] for place in range(0, len(in_order), samples)]

    def _sampled(
        self, prompts: Sequence[Prompt], samples: int, numbers: Sequence[int], round_: int
    ) -> dict[int, Sampled]:
        by_length = sorted(numbers, key=lambda number: len(prompts[number // samples].ids))
        ids = [prompts[number // samples].ids for number in by_length]
        seeds = [(self.seed, round_, number) for number in by_length]
        if self.server is not None:
            return dict(zip(by_length, self._served(self.server, ids, seeds), strict=True))
        found: list[Sampled] = []
        for start in range(0, len(ids), self.batch_size):
            some = slice(start, start + self.batch_size)
            found += sample(self.loaded.model, ids[some], seeds[some], self.sampling)
        return dict(zip(by_length, found, strict=True))

    def _served(self, server: Server, ids: Sequence[list[int]], seeds: Sequence[tuple[int, int, int]]) -> list[Sampled]:
        """The server's answers, of which one is read again: whether it writes with this model."""
        found = server.sample(ids, seeds, self.sampling)
        if found:
            first, theirs = found[0]
            whole = np.asarray([*ids[0], *first.ids], np.int32)
            ours = Rollout(whole, len(ids[0]), "", 0.0, first.ended)
            self._add_numbers([ours], temperature=1.0)
            server.check(theirs, ours.tokens["logp"])
        return [answer for answer, _ in found]

    def _text(self, answer: Sampled) -> str:
        text: str = self.loaded.tokenizer.decode(answer.ids, skip_special_tokens=True)
        return text

    def _add_numbers(self, rollouts: Sequence[Rollout], temperature: float | None = None) -> None:
        """The policy's and the reference's log-probabilities, and values: from a pass over the whole answer, as in
        training, so that ratios begin at 1. At the `temperature` of sampling, unless told."""
        import torch

        temperature = temperature or self.sampling.temperature
        model = self.loaded.model
        device, training = next(model.parameters()).device, model.training
        model.eval()
        by_length = sorted(rollouts, key=lambda rollout: len(rollout.ids))
        for start in range(0, len(by_length), self.batch_size):
            some = by_length[start : start + self.batch_size]
            batch = rollout_batch([some], self.collate)
            batch = {key: each.to(device) if hasattr(each, "to") else each for key, each in batch.items()}
            with torch.no_grad():
                own = token_numbers(model, batch, temperature)
                with self.reference(model) as before:
                    ref_logp_N = token_numbers(before, batch, temperature).logp
            edges = np.cumsum([rollout.length for rollout in some])[:-1]
            for name, numbers_N in (("logp", own.logp), ("ref_logp", ref_logp_N), ("values", own.values)):
                for rollout, each in zip(some, np.split(numbers_N.cpu().numpy(), edges), strict=True):
                    rollout.tokens[name] = each
        model.train(training)


def _gathered(mine: list[Any]) -> list[Any]:
    if num_processes() == 1:
        return mine
    from accelerate.utils import gather_object

    return list(gather_object(mine))


class Rounds:
    """Rows of the trainer: `row(epoch, position)` is an answer of round `epoch`, each `passes` times, in another order
    each time.

    `learn(groups, numbers)` says which answers are learned, with what for each token; it may change `numbers`, which go
    with the round (the coefficient of the KL penalty), and gives metrics. `made(metrics, examples)` is told of each new
    round before anything is learned of it.
    """

    def __init__(
        self,
        writer: Writer,
        prompts: Mixture,
        learn: Learn,
        *,
        num_prompts: int,
        samples: int,
        learned: int,
        passes: int,
        numbers: dict[str, float],
    ) -> None:
        self._writer, self._prompts, self._learn = writer, prompts, learn
        self._num_prompts, self._samples, self._learned, self._passes = num_prompts, samples, learned, passes
        self.made: Callable[[dict[str, float], list[Rollout]], None] = lambda *_: None
        self._round = -1
        self._rows: list[Rollout] = []
        self.numbers = numbers

    def __len__(self) -> int:
        return self._learned * self._passes

    def row(self, epoch: int, position: int) -> list[Rollout]:
        """An answer; the first that is asked of a round has it made."""
        if epoch != self._round:
            self._make(epoch)
        pass_, place = divmod(position, self._learned)
        draw = np.random.Generator(np.random.Philox(key=[self._writer.seed, 1], counter=[0, epoch, pass_, 1]))
        return [self._rows[int(draw.permutation(self._learned)[place])]]

    def _make(self, round_: int) -> None:
        prompts = []
        for place in range(round_ * self._num_prompts, (round_ + 1) * self._num_prompts):
            found: Any = self._prompts.row(*divmod(place, len(self._prompts)))
            prompts += found
        groups = self._writer.groups(prompts, self._samples, round_)
        told = round_metrics([rollout for group in groups for rollout in group])
        self._rows, more = self._learn(groups, self.numbers)
        self._round = round_
        self.made({"round": float(round_), **told, **more}, [group[0] for group in groups])

    def state(self) -> dict[str, Any]:
        """What a run needs to go on within the round."""
        import torch

        def plain(rollout: Rollout) -> dict[str, Any]:
            kept = None if rollout.kept is None else [torch.from_numpy(each) for each in rollout.kept]
            tokens = {name: torch.from_numpy(each) for name, each in rollout.tokens.items()}
            return vars(rollout) | {"ids": torch.from_numpy(rollout.ids), "kept": kept, "tokens": tokens}

        return {"round": self._round, "numbers": self.numbers, "rows": [plain(each) for each in self._rows]}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._round = state["round"]
        self.numbers.update(state["numbers"])
        self._rows = []
        for each in state["rows"]:
            kept = None if each["kept"] is None else [ids.numpy() for ids in each["kept"]]
            tokens = {name: values.numpy() for name, values in each["tokens"].items()}
            self._rows.append(Rollout(**each | {"ids": each["ids"].numpy(), "kept": kept, "tokens": tokens}))


class EvaluationRows:
    """Rows of an evaluation: one answer to each prompt, with the same random numbers each time."""

    def __init__(self, writer: Writer, prompts: Mixture) -> None:
        self._writer, self._prompts = writer, prompts
        self.rollouts: list[Rollout] = []

    def __len__(self) -> int:
        return len(self._prompts)

    def row(self, epoch: int, position: int) -> list[Rollout]:  # noqa: ARG002  # the same in every epoch
        """An answer from `refresh`."""
        return [self.rollouts[position]]

    def refresh(self) -> None:
        """Write new answers, with the model as it is."""
        rows: Any = [self._prompts.row(0, place)[0] for place in range(len(self._prompts))]
        self.rollouts = [group[0] for group in self._writer.groups(rows, 1, FROM_EVALUATION)]


def round_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over answers: `reward` and its standard deviation, `kl` to the reference in nats, `length` in tokens, and
    the share that `ended` by itself."""
    rewards = np.array([rollout.reward for rollout in rollouts])
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "kl": float(np.mean([rollout.kl for rollout in rollouts])),
        "length": float(np.mean([rollout.length for rollout in rollouts])),
        "ended": float(np.mean([rollout.ended for rollout in rollouts])),
    }


def write_samples(rollouts: Sequence[Rollout], step: int, decode: Callable[[Any], str], path: Any) -> None:
    """Append answers to `samples.jsonl`."""
    from common.files import append_json_line

    if not is_first():
        return
    for rollout in rollouts:
        prompt = decode(rollout.ids[: rollout.start])
        record = {"step": step, "prompt": prompt, "answer": rollout.text, "reward": rollout.reward, "kl": rollout.kl}
        append_json_line(path, record)
