"""Build an index. It ends in one atomic change of its manifest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from retrieval.confidence.abstention import fit_floor
from retrieval.documents import Limits, find_files
from retrieval.encoders import DEFAULT_ENCODER, as_encoder, default_floor
from retrieval.index.manifest import EncoderInfo, IndexSettings, Manifest, now
from retrieval.index.store import Store, commit, discard, writing
from retrieval.scoring.ann import check_factory
from retrieval.scoring.calibration import TARGET_FALSE_REFUSAL
from retrieval.scoring.fusion import UNRELATED, baseline_of
from retrieval.types import Encoder, Screener
from retrieval.writing.plan import Plan, vectors_of
from retrieval.writing.pool import Source
from retrieval.writing.report import Report
from retrieval.writing.runners import OnProgress, Runner, run_here
from retrieval.writing.screening import screened


def build_index(
    paths: Iterable[str | Path],
    index: str | Path,
    encoder: str | Encoder = DEFAULT_ENCODER,
    settings: IndexSettings | None = None,
    floor: float | None = None,
    device: str | None = None,
    calibrate: bool = True,
    screener: Screener | None = None,
    run: Runner = run_here,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
    false_refusals: float = TARGET_FALSE_REFUSAL,
) -> Report:
    """Build the index of the documents under `paths` in the folder `index`, in place of the index there, if any.

    `encoder` is one, or the name of one (see `open_encoder`, also for `device`). `floor` is the score below which a
    hit says nothing; None: found from the documents (`calibrate`), so that it refuses the share `false_refusals` of the
    questions that they answer, else the one measured for the encoder.
    `screener` judges the passages, see `types.Passage`. `run` says where the work is done. Memory holds one document,
    one batch of passages and the search structures of one segment, however many there are.

    A build that was killed, and is started again with the same arguments, goes on where it was; until it ends, the
    index that was there stays as it was. What the old index holds is not encoded again.

    Raises ValueError where no document can be read, for a target folder or an encoder that cannot be used, and for
    values out of range.
    """
    index, settings, given = Path(index), settings or IndexSettings(), [str(path) for path in paths]
    if floor is not None and not -1 <= floor <= 1:
        raise ValueError(f"floor is {floor}; a confidence goes from 0 to 1, a cosine from -1")
    skipped: list[tuple[str, str]] = []
    files = find_files(given, lambda *skip: skipped.append(skip))
    with writing(index, create=True):
        try:
            # What can be wrong with the arguments should show before the encoder takes its seconds to load.
            encoder = as_encoder(encoder, DEFAULT_ENCODER, device)
            check_factory(encoder.dim, settings.factory)
            started = time.perf_counter()
            fusion = replace(settings.fusion, baseline=round(baseline_of(encoder.encode(UNRELATED)), 3))
            settings = replace(settings, fusion=fusion)
            old = _readable(index)
            known = [] if old is None or old.manifest.encoder.fingerprint != encoder.fingerprint else _all_of(old)
            work = Plan(index, "build", encoder, settings, old)
            results = work.run(files, known, run, limits, on_progress)
            skipped += [skip for result in results for skip in result.skipped]
            segments = tuple(segment for result in results for segment in result.segments)
            if not segments:
                raise _nothing_read(given, skipped)
            manifest = Manifest(
                encoder=EncoderInfo(encoder.name, encoder.fingerprint, encoder.dim),
                settings=settings,
                segments=segments,
                num_documents=sum(segment.num_documents for segment in segments),
                floor=default_floor(encoder.name) if floor is None else floor,
                calibration=None,
                sources=tuple(given),
                folder=str(Path.cwd()),
                created=now(),
                updated=now(),
            )
            if calibrate and floor is None:
                manifest = fit_floor(Store(index, manifest), encoder, target_false_refusal=false_refusals)
            manifest = screened(index, manifest, screener)
            commit(index, manifest)
        except Exception:
            discard(index)
            raise
    num = manifest.num_passages
    return Report(
        str(index),
        manifest.num_documents,
        num,
        time.perf_counter() - started,
        num_read=sum(len(result.sources) for result in results),
        num_new_passages=num,
        skipped=tuple(skipped),
    )


def _all_of(store: Store) -> list[Source]:
    return [vectors_of(segment, 0, len(segment)) for segment in store.segments]


def _readable(index: Path) -> Store | None:
    """The index that is there, if it can be used at all: a build is also how to mend a damaged one."""
    try:
        return Store(index)
    except ValueError:
        return None


def _nothing_read(paths: Sequence[str], skipped: Sequence[tuple[str, str]]) -> ValueError:
    if len(skipped) == 1:
        source, reason = skipped[0]
        return ValueError(f"cannot read '{source}': {reason}")
    reasons = "".join(f"; {source}: {reason}" for source, reason in skipped[:3])
    return ValueError(f"no document under {', '.join(paths)} can be read ({len(skipped)} files were skipped{reasons})")
