"""Answers that a vLLM server writes instead of the model in training. Each round it is given the adapter as it is.

Started with: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank R

Asked are `/v1/load_lora_adapter`, `/v1/unload_lora_adapter` and, with token ids, `/v1/completions`
(https://docs.vllm.ai/en/latest/features/lora/). The adapter is handed over in a folder that both can read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import sha256_of
from training.json_service import JsonService
from training.processes import is_first, num_processes
from training.rl.sampling import Sampled, Sampling

KEY_VARIABLE = "VLLM_API_KEY"
WEIGHTS = "adapter_model.safetensors"
# Nats a token, on average, by which the server's log-probabilities may differ from the model's own. In bfloat16 it is
# a few hundredths; a server without the adapter, or with another model, is soon beyond it.
MAX_GAP = 0.25
_TIMEOUT = 600.0  # seconds of an answer


def seed_of(seed: tuple[int, int, int]) -> int:
    """(seed, round, number) as the one positive number of 31 bits that a server takes."""
    return int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:4], "little") >> 1


class Server:
    """A server that writes with the adapter it was given last. `folder`: where it is handed over; `at_once`: answers
    that are asked for at a time."""

    def __init__(self, url: str, folder: Path, at_once: int) -> None:
        """Raises ValueError where there is no such server."""
        self._service = JsonService(
            url.rstrip("/").removesuffix("/v1"), "a vLLM server", "answers", KEY_VARIABLE, _TIMEOUT
        )
        self._folder, self._at_once = folder.absolute(), at_once
        self._adapter = ""  # its name there
        self._models()

    def take(self, model: Any) -> None:
        """Have it write with `model`, a PEFT model, as it is now; all processes wait until it does."""
        name = [self._handed_over(model) if is_first() else ""]
        if num_processes() > 1:
            import torch.distributed as dist

            dist.broadcast_object_list(name)
        self._adapter = name[0]

    def _handed_over(self, model: Any) -> str:
        """The name of the adapter there. It follows from the weights, so that nothing that a server may keep by name
        (prefixes, for one) is of others."""
        made = self._folder / "new"
        shutil.rmtree(made, ignore_errors=True)
        model.save_pretrained(str(made))
        name = f"{self._folder.parent.name}-{sha256_of(made / WEIGHTS)[:16]}"
        if name == self._adapter:
            return name
        place = self._folder / name
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
        known = self._models()
        if name not in known:
            self._service.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        if self._adapter in known:
            self._service.ask("/v1/unload_lora_adapter", {"lora_name": self._adapter})
        for other in self._folder.iterdir():
            if other != place:
                shutil.rmtree(other)
        return name

    def _models(self) -> set[str]:
        """What the server has."""
        found = self._service.ask("/v1/models")
        listed = found.get("data") if isinstance(found, dict) else None
        if not listed:
            raise ValueError(f"{self._service.url}/v1/models names no model; is it a vLLM server?")
        return {str(each.get("id")) for each in listed}

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[tuple[int, int, int]], sampling: Sampling
    ) -> list[tuple[Sampled, NDArray[np.float32]]]:
        """An answer to each prompt, and the server's log-probability of each of its tokens, before any temperature.
        `seeds`: (seed, round, number), different for each."""
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda prompt, seed: self._answer(prompt, seed, sampling), prompts, seeds))

    def _answer(
        self, prompt: Sequence[int], seed: tuple[int, int, int], sampling: Sampling
    ) -> tuple[Sampled, NDArray[np.float32]]:
        body = {
            "model": self._adapter,
            "prompt": list(prompt),
            "max_tokens": sampling.new_tokens,
            "temperature": sampling.temperature,
            "seed": seed_of(seed),
            "stop_token_ids": sorted(sampling.ends),
            "logprobs": 0,
            "return_token_ids": True,
            # What the model's own generation settings may say otherwise:
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        answer = self._service.ask("/v1/completions", body)
        try:
            choice = answer["choices"][0]
            ids = [int(each) for each in choice["token_ids"]]
            logp = np.array(choice["logprobs"]["token_logprobs"], np.float32)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(
                f"{self._service.url} gave {str(answer)[:200]}, without token_ids and logprobs; it must be vLLM 0.10.2 "
                "or later"
            ) from None
        if len(ids) != len(logp) or not ids:
            raise ValueError(f"{self._service.url} gave {len(ids)} tokens with {len(logp)} log-probabilities")
        return Sampled(ids, ids[-1] in sampling.ends, None), logp

    def check(self, theirs: NDArray[np.float32], ours: NDArray[np.float32]) -> None:
        """Raises ValueError where the log-probabilities of an answer's tokens differ too much to be of one model."""
        gap = float(np.abs(theirs.astype(np.float64) - ours).mean())
        if not gap <= MAX_GAP:
            raise ValueError(
                f"{self._service.url} differs from the model in training by {gap:.2f} nats a token, over {MAX_GAP}; "
                "serve the same model as model=, in the same precision or nearly so"
            )
