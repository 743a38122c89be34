"""Runs through the door of training, for test_pipeline_door.py: `python door_cases.py FOLDER`.

All are forked from this process, which has the libraries imported: most of a short run is importing them.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

from tools.torture.resumes import fork_model, preload, start, tiny_data, wait

PIPELINE, LAST = "distributed=pipeline", "data.train_on=last"
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "one": (1, ()),
    "stages": (2, (PIPELINE, "trainer.save_every=3", "trainer.keep_checkpoints=9")),
    "square": (4, (PIPELINE, "distributed.data_parallel=2", "trainer.accumulate=2")),
    "adapter": (1, ("peft=lora",)),
    "adapter-stages": (2, (PIPELINE, "peft=lora", "distributed.schedule=zbv", "distributed.stages=4")),
    "prefix": (1, ("method=prefix_lm", "method.bidirectional=true")),
    "prefix-stages": (2, ("method=prefix_lm", "method.bidirectional=true", PIPELINE)),
    "halves": (1, ("trainer.precision=bf16",)),
    "halves-stages": (2, (PIPELINE, "trainer.precision=bf16", "distributed.schedule=zbv", "distributed.stages=4")),
    "packed": (1, ("data.packing=true", LAST)),
    "packed-stages": (2, ("data.packing=true", LAST, PIPELINE, "trainer.gradient_checkpointing=true")),
}
# Runs that go on at step 3 of "stages" with other stages: name -> processes, settings.
MOVED: dict[str, tuple[int, tuple[str, ...]]] = {
    "to-one": (1, (PIPELINE, "distributed.stages=1")),
    "to-four": (4, (PIPELINE, "distributed.stages=4", "distributed.layers=[1,1,1,1]")),
}
SETTINGS = (
    "model.device=cpu",
    "data.max_length=96",
    "data.eval_fraction=0.2",
    "trainer.batch_size=2",
    "trainer.accumulate=4",
    "trainer.epochs=1",
    "trainer.lr=1e-3",
    "trainer.log_every=1",
    "trainer.samples=0",
    "distributed.timeout_s=100",
)


def without_dropout(model: Path) -> None:
    """Dropout is drawn anew in each process, so that without it alone can runs be compared."""
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.0}))


def longer(path: Path, short: Path) -> None:
    """Conversations of two answers each, for runs that learn the last."""
    lines = [json.loads(line)["messages"] for line in short.read_text().splitlines()]
    path.write_text("".join(json.dumps({"messages": one + other}) + "\n" for one, other in pairwise(lines)))


def run(folder: Path, name: str, processes: int, more: tuple[str, ...]) -> None:
    data = "longer.jsonl" if LAST in more else "data.jsonl"
    paths = {"model": "model", "data": data, "data.cache": "cache", "trainer.output": name}
    settings = [*SETTINGS, *(f"{key}={folder / path}" for key, path in paths.items())]
    method = [] if any(each.startswith("method=") for each in more) else ["method=sft"]
    if not wait(start([*method, *settings, *more], processes)):
        raise ValueError(f"the run '{name}' failed; set PARLEY_DEBUG=1 to see why")


def main(folder: Path) -> None:
    preload()
    wait([fork_model(folder / "model")])
    without_dropout(folder / "model")
    longer(folder / "longer.jsonl", tiny_data(folder / "data.jsonl"))
    for name, (processes, more) in CASES.items():
        run(folder, name, processes, more)
    for name, (processes, more) in MOVED.items():
        shutil.copytree(folder / "stages", folder / name)
        for later in (folder / name / "checkpoints").iterdir():
            if later.name != "step-000003":
                shutil.rmtree(later)
        run(folder, name, processes, (*more, "trainer.save_every=3"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
