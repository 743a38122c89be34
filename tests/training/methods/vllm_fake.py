"""What training/rl/served.py asks of a vLLM server, answered by transformers and PEFT on a thread."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from training.rl.rounds import FROM_EVALUATION
from training.rl.sampling import Sampling, sample
from training.rl.served import seed_of

BASE = "base"


class FakeVllm:
    """Serves `model`. The seeds that it knows are those of a run with trainer.seed=42, of which it draws what the model
    in training would."""

    def __init__(self, model: Path, tells_ids: bool = True) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(model).eval()
        self.adapters: dict[str, Any] = {}
        self.loaded: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.url = ""
        self._tells_ids, self._lock = tells_ids, threading.Lock()
        rounds = (*range(8), FROM_EVALUATION)
        self._seeds = {seed_of((42, round_, number)): (42, round_, number) for round_ in rounds for number in range(64)}

    def answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        with self._lock:
            return self._answer(path, body or {})

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in (BASE, *self.adapters)]}
        if path == "/v1/load_lora_adapter":
            base = type(self.base).from_pretrained(self.base.name_or_path)
            base.load_state_dict(self.base.state_dict())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers
                self.adapters[body["lora_name"]] = PeftModel.from_pretrained(base, body["lora_path"]).eval()
            self.loaded.append(body["lora_name"])
            return 200, "done"
        if path == "/v1/unload_lora_adapter":
            return (
                (200, "done")
                if self.adapters.pop(body["lora_name"], None)
                else (404, {"error": {"message": "unknown"}})
            )
        if path == "/v1/completions" and body["model"] in self.adapters:
            self.asked.append(body)
            return 200, self._completion(self.adapters[body["model"]], body)
        return 404, {"error": {"message": f"no {body.get('model')}"}}

    def _completion(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(body["max_tokens"], frozenset(body["stop_token_ids"]), 0, body["temperature"])
        (found,) = sample(model, [body["prompt"]], [self._seeds[body["seed"]]], sampling)
        ids = torch.tensor([[*body["prompt"], *found.ids]])
        with torch.no_grad():
            logp_TV = model(ids).logits[0, len(body["prompt"]) - 1 : -1].float().log_softmax(-1)
        told = logp_TV.gather(1, torch.tensor(found.ids)[:, None])[:, 0].tolist()
        choice: dict[str, Any] = {"text": "?", "logprobs": {"token_logprobs": told}}
        return {"choices": [choice | ({"token_ids": found.ids} if self._tells_ids else {})]}


@contextmanager
def serving(fake: FakeVllm) -> Iterator[FakeVllm]:
    """`fake` at an address of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: dict[str, Any] | None) -> None:
            status, answer = fake.answer(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
