"""Training runs killed at random moments and started again: is the result that of a run nobody touched, bit for bit?

Run: python -m tools.torture.resumes [--kills 20]

A table: for whole models, LoRA, packed rows, two processes (gloo) and pipelines of two, how many of the killed runs
ended in the same weights, the same state of the optimizer and the same loss curve. Each process is forked from one that
has the libraries imported; one of a run gets SIGKILL after a random share of the time the undisturbed run took, in the
middle of whatever it does. The others must then end by themselves, and the run is started again until it ends well.
Then how far weights are apart that were trained on the same rows in steps of another shape.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from tools.launching import environments

VARIANTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "full": (1, ()),
    "lora": (1, ("peft=lora", "peft.dropout=0.1")),
    "packed": (1, ("data.packing=true",)),
    "two processes": (2, ("trainer.batch_size=2",)),
    "pipeline": (2, ("distributed=pipeline",)),
    "pipeline, lora": (2, ("distributed=pipeline", "distributed.schedule=gpipe", "peft=lora", "peft.dropout=0.1")),
    "pipeline, zbv": (2, ("distributed=pipeline", "distributed.schedule=zbv", "distributed.stages=4")),
}
SETTINGS = (
    "method=sft",
    "model.device=cpu",
    "data.max_length=128",
    "data.eval_fraction=0.2",
    "trainer.batch_size=4",
    "trainer.accumulate=2",
    "trainer.epochs=3",
    "trainer.lr=1e-3",
    "trainer.log_every=3",  # not in step with saving: half a log's losses must survive
    "trainer.save_every=4",
    "distributed.timeout_s=15",
)
MUST_END_S = 60  # after one process of a run was killed, the others
TIMES = ("runtime", "per_second", "time", "memory")  # what may differ in a loss curve


def start(overrides: Sequence[str], num_processes: int, errors: str | Path = os.devnull) -> list[int]:
    """Fork the processes of a run; their ids. What they say on stderr goes to the end of `errors`."""
    return [_fork(overrides, environment, errors) for environment in environments(num_processes)]


def _fork(overrides: Sequence[str], environment: dict[str, str], errors: str | Path) -> int:
    if pid := os.fork():
        return pid
    try:
        with open(os.devnull, "w") as nowhere, open(errors, "a") as told:
            os.dup2(nowhere.fileno(), 1)
            if os.environ.get("PARLEY_DEBUG") != "1":
                os.dup2(told.fileno(), 2)
        os.environ |= environment
        from training.config.door import compose
        from training.methods import method_run

        config = compose(overrides)
        method_run(config.method.name)(config)
    except BaseException as error:
        if os.environ.get("PARLEY_DEBUG") == "1":
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def wait(pids: Sequence[int], seconds: float | None = None, victim: int = 0) -> bool:
    """Whether all ended well; after `seconds` the process at `victim` is killed, and it is False.

    Raises ValueError where the others do not end then.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    left, well, killed = set(pids), True, False
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.discard(pid)
                well = well and status == 0
        if left and not killed and (not well or (deadline is not None and time.monotonic() > deadline)):
            if pids[victim] in left:
                os.kill(pids[victim], signal.SIGKILL)
            well, killed, deadline = False, True, time.monotonic() + MUST_END_S
        if left and killed and deadline is not None and time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise ValueError(f"{len(left)} processes did not end within {MUST_END_S} s after one was killed")
        time.sleep(0.002)
    return well


def result(run: Path) -> dict[str, Any]:
    """What must be the same: bytes of the weights and of the optimizer's state, and the loss curve."""
    newest = max((run / "checkpoints").glob("step-*"))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    curve = [{key: value for key, value in line.items() if not any(word in key for word in TIMES)} for line in history]
    weights = {path.name: path.read_bytes() for path in sorted(run.glob("*.safetensors"))}
    return {
        "weights": weights,
        "optimizer": [path.read_bytes() for path in sorted((newest / "training").glob("optimizer*.safetensors"))],
        "curve": [line for line in curve if "train_loss" not in line],
    }


def killed_run(overrides: Sequence[str], run: Path, num_processes: int, kills: Sequence[tuple[float, int]] = ()) -> int:
    """Run, kill after each time (s) the process of that number and start again, at last to the end; how many kills
    hit."""
    hits, all_overrides = 0, [*overrides, f"trainer.output={run}"]
    for delay, victim in kills:
        if wait(start(all_overrides, num_processes), delay, victim):
            return hits
        hits += 1
    errors = run.with_suffix(".stderr")
    if not wait(start(all_overrides, num_processes, errors)):
        last = [line for line in errors.read_text().splitlines() if line.strip()][-num_processes:]
        raise ValueError(f"the run in {run} failed, PARLEY_DEBUG=1 shows where: {'; '.join(last)}")
    errors.unlink()
    return hits


