"""Uploads finished checkpoints in the background, to a folder or any fsspec URL (s3://, gs://, sftp://, ...).

Run: python -m training.upload runs/mine/checkpoints/step-000500 s3://bucket/mine

`URL/NAME/` gets the files of the directory NAME, and at last `upload.json`, which names them with size and SHA-256 sum:
a directory without it is not whole, and no reader should take it. Credentials are those of the environment, as the
file system's package finds them (s3fs: AWS_ACCESS_KEY_ID, ~/.aws; gcsfs: GOOGLE_APPLICATION_CREDENTIALS).
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import click

from common.cli import OneLineCommand
from common.files import json_text, sha256_of
from training.tracking.redaction import redacted_text

UPLOADED = "upload.json"
RETRY_DELAYS = (1.0, 4.0, 15.0, 60.0)  # seconds before the second try, the third, ...

log = logging.getLogger("parley.upload")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A directory that was not uploaded, and why."""

    folder: Path
    reason: str


class Uploader:
    """Uploads directories to `url`, one after the other, in a thread; the newest `keep` of them stay there, or all.

        with Uploader("s3://bucket/run") as uploader:
            uploader.enqueue(checkpoint)

    What fails is tried again after each of `delays` (seconds). A directory that fails all the same is told of at once
    and at the end, and the run goes on. Raises ValueError for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str,
        keep: int | None = None,
        delays: Sequence[float] = RETRY_DELAYS,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep} must be at least 1, or None to keep all")
        self._fs, self._root = open_url(url)
        self._url, self._keep, self._delays, self._tell = url.rstrip("/"), keep, delays, tell
        self._waiting: queue.Queue[Path | None] = queue.Queue()
        self._busy: list[Path] = []
        self._uploaded: list[str] = []  # names, the newest last
        self._failures: list[Failure] = []
        self._closed = self._gave_up = False
        self._hurry = threading.Event()  # no more waiting before another try
        # A daemon: a process that ends without `close` is not kept alive by it.
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def enqueue(self, folder: Path) -> None:
        """Upload this finished directory in its turn; returns at once. It must stay as it is while it is `busy`."""
        if self._closed:
            raise ValueError(f"cannot upload {folder}: the uploader is closed")
        self._busy.append(folder.resolve())
        self._waiting.put(folder.resolve())

    def busy(self, folder: Path) -> bool:
        """Whether the directory waits or is being uploaded, and must not be deleted."""
        return folder.resolve() in self._busy

    def close(self, timeout: float | None = None) -> list[Failure]:
        """Wait until all is uploaded, at most `timeout` seconds; return what was not."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._gave_up = True
            self._hurry.set()
        return [*self._failures, *(Failure(folder, "not finished in time") for folder in list(self._busy))]

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait, though not after Ctrl-C, and say what was not uploaded."""
        for failure in self.close(timeout=0 if kind is KeyboardInterrupt else None):
            self._tell(f"not uploaded to {self._url}: {failure.folder}: {failure.reason}")

    def _work(self) -> None:
        while (folder := self._waiting.get()) is not None and not self._gave_up:
            try:
                self._upload(folder)
            # Each file system has errors of its own, and none may end the thread unseen.
            except Exception as error:
                failure = Failure(folder, redacted_text(f"{type(error).__name__}: {error}"))
                self._failures.append(failure)
                self._tell(f"upload of {folder} to {self._url} failed: {failure.reason}")
            self._busy.remove(folder)

    def _upload(self, folder: Path) -> None:
        files, before = files_in(folder), _signatures(folder)
        target = f"{self._root}/{folder.name}"
        if _is_local(self._fs) and Path(target).resolve() == folder:
            raise ValueError("it would be uploaded onto itself; give another URL")
        manifest = {"format": 1, "files": {name: _entry(path) for name, path in files.items()}}
        old = self._retried(lambda: self._read_manifest(target))
        if old != manifest:
            if old is not None:  # until the new files are there, nothing may say that they are
                self._retried(lambda: self._fs.rm_file(f"{target}/{UPLOADED}"))
            for name, path in files.items():
                self._retried(lambda name=name, path=path: self._send(path, f"{target}/{name}"))  # type: ignore[misc]
            if _signatures(folder) != before:
                raise ValueError("it was changed while it was uploaded; a checkpoint must stay as it is")
            self._retried(lambda: self._write_manifest(target, json_text(manifest)))
            for name in set(old["files"] if old else ()) - set(files):
                self._retried(lambda name=name: self._fs.rm_file(f"{target}/{name}"))  # type: ignore[misc]
        self._forget_oldest(folder.name)

    def _send(self, path: Path, target: str) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is no longer there; keep a checkpoint while it is busy")
        self._fs.makedirs(_parent(target), exist_ok=True)
        self._fs.put_file(str(path), target)
        self._fs.invalidate_cache(_parent(target))
        if (arrived := self._fs.info(target)["size"]) != (size := path.stat().st_size):
            raise OSError(f"{path.name}: {arrived} of {size} bytes arrived")

    def _read_manifest(self, target: str) -> dict[str, Any] | None:
        try:
            manifest = json.loads(self._fs.cat_file(f"{target}/{UPLOADED}"))
        except FileNotFoundError:
            return None
        except ValueError:
            manifest = None
        return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else {"files": {}}

    def _write_manifest(self, target: str, text: str) -> None:
        final = f"{target}/{UPLOADED}"
        if _is_local(self._fs):  # object stores show a new object when it is whole; a folder shows half a file
            self._fs.pipe_file(f"{final}.tmp", text.encode())
            self._fs.mv(f"{final}.tmp", final)
        else:
            self._fs.pipe_file(final, text.encode())

    def _forget_oldest(self, name: str) -> None:
        self._uploaded = [*(each for each in self._uploaded if each != name), name]
        while self._keep is not None and len(self._uploaded) > self._keep:
            oldest = f"{self._root}/{self._uploaded.pop(0)}"
            if self._retried(lambda: self._fs.exists(f"{oldest}/{UPLOADED}")):  # noqa: B023  # called at once
                self._retried(lambda: self._fs.rm_file(f"{oldest}/{UPLOADED}"))  # noqa: B023
            self._retried(lambda: self._fs.rm(oldest, recursive=True))  # noqa: B023

    def _retried(self, call: Callable[[], Result]) -> Result:
        for delay in self._delays:
            try:
                return call()
            except ValueError:  # another try would not help
                raise
            except Exception as error:
                log.info("%s; trying again in %g s", redacted_text(str(error)), delay)
                self._hurry.wait(delay)
                if self._gave_up:
                    raise
        return call()


def open_url(url: str) -> tuple[Any, str]:
    """The fsspec file system of a folder or URL, and the path in it. Raises ValueError for what cannot be used."""
    import fsspec

    if re.match(r"[\w+-]+://[^/@]*:[^/@]*@", url):
        raise ValueError("the upload URL holds a password; take it out, and set the credentials in the environment")
    if not url.strip() or "::" in url:
        raise ValueError(f"upload URL '{url}' must be a folder, or one URL such as s3://bucket/folder")
    try:
        fs, root = fsspec.url_to_fs(url)
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
        protocol = url.split("://")[0]
        remedy = f"pip install {package[protocol]}" if protocol in package else f"install what it names: {error}"
        raise ValueError(f"uploading to {protocol}:// needs a package that is not installed; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"upload URL '{url}': {error}; try a folder, s3://bucket/folder or gs://...") from None
    return fs, root.rstrip("/")


def files_in(folder: Path) -> dict[str, Path]:
    """What is uploaded of a directory: path within it -> file, also below it. ValueError where there is nothing."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no longer there; keep a checkpoint while it is busy")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found.pop(UPLOADED, None)  # of an upload that was copied back
    if not found:
        raise ValueError(f"{folder} is empty")
    return found


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _signatures(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What changes where a file is replaced."""
    states = {name: path.stat() for name, path in files_in(folder).items()}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _parent(target: str) -> str:
    return target.rsplit("/", 1)[0]


@click.command(cls=OneLineCommand)
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Show what would be uploaded, and end.")
def cli(folders: tuple[Path, ...], url: str, dry_run: bool) -> None:
    """Upload each of FOLDERS, such as a checkpoint, to URL/NAME; what is there already is left as it is."""
    open_url(url)
    for folder in folders:
        files = files_in(folder.resolve())
        size = sum(path.stat().st_size for path in files.values())
        click.echo(f"{folder} -> {url.rstrip('/')}/{folder.resolve().name}: {len(files)} files, {size / 1e6:.1f} MB")
        if dry_run:
            for name, path in files.items():
                click.echo(f"  {name}  {path.stat().st_size:,} bytes")
    if dry_run:
        return
    uploader = Uploader(url, tell=lambda text: click.echo(text, err=True))
    for folder in folders:
        uploader.enqueue(folder)
    if failures := uploader.close():
        raise ValueError(f"{len(failures)} of {len(folders)} not uploaded: {failures[0].folder}: {failures[0].reason}")


if __name__ == "__main__":
    cli()
