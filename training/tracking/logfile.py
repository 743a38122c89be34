"""`train.log`: what happened in a run, with loguru; `train.rank1.log` and so on for further processes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from training.tracking.redaction import redacted_text

LOG = "train.log"
LOGS = "train*.log"  # of all processes
_LIBRARIES = ("", "transformers")  # loggers that hand nothing on: the root, and transformers'

_LEVELS = ("WARNING", "ERROR", "CRITICAL")


@contextlib.contextmanager
def run_log(run: Path, rank: int = 0, num_processes: int = 1) -> Iterator[None]:
    """Within it, lines of loguru and warnings of `logging` are appended to the log file in the run's directory.

    So is the traceback of an exception that ends it. Secrets are taken out; values of variables are not shown.
    """
    from loguru import logger

    with contextlib.suppress(ValueError):
        logger.remove(0)  # loguru's own handler: stderr is the console's
    who = f"rank {rank} | " if num_processes > 1 else ""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / (LOG if rank == 0 else f"train.rank{rank}.log"), "a", encoding="utf-8", buffering=1) as file:
        sink = logger.add(
            lambda message: print(redacted_text(str(message)), end="", file=file),
            format=f"{{time:YYYY-MM-DD HH:mm:ss.SSS}} | {{level: <7}} | {who}{{message}}",
            level="INFO",
            backtrace=False,
            diagnose=False,  # it would write the values of variables
        )
        try:
            with _logging_to_loguru():
                yield
        except Exception as error:
            logger.opt(exception=error).error("the run ended with an error")
            raise
        except BaseException as ending:
            logger.warning("the run was interrupted ({})", type(ending).__name__)
            raise
        finally:
            logger.remove(sink)


@contextlib.contextmanager
def _logging_to_loguru() -> Iterator[None]:
    handler = _ToLoguru(logging.WARNING)
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    # Python shows warnings on stderr only where no handler is set: with ours set, they must go there all the same.
    last_resort = logging.lastResort if not logging.getLogger().handlers else None
    if last_resort is not None:
        logging.getLogger().addHandler(last_resort)
    for each in loggers:
        each.addHandler(handler)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
        if last_resort is not None:
            logging.getLogger().removeHandler(last_resort)


class _ToLoguru(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from loguru import logger

        level = record.levelname if record.levelname in _LEVELS else record.levelno  # loguru knows no others by name
        logger.opt(exception=record.exc_info).log(level, "{}: {}", record.name, record.getMessage())
