"""What the Hugging Face hub and the way to it can answer, as one line that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

GATED = "it asks for its terms to be accepted; accept them on its page and set HF_TOKEN"


@contextlib.contextmanager
def hub_errors(what: str, remedy: str, kind: str = "model") -> Iterator[None]:
    """Turn what huggingface_hub raises into a ValueError: cannot get `what` from the hub, why, and the `remedy`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
        return
    except GatedRepoError:
        reason = GATED
    except (RepositoryNotFoundError, HFValidationError):
        reason = f"the hub has no such {kind}, or it is private; check the name and HF_TOKEN"
    except RevisionNotFoundError:
        reason = "it has no such revision; leave --revision out, or give a branch, a tag, a commit or refs/pr/N of it"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it"
    except LocalEntryNotFoundError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
        reason = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else "the hub cannot be reached"
        if (response := getattr(error.__cause__, "response", None)) is not None:
            reason = f"the hub answered {response.status_code}"
    except HfHubHTTPError as error:
        reason = f"the hub answered {error.response.status_code}"
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        reason = "the disk is full; free some space, or set HF_HOME to a folder on another disk"
    except Exception as error:
        # The network library that huggingface_hub uses has changed before; only its own errors are meant here.
        if not type(error).__module__.startswith(("httpx", "requests")):
            raise
        no_connection = type(error).__name__ in {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"}
        reason = "the hub cannot be reached" if no_connection else f"the connection broke off ({error}); try again"
    raise ValueError(f"cannot get {what} from the Hugging Face hub: {reason}; or {remedy}")
