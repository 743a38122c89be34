"""An index is searched and changed with the encoder it was built with, and no other."""

from __future__ import annotations

from pathlib import Path

from retrieval.encoders import as_encoder
from retrieval.index.manifest import EncoderInfo, Manifest
from retrieval.types import Encoder


def encoder_of(manifest: Manifest, index: Path, encoder: str | Encoder | None, device: str | None) -> Encoder:
    """The encoder of an index, or the one that is given for it. Raises as `open_encoder` and `check_encoder` do."""
    opened = as_encoder(encoder, manifest.encoder.name, device)
    check_encoder(opened, manifest, index)
    return opened


def check_encoder(encoder: Encoder, manifest: Manifest, index: Path) -> None:
    """Raises ValueError for an encoder that is not the one the index was built with."""
    rebuild = f"python -m retrieval build DOCUMENTS --index {index} --encoder {encoder.name}"
    remedy = f"rebuild it with: {rebuild}, or pass the encoder it was built with"
    check_fingerprint(encoder, manifest.encoder, f"index '{index}'", remedy)


def check_fingerprint(encoder: Encoder, built_with: EncoderInfo, what: str, remedy: str) -> None:
    """Raises ValueError, with the remedy, for an encoder that is not the one that `what` was built with."""
    if encoder.fingerprint != built_with.fingerprint:
        raise ValueError(
            f"{what} was built with encoder '{built_with.name}' (fingerprint {built_with.fingerprint[:12]}), "
            f"which encoder '{encoder.name}' ({encoder.fingerprint[:12]}) is not; {remedy}"
        )
