"""Answers to a few evaluation prompts, written at each evaluation: whether the model has got better, in words."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loguru import logger

from common.files import append_json_line
from training.processes import is_first

if TYPE_CHECKING:
    from training.examples.making import Example
    from training.examples.order import Mixture
    from training.models import Loaded

FILE = "samples.jsonl"


class Samples:
    """Called with the trainer after an evaluation: appends to `samples.jsonl` in the run's directory."""

    def __init__(self, run: Path, loaded: Loaded, rows: Mixture | None, num: int, num_tokens: int) -> None:
        self._file, self._loaded, self._num_tokens = run / FILE, loaded, num_tokens
        places = range(min(num, len(rows))) if rows is not None else ()
        self._examples = [rows.row(0, place)[0] for place in places] if rows is not None else []

    def __call__(self, trainer: Any) -> None:
        """Answer greedily, so that no random numbers are used up."""
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or not is_first():
            return  # one process alone cannot run a model that is spread over several
        for example in self._examples:
            record = {"step": trainer.state.global_step, **self._answer(example)}
            append_json_line(self._file, record)
            logger.info("sample: {}", record)

    def _answer(self, example: Example) -> dict[str, str]:
        import torch

        tokenizer, model = self._loaded.tokenizer, self._loaded.model
        whole = int(np.argmax(example.mask)) == 0  # running text: begin it and let it go on
        cut = max(1, len(example.ids) // 2) if whole else int(np.argmax(example.mask))
        prompt, expected = example.ids[:cut], example.ids[cut:] if whole else example.ids[example.mask]
        training = model.training
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)  # of PEFT, by generate
            ids = model.generate(
                input_ids=torch.from_numpy(prompt.astype(np.int64))[None].to(model.device),
                max_new_tokens=self._num_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=self._loaded.pad_id,
                eos_token_id=tokenizer.eos_token_id,
            )[0].tolist()
        model.train(training)
        made = ids if self._loaded.encoder_decoder else ids[len(prompt) :]
        return {
            "prompt": tokenizer.decode(prompt),
            "answer": tokenizer.decode(made),
            "expected": tokenizer.decode(expected),
        }
