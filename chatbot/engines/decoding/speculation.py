"""Assisted decoding: a smaller model proposes tokens, the model verifies them in one forward pass (Leviathan et al.
2023, https://arxiv.org/abs/2211.17192, greedy case). The tokens that come out are those of the model alone."""

from __future__ import annotations

from chatbot.engines.decoding.running import KeyValues, Runner, Work, common_prefix, run_in_chunks

_START, _MOST = 4, 12


class Drafter:
    """Proposes tokens with a model of its own. Its cache follows whichever text it is asked about.

    `num_ids` is how many ids both models have; a vocabulary may be padded to a round number in one of them.
    """

    def __init__(self, runner: Runner, context_length: int, num_ids: int) -> None:
        self._runner, self._context_length, self._num_ids = runner, context_length, num_ids
        self._cache: KeyValues = runner.new()
        self._num = _START

    def propose(self, text: list[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `text`; none where it is too long for the draft model."""
        num = min(self._num, most, self._context_length - len(text))
        if num < 1:
            return []
        self._cache.truncate(min(common_prefix(self._cache.tokens, text), len(text) - 1))
        logits_1V = run_in_chunks(self._runner, self._cache, text[len(self._cache.tokens) :])
        proposed = [int(logits_1V[-1, : self._num_ids].argmax())]
        while len(proposed) < num:
            (logits_1V,) = self._runner.forward([Work(self._cache, proposed[-1:])])
            proposed.append(int(logits_1V[-1, : self._num_ids].argmax()))
        return proposed

    def learn(self, num_right: int, num_proposed: int) -> None:
        """Propose more after a round that was all right, less after one that was not."""
        self._num = min(num_proposed + 2, _MOST) if num_right == num_proposed else max(1, num_right + 1)
