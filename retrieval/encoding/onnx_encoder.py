"""The int8 sentence encoder on ONNX Runtime: several times as fast on CPUs, and only used where it proved as good.

`tools/export_onnx.py` writes into `<model>/onnx/`: int8.onnx, tokenizer.json, and proof.json, which binds the two to
the weights they came from and says how near their vectors are to those of the original. Neither torch nor
transformers is needed here.

Every text runs through the model alone, on one thread of several. So a vector depends on nothing but its text: an int8
product takes the range of its input from what runs together, and in a batch that would be the neighbours too. Nothing
is padded either, and this is as fast as batches of like length.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.files import read_json, write_json
from common.models import resolve_model
from retrieval.encoding.sentence_model import clean, fingerprint_of, read_recipe, stable_name, weight_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER, MODEL, TOKENIZER, PROOF = "onnx", "int8.onnx", "tokenizer.json", "proof.json"
FORMAT_VERSION = 1

# What an int8 model must reach beside its float32 original, on the texts of tools/export_onnx.py. mean_cosine and
# min_cosine: of the two vectors of a text. recall_at_10: the share of a text's ten nearest others that int8 finds too.
# all-MiniLM-L6-v2 reaches .997, .982 and .970, and 1.000, .999 and .995 of its nDCG@10 on nq, cranfield and npl.
# Quantised carelessly (8-bit weights with one scale for each matrix), its mean cosine was .952, and it ranked worse.
# The lowest cosine may be further off than the mean: it is often that of a text of a word or two.
THRESHOLDS = {"mean_cosine": 0.99, "min_cosine": 0.95, "recall_at_10": 0.90}


@dataclass(frozen=True)
class Proof:
    """What proof.json holds. `model` and `tokenizer` are the SHA-256 sums of the two files beside it, `source` is the
    fingerprint of the float32 encoder, `weights` the SHA-256 sum of each file of its weights; `figures` has the keys
    of `THRESHOLDS`, higher is better, measured on `num_texts` texts; `max_length` is in tokens."""

    model: str
    tokenizer: str
    source: str
    weights: Mapping[str, str]
    max_length: int
    lower_case: bool
    num_texts: int
    figures: Mapping[str, float]

    @property
    def shortcoming(self) -> str | None:
        """The first figure that is below its threshold, in words; None where all are reached."""
        for name, least in THRESHOLDS.items():
            if not self.figures[name] >= least:
                return f"{name} is {self.figures[name]:.4f}, below {least}"
        return None

    @property
    def fingerprint(self) -> str:
        """That of the encoder: of all that decides its vectors."""
        return hashlib.sha256(repr((self.model, self.tokenizer, self.max_length, self.lower_case)).encode()).hexdigest()

    def write(self, file: Path) -> None:
        """Atomically, with the thresholds and the outcome for people to read."""
        outcome = {"thresholds": THRESHOLDS, "passed": self.shortcoming is None}
        write_json(file, {"format_version": FORMAT_VERSION, **asdict(self), **outcome})


def read_proof(file: Path) -> Proof:
    """Raises ValueError for a file that is missing, of another format, or not what `Proof.write` writes."""
    content = read_json(file)
    try:
        if content.pop("format_version") != FORMAT_VERSION:
            raise ValueError("it is of another version of Parley")
        del content["thresholds"], content["passed"]
        proof = Proof(**content)
        if set(proof.figures) != set(THRESHOLDS) or not all(type(each) is float for each in proof.figures.values()):
            raise ValueError("its figures are not those that are asked for")
        if type(proof.max_length) is not int or type(proof.lower_case) is not bool or proof.max_length < 1:
            raise ValueError("max_length or lower_case is out of range")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from None
    return proof


class OnnxEncoder:
    """See `open_encoder` and `types.Encoder`. Safe to call from several threads.

    `model` and `tokenizer` are the contents of int8.onnx and tokenizer.json, which `open` reads and verifies. Raises
    ValueError for a model that keeps weights in other files, or that ONNX Runtime refuses.
    """

    def __init__(self, name: str, model: bytes, tokenizer: str, proof: Proof) -> None:
        # A tensor whose data is in another file names it under this key; the file was not verified, and could be any.
        if b"location" in model:
            raise ValueError(f"the int8 model of '{name}' refers to other files, which is refused; export it again")
        self.name = f"{name}:int8"
        self.max_length, self.fingerprint = proof.max_length, proof.fingerprint
        self._lower_case = proof.lower_case
        self._session = _session(name, model)
        self.dim = int(self._session.get_outputs()[0].shape[1])
        self._plain_tokenizer = _tokenizer(tokenizer)
        self._tokenizer = _tokenizer(tokenizer)
        self._tokenizer.enable_truncation(self.max_length)
        self._num_threads = _num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._making_pool = threading.Lock()

    @classmethod
    def open(cls, name: str) -> OnnxEncoder:
        """The int8 encoder beside the model called `name`. Raises ValueError, with the remedy, where there is none,
        where it did not prove good enough, and where it is not what its proof says or of other weights."""
        folder = Path(resolve_model(name))
        remedy = f"; run: python tools/export_onnx.py {name}"
        if not (folder / FOLDER / PROOF).is_file():
            raise ValueError(f"model '{name}' has no int8 version yet{remedy}")
        try:
            proof = read_proof(folder / FOLDER / PROOF)
            if proof.shortcoming:
                raise ValueError(f"it is not good enough: {proof.shortcoming}")
            model = _verified(folder / FOLDER / MODEL, proof.model)
            tokenizer = _verified(folder / FOLDER / TOKENIZER, proof.tokenizer)
            recipe = read_recipe(folder)
            if fingerprint_of(weight_files(folder / recipe.subfolder), recipe, proof.max_length) != proof.source:
                raise ValueError("it was made from other weights or settings than the model has now")
            return cls(stable_name(name, folder), model, tokenizer.decode("utf-8"), proof)
        except (ValueError, OSError) as error:
            raise ValueError(f"the int8 version of model '{name}' cannot be used: {error}{remedy}") from None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32 unit rows in the order of `texts`; the same, bit for bit, whatever else is in `texts`."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        encodings = self._tokenizer.encode_batch_fast(clean(texts, self._lower_case))
        # Longest first, so that no thread is left with a long text at the end.
        order = sorted(range(len(texts)), key=lambda i: -len(encodings[i]))

        def encode_one(i: int) -> None:
            vectors[i] = self._session.run(None, {"ids": np.array([encodings[i].ids], dtype=np.int64)})[0][0]

        if self._num_threads == 1 or len(texts) <= 1:
            for i in order:
                encode_one(i)
        else:
            for _ in self._threads().map(encode_one, order):
                pass  # only to raise what a thread raised
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See `Encoder`."""
        cleaned = clean(texts, self._lower_case)
        return [len(each) for each in self._plain_tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)]

    def _threads(self) -> ThreadPoolExecutor:
        with self._making_pool:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._num_threads, "encoder")
            return self._pool


