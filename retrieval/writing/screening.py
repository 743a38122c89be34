"""Every passage of an index judged once, by a screener, when it is written: may the model be shown it?

The scores are files beside the segments, which the manifest names: an index can be screened later, or anew by another
screener, without touching what is there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import atomic_write
from common.plugins import plugin
from retrieval.index.manifest import EncoderInfo, Manifest, ScreenerInfo, SegmentInfo, file_info
from retrieval.index.segment import VECTORS, Segment
from retrieval.types import Screener

_BLOCK = 1024  # passages judged at a time


def screened(index: Path, manifest: Manifest, screener: Screener | None = None) -> Manifest:
    """The manifest with a score for each passage, by `screener`, or by the one that judged the index before; as it is
    where there is neither. What that very screener has judged already is kept. Writes the scores, not the manifest.

    Raises ValueError where the screener cannot be opened or gives no scores.
    """
    if screener is None:
        if manifest.screener is None:
            return manifest
        screener = plugin("parley.screener")(manifest.screener.name)
    info = ScreenerInfo(screener.name, screener.fingerprint)
    segments = tuple(
        segment
        if segment.screened_file and info == manifest.screener
        else _judged(index, segment, manifest.encoder, screener)
        for segment in manifest.segments
    )
    return replace(manifest, segments=segments, screener=info)


def _judged(index: Path, info: SegmentInfo, encoder: EncoderInfo, screener: Screener) -> SegmentInfo:
    name = f"screened-{secrets.token_hex(6)}.f32"
    with atomic_write(index / name, "wb") as file:
        for scores in _scores(index / info.name, info, encoder, screener):
            file.write(np.ascontiguousarray(scores, dtype="<f4").tobytes())
    return replace(info, screened_file=name, screened_info=file_info(index / name))


def _scores(folder: Path, info: SegmentInfo, encoder: EncoderInfo, screener: Screener) -> Iterator[NDArray[np.float32]]:
    """Block by block. Opened anew for each segment, and vectors read rather than mapped, to keep memory flat."""
    segment = Segment(folder, replace(info, deleted_file="", deleted_info=None, num_deleted=0), encoder.dim)
    with open(folder / VECTORS, "rb") as file:
        for start in range(0, len(segment), _BLOCK):
            texts = [segment.text(i) for i in range(start, min(start + _BLOCK, len(segment)))]
            rows = np.frombuffer(file.read(4 * encoder.dim * len(texts)), dtype="<f4").reshape(len(texts), encoder.dim)
            scores = screener.screen(texts, rows, encoder.name)
            if scores.shape != (len(texts),) or not np.all(np.isnan(scores) | ((scores >= 0) & (scores <= 1))):
                raise ValueError(f"screener '{screener.name}' gave no probability for some of {len(texts)} passages")
            yield scores
