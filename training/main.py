"""Train a model: one door for every method.

Run: python training/main.py method=sft model=smollm2-135m data=chats.jsonl trainer.output=runs/mine
     python training/main.py --help
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # started by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from common.cli import OneLineCommand
from common.plugins import plugin
from training.config.compat import chatllama, llm_codebase
from training.config.compat.speaker import Request, translated
from training.config.door import compose
from training.methods import method_run
from training.processes import is_first

if TYPE_CHECKING:
    from training.config.schema import Config


@click.command(cls=OneLineCommand)
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE ...")
@click.option("--config", "file", type=click.Path(path_type=Path), help="A YAML file of keys; KEY=VALUE beat it.")
@click.option("--show", is_flag=True, help="Print the whole configuration, checked, and do nothing.")
@click.option("--dry-run", is_flag=True, help="Print the plan: memory, steps, time; train and write nothing.")
@click.option("--type", "kind", type=click.Choice(list(chatllama.STAGES)), help="With ChatLLaMA's config.yaml.")
@click.option("--actor", metavar="MODEL", help="In place of the one in ChatLLaMA's config.yaml.")
@click.option("--reward", metavar="MODEL", help="In place of the one in ChatLLaMA's config.yaml.")
def cli(
    overrides: Sequence[str],
    file: Path | None,
    show: bool,
    dry_run: bool,
    kind: str | None,
    actor: str | None,
    reward: str | None,
) -> None:
    """Train a model: method=sft model=smollm2-135m data=chats.jsonl are the three that must be given.

    \b
    docs/training.md explains; all keys: docs/training-reference.md
    Speaker's keys are understood where train_mode= or eval_mode= is given:
    docs/migrating.md, and so are llm_codebase's arguments as KEY=VALUE, and
    ChatLLaMA's config.yaml
    """
    if file is None and overrides and "=" not in overrides[0] and overrides[0].endswith((".yaml", ".yml")):
        file, overrides = Path(overrides[0]), overrides[1:]
    if chatllama.is_config(file):
        request = _of_chatllama(file, overrides, kind or "ALL", actor, reward)
    elif kind or actor or reward:
        raise ValueError("--type, --actor and --reward go with ChatLLaMA's config.yaml; say method=, model= instead")
    else:
        request = _in_any_keys(overrides, file)
    config = None if request.overrides is None else compose(request.overrides, request.file)
    if show:
        _show(config, request.evaluation)
        return
    if dry_run:
        flags = {"--config": file, "--type": kind, "--actor": actor, "--reward": reward}
        _plan(config, [*(each for flag, value in flags.items() if value for each in (flag, str(value))), *overrides])
        return
    if request.told and is_first():
        click.echo(request.told, err=True)
    # Its files are read now: after days of training is too late to find one missing.
    speaking = plugin("parley.speaker")(**request.evaluation) if request.evaluation else None
    model = request.model
    if config is not None:
        model = str(method_run(config.method.name)(config))
        if is_first():
            click.echo(model)
    if speaking is not None and is_first():
        speaking.run(model)


def _of_chatllama(file: Path, overrides: Sequence[str], kind: str, actor: str | None, reward: str | None) -> Request:
    ours, left_out = chatllama.translated(file, kind, actor, reward)
    return Request([*ours, *overrides], told="\n".join(chatllama.told(ours, left_out)))


def _in_any_keys(overrides: Sequence[str], file: Path | None) -> Request:
    """What a command asks for in Parley's keys, Speaker's or llm_codebase's."""
    request = translated(overrides, file)
    if request.overrides != list(overrides):  # in Speaker's keys
        return request
    ours = llm_codebase.translated(overrides)
    told = f"in Parley's own keys: {shlex.join(ours)}" if ours != request.overrides else ""
    return replace(request, overrides=ours, told=told)


def _plan(config: Config | None, arguments: Sequence[str]) -> None:
    from training.estimate.telling import dry_run

    if config is None:
        raise ValueError("--dry-run plans a training run, and eval_mode alone is none; leave it out")
    plan = dry_run(config, arguments)
    if is_first():
        click.echo(plan)


def _show(config: Config | None, evaluation: dict[str, Any] | None) -> None:
    from omegaconf import OmegaConf

    if config is not None:
        click.echo(OmegaConf.to_yaml(OmegaConf.structured(config)), nl=False)
    if evaluation is not None:
        click.echo(OmegaConf.to_yaml(OmegaConf.create({"evaluation": evaluation})), nl=False)


if __name__ == "__main__":
    cli()