def proven(name: str) -> bool:
    """Whether the model called `name` has an int8 version that proved good enough, or one whose proof is unreadable:
    opening it says what is wrong. Raises ValueError for a model that is not there."""
    file = Path(resolve_model(name)) / FOLDER / PROOF
    try:
        return file.is_file() and read_proof(file).shortcoming is None
    except ValueError:
        return True


def _verified(file: Path, sha256: str) -> bytes:
    """The content of a file, if its SHA-256 sum is the one expected."""
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{file.name} is damaged: its SHA-256 sum is not the one in {PROOF}")
    return content


def _session(name: str, model: bytes) -> Any:
    try:
        onnxruntime = importlib.import_module("onnxruntime")  # which comes without types
    except ImportError:
        raise ValueError("the int8 encoder needs ONNX Runtime; run: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a thread for each text, see above
    options.log_severity_level = 3
    # The graph comes fused. The further levels would turn its layer norms into SkipLayerNormalization, whose kernel
    # takes eight times as long (version 1.31).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class but this
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise ValueError(f"ONNX Runtime refuses the int8 model of '{name}': {str(error).splitlines()[0]}") from None


def _tokenizer(content: str) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content)


@functools.cache
def _num_threads() -> int:
    """OMP_NUM_THREADS, which torch follows too, or the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