def tiny_model(folder: Path, **more: Any) -> Path:
    """A llama with random weights and dropout, and a tokenizer of single bytes with ChatML turns; `more` are settings
    of LlamaConfig."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from chatbot.templates import find_template

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
        additional_special_tokens=list(special),
        chat_template=find_template("chatml").jinja,
    )
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(letters),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "attention_dropout": 0.1,  # random numbers are part of the state
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    config = LlamaConfig(**{**settings, **more})
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_data(path: Path, num: int = 60) -> Path:
    """Conversations of different lengths."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(num):
            answer = " ".join(f"{number}+{each}={number + each}" for each in range(number % 6 + 1))
            turns = [{"role": "user", "content": f"Add to {number}."}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def preload() -> None:
    """Import what every run needs, once, before forking; and compute nothing, so that no threads exist."""
    import peft
    import torch
    import transformers.trainer

    import training.language_model
    import training.pipeline.trainer

    del peft, transformers, training
    torch.set_num_threads(1)


@click.command(cls=OneLineCommand)
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True, help="Killed runs a variant.")
@click.option("--seed", default=0, show_default=True)
def cli(kills: int, seed: int) -> None:
    """Kill training runs and compare what they come to."""
    preload()
    draw = random.Random(seed)  # noqa: S311  # moments, not secrets
    folder = Path(tempfile.mkdtemp(prefix="parley-resumes-"))
    try:
        wait([fork_model(folder / "model")])
        common = [*SETTINGS, f"model={folder / 'model'}", f"data={tiny_data(folder / 'data.jsonl')}"]
        common.append(f"data.cache={folder / 'cache'}")
        different = sum(
            _try_variant([*common, *more], name, folder, num, kills, draw) for name, (num, more) in VARIANTS.items()
        )
        _show_shapes(common, folder)
    finally:
        shutil.rmtree(folder)
    sys.exit(1 if different else 0)


def _try_variant(
    overrides: Sequence[str], name: str, folder: Path, num_processes: int, kills: int, draw: random.Random
) -> int:
    """Show a line of the table; how many runs differed."""
    reference = folder / "reference"
    took = 0.0
    for _ in range(2):  # the first also makes the tokens
        shutil.rmtree(reference, ignore_errors=True)
        began = time.monotonic()
        killed_run(overrides, reference, num_processes)
        took = time.monotonic() - began
    expected, same, hits = result(reference), 0, 0
    for number in range(kills):
        run = folder / f"run-{number}"
        moments = [(draw.uniform(0.1, 1.0) * took, draw.randrange(num_processes)) for _ in range(2)]
        hits += killed_run(overrides, run, num_processes, moments)
        same += result(run) == expected
        shutil.rmtree(run)
    shutil.rmtree(reference)
    click.echo(f"{name:<15}{same}/{kills} identical after {hits} kills ({took:.1f} s undisturbed)")
    return kills - same


SHAPES = {  # name -> processes, rows of a batch, batches of a step: 8 rows a step, always
    "one batch of 8": (1, 8, 1),
    "8 batches of 1": (1, 1, 8),
    "two processes with batches of 4": (2, 4, 1),
    "two stages, 4 batches of 2": (2, 2, 4),
}


def _show_shapes(common: Sequence[str], folder: Path) -> None:
    """The greatest difference that the shape of a step makes to trained weights, without dropout."""
    from safetensors.numpy import load_file

    plain = folder / "plain"
    shutil.copytree(folder / "model", plain)
    settings = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.0}))
    first: dict[str, Any] = {}
    for name, (num_processes, batch, accumulate) in SHAPES.items():
        run = folder / name.replace(" ", "-")
        shape = [f"model={plain}", f"trainer.batch_size={batch}", f"trainer.accumulate={accumulate}"]
        shape += ["distributed=pipeline"] if "stages" in name else []
        killed_run([*common, *shape], run, num_processes)
        weights = {name: each for path in run.glob("*.safetensors") for name, each in load_file(path).items()}
        first = first or weights
        apart = max(float(abs(first[each] - weights[each]).max()) for each in first)
        click.echo(f"{name:<32}trained weights {apart:.1e} from those of {next(iter(SHAPES))}, at most")


def fork_model(folder: Path) -> int:
    """Make the model in a process of its own: this one must not compute."""
    if pid := os.fork():
        return pid
    tiny_model(folder)
    os._exit(0)


if __name__ == "__main__":
    cli()
