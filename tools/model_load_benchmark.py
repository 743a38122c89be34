"""How long models take to be there: download, load, transfer to the device, first and second inference; and memory.

Run: python tools/model_load_benchmark.py -i models.json -o times.json -d cpu -r 3

models.json is an object of names and what they stand for: {"small": "smollm2-135m", "large": "owner/name"}. The report
has an object a name: seconds (the mean of the repeats, and each repeat), memory in MB, or the error of a model that
failed; the others go on. Each repeat runs in a process of its own, so that memory is the model's alone. A model of a
hub is fetched once, into an empty folder that is removed again; what is on this machine has no download.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from common.devices import choose_device
from common.files import check_can_write, expand, read_json, write_json
from common.models import loading_errors, resolve_model

_PROMPT = "The quick brown fox jumps over the lazy dog."
_NUM_TOKENS = 16  # of an inference
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_REFUSED = 2  # exit code of a child that could not load or run its model


def measure(name: str, device: str | None) -> dict[str, float | None]:
    """One repeat, in this process. Keys ending in `_sec` are seconds, in `_MB` megabytes (10^6 bytes).

    `main_memory_MB` is what the process has grown by at the most since before the tokenizer was loaded, and
    `gpu_memory_MB` torch's peak on the device (None on the CPU). Raises ValueError where the model cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, target = resolve_model(name), choose_device(device)
    result: dict[str, float | None] = {}

    @contextmanager
    def timed(key: str) -> Iterator[None]:
        _synchronise(target)
        begun = time.perf_counter()
        yield
        _synchronise(target)
        result[f"{key}_sec"] = time.perf_counter() - begun

    before = _bytes("VmRSS")
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target)
    with timed("tokenizer_load"), loading_errors(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    with timed("load_to_ram"), loading_errors(name):
        model: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    with timed("transfer_to_device"):
        model.to(target)
    ids = tokenizer(_PROMPT, return_tensors="pt").to(target)
    settings = {"do_sample": False, "max_new_tokens": _NUM_TOKENS, "min_new_tokens": _NUM_TOKENS}
    for key in ("inference", "inference_warm"):
        with timed(key), torch.inference_mode():
            model.generate(ids["input_ids"], attention_mask=ids["attention_mask"], **settings)
    result["total_sec"] = sum(value for value in result.values() if value is not None)
    result["main_memory_MB"] = (_bytes("VmHWM") - before) / 1e6
    result["gpu_memory_MB"] = torch.cuda.max_memory_allocated(target) / 1e6 if target.type == "cuda" else None
    return result


def download(name: str) -> dict[str, float | None]:
    """Fetch tokenizer and then weights of a hub model into the cache that HF_HUB_CACHE names: seconds of each. Raises
    ValueError where it cannot be had."""
    from huggingface_hub import snapshot_download

    begun = time.perf_counter()
    with loading_errors(name):
        snapshot_download(name, allow_patterns=["tokenizer*", "special_tokens_map.json", "*.jinja", "config.json"])
    halfway = time.perf_counter()
    resolve_model(name)
    return {"tokenizer_download_sec": halfway - begun, "model_download_sec": time.perf_counter() - halfway}


def benchmark(models: dict[str, str], device: str | None, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The report: for each name the place, means and repeats, or its error."""
    report: dict[str, Any] = {}
    for label, place in models.items():
        say(f"{label}: {place} ...")
        try:
            report[label] = {"model": place, **_of_one(place, device, repeats)}
        except ValueError as error:
            report[label] = {"model": place, "error": str(error)}
            say(f"{label}: failed: {error}")
        else:
            say(f"{label}: {report[label]['total_sec']:.1f} s, {report[label]['main_memory_MB']:.0f} MB")
    return report


def _of_one(name: str, device: str | None, repeats: int) -> dict[str, Any]:
    fetched: dict[str, Any] = {"tokenizer_download_sec": None, "model_download_sec": None}
    with tempfile.TemporaryDirectory() as cache:
        environment = {}
        if _HUB_ID.fullmatch(name) and not expand(name).exists():
            fetched = _child("download", name, None, HF_HUB_CACHE=cache)
            environment = {"HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        else:
            resolve_model(name)  # seconds before a child would say so
        runs = [_child("measure", name, device, **environment) for _ in range(repeats)]
    means = {key: statistics.mean(run[key] for run in runs) for key, value in runs[0].items() if value is not None}
    means["total_sec"] += sum(value for value in fetched.values() if value is not None)
    return {**fetched, **dict.fromkeys(runs[0]), **means, "repeats": runs}


def _child(task: str, name: str, device: str | None, **environment: str) -> dict[str, Any]:
    """Run a task of this module in a process of its own; ValueError with its error."""
    code = "import sys; from tools.model_load_benchmark import _run_task; _run_task(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, task, name, device or ""],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == _REFUSED:
        raise ValueError(last)
    raise ValueError(f"the process that loads it ended with {done.returncode}: {last}")


def _run_task(task: str, name: str, device: str) -> None:
    """In the child: its result as JSON on stdout, or what is wrong in the last line of stderr."""
    try:
        result = download(name) if task == "download" else measure(name, device or None)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: no room on the device
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(_REFUSED)
    print(json.dumps(result))


def _synchronise(device: Any) -> None:
    """Wait until the GPU has done what it was given: its work is not over when a call returns."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(field: str) -> int:
    """Main memory of this process: `VmRSS` now, `VmHWM` at the most. Without /proc it is the most both times."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{field}:")]
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_models(path: Path) -> dict[str, str]:
    """Names and places. ValueError for anything but an object of texts."""
    models = read_json(path)
    if not (isinstance(models, dict) and models and all(isinstance(each, str) and each for each in models.values())):
        raise ValueError(f'{path}: must be an object of names and models, such as {{"small": "smollm2-135m"}}')
    return models


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.option("-i", "--input", "input_", type=click.Path(path_type=Path), required=True, help='{"name": "path or id"}.')
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The report, JSON.")
@click.option("-d", "--device", help="cpu, cuda:1 ...  [default: the first GPU, else the CPU]")
@click.option("-r", "--repeats", type=click.IntRange(min=1), default=3, help="Times that each model is loaded.")
def cli(input_: Path, output: Path, device: str | None, repeats: int) -> None:
    """Measure how long models take to load and to answer."""
    models, target = read_models(expand(input_)), expand(output)
    check_can_write(target)
    choose_device(device)
    write_json(target, benchmark(models, device, repeats, lambda line: click.echo(line, err=True)))


if __name__ == "__main__":
    cli()
