"""Secrets taken out of what a run writes or sends: configurations, log lines, error messages.

Hidden are values under a name such as `api_key` or `hub_token`, strings with the shape of a known kind of token,
passwords and signatures in URLs, and whatever an environment variable with such a name holds (HF_TOKEN,
WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, ...).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"
_MIN_SECRET = (
    8  # characters; a shorter value of a variable ("1", "true") is no secret, and would blot out ordinary text
)

_KINDS = r"secret|password|passwd|passphrase|credentials?|authorization|api_?key|access_?key|private_?key"
_SECRET_NAME = re.compile(rf"(?:^|[_.-])(?:{_KINDS})(?:$|[_.-])|(?:^|[_.-])token$", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(
    r"(?:bos|eos|pad|unk|sep|cls|mask|[a-z]+_(?:start|end)|image|audio|video)_token", re.IGNORECASE
)
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|ACCESS_KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE
)

_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}|\bwandb_v\d+_\w{16,}|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # user:password@
_IN_QUERY = re.compile(r"([?&][\w-]*(?:signature|token|secret|key|credential)[\w-]*=)[^&\s\"'<]+", re.IGNORECASE)
_BEARER = re.compile(r"(\bBearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)


def redacted(value: Any, name: str = "") -> Any:
    """A copy of a JSON-like `value`, called `name`, without secrets; what JSON does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): redacted(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(each, name) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name) and value != "":
        return HIDDEN
    return value if isinstance(value, int | float) else redacted_text(str(value))


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret: `hub_token` does, `eos_token` and `max_tokens` do not."""
    return bool(_SECRET_NAME.search(name)) and not _SPECIAL_TOKEN.fullmatch(name)


def redacted_text(text: str) -> str:
    """`text` without anything that is or looks like a secret."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET and _SECRET_VARIABLE.search(name) and value in text:
            text = text.replace(value, f"<{name}>")
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(HIDDEN, text))
    return _BEARER.sub(rf"\1{HIDDEN}", _TOKENS.sub(HIDDEN, text))
