"""The head itself: numpy arithmetic, and its directory on disk.

N texts, D numbers of the sentence vector, K known word features, B numbers that each of them adds, H hidden units,
L labels. logit = W2 gelu(W1 [4 vector, bag] + b1) + lexical + b2, where `bag` (B) and `lexical` (L) are sums over the
text's known features, divided by the root of the number of all its features; probability = sigmoid(a logit + c).

A directory: head.safetensors (weights, small integers with a scale for each column), head.json (everything else),
README.md (the model card). head.json is written last and holds the sum of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import atomic_write, read_json, sha256_of, write_json
from moderation.head.features import hashes

FORMAT = 1
WEIGHTS, SETTINGS, CARD = "head.safetensors", "head.json", "README.md"
VECTOR_SCALE = 4.0
# name -> (type on disk, shape by the letters above)
TENSORS = {
    "keys": (np.uint32, "K"),
    "bag": (np.int8, "KB"),
    "bag_scale": (np.float32, "B"),
    "lexical": (np.int8, "KL"),
    "lexical_scale": (np.float32, "L"),
    "w1": (np.float16, "HI"),  # I = D + B
    "b1": (np.float32, "H"),
    "w2": (np.float32, "LH"),
    "b2": (np.float32, "L"),
    "slope": (np.float32, "L"),
    "offset": (np.float32, "L"),
}
Array = NDArray[Any]


@dataclass(frozen=True)
class Head:
    """Weights by the names of TENSORS, and what they mean.

    `labels` are the columns; `judged` those that had rows to learn from; `encoder` and `dim` say which sentence
    vectors it reads; `thresholds` are probabilities, by label, that together flag at most the promised share of
    harmless texts; `blocks` the labels that met the gate for blocking; `about` is the rest of head.json.
    """

    labels: tuple[str, ...]
    judged: tuple[str, ...]
    encoder: str
    dim: int
    weights: Mapping[str, Array]
    thresholds: Mapping[str, float]
    blocks: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def logits(
        self, texts: Sequence[str], vectors_ND: Array, grams: Sequence[NDArray[np.uint32]] | None = None
    ) -> NDArray[np.float32]:
        """(N, L), of texts of one window each; `grams` are their `hashes` where they are known. ValueError where the
        vectors do not fit."""
        vectors_ND = np.asarray(vectors_ND, dtype=np.float32)
        if vectors_ND.shape != (len(texts), self.dim):
            raise ValueError(
                f"vectors of shape {vectors_ND.shape} for {len(texts)} texts; this head reads {self.dim} numbers for "
                f"each text, from the encoder '{self.encoder}'"
            )
        w = self.weights
        bag_NB = np.zeros((len(texts), len(w["bag_scale"])), dtype=np.float32)
        lexical_NL = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        for i, text in enumerate(texts):
            found, total = self.known(hashes(text) if grams is None else grams[i])
            scale = np.float32(1 / np.sqrt(max(total, 1)))
            bag_NB[i] = w["bag"][found].sum(0, dtype=np.int32) * scale
            lexical_NL[i] = w["lexical"][found].sum(0, dtype=np.int32) * scale
        inputs_NI = np.concatenate([vectors_ND * VECTOR_SCALE, bag_NB * w["bag_scale"]], axis=1)
        hidden_NH = _gelu(inputs_NI @ self._w1.T + w["b1"])
        logits_NL: NDArray[np.float32] = hidden_NH @ w["w2"].T + w["b2"] + lexical_NL * w["lexical_scale"]
        return logits_NL

    def probabilities(
        self, texts: Sequence[str], vectors_ND: Array, grams: Sequence[NDArray[np.uint32]] | None = None
    ) -> NDArray[np.float64]:
        """(N, L) calibrated probabilities, NaN where the weights are; arguments as for `logits`."""
        return self.calibrated(self.logits(texts, vectors_ND, grams))

    def calibrated(self, logits_NL: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, L) probabilities of such logits."""
        lines_NL = logits_NL.astype(np.float64) * self.weights["slope"] + self.weights["offset"]
        return 1 / (1 + np.exp(-np.clip(lines_NL, -30, 30)))

    def known(self, grams: NDArray[np.uint32]) -> tuple[NDArray[np.intp], int]:
        """The rows of a text's known features, and how many features it has in all."""
        keys = self.weights["keys"]
        place = np.minimum(np.searchsorted(keys, grams), len(keys) - 1)
        return place[keys[place] == grams], len(grams)

    @property
    def _w1(self) -> NDArray[np.float32]:
        # float16 on disk; numpy multiplies it slowly, so the float32 copy is made once
        if "w1_float32" not in self.__dict__:
            object.__setattr__(self, "w1_float32", self.weights["w1"].astype(np.float32))
        copy: NDArray[np.float32] = self.__dict__["w1_float32"]
        return copy

    def save(self, folder: Path, card: str) -> None:
        """Write the directory; a reader sees the old one or the new one. OSError where it cannot be written."""
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        data = save({name: np.ascontiguousarray(self.weights[name]) for name in TENSORS})
        with atomic_write(folder / WEIGHTS, "wb") as file:
            file.write(data)
        with atomic_write(folder / CARD) as file:
            file.write(card)
        settings = {
            "format": FORMAT,
            "labels": list(self.labels),
            "judged": list(self.judged),
            "encoder": {"name": self.encoder, "dim": self.dim},
            "thresholds": dict(self.thresholds),
            "blocks": list(self.blocks),
            "weights_sha256": sha256_of(folder / WEIGHTS),
            **self.about,
        }
        write_json(folder / SETTINGS, settings)


def is_head(folder: str | Path) -> bool:
    """Whether a directory looks like one that `Head.save` wrote."""
    return (Path(folder) / SETTINGS).is_file()


def load_head(folder: Path) -> Head:
    """Read a directory and check it whole; ValueError for anything missing, changed or of the wrong shape."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings = read_json(folder / SETTINGS)
    try:
        if settings["format"] != FORMAT:
            raise ValueError(f"format {settings['format']}, and this version reads {FORMAT}; train the head again")
        labels = tuple(map(str, settings["labels"]))
        judged = tuple(map(str, settings["judged"]))
        name, dim = str(settings["encoder"]["name"]), int(settings["encoder"]["dim"])
        thresholds = {str(label): float(value) for label, value in settings["thresholds"].items()}
        blocks, digest = tuple(map(str, settings["blocks"])), settings["weights_sha256"]
        if not labels or len(set(labels)) < len(labels) or not set(judged) | set(thresholds) | set(blocks) <= {*labels}:
            raise ValueError("its lists of labels do not agree")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder / SETTINGS}: not a moderation head: {what}") from None
    path = folder / WEIGHTS
    try:
        if sha256_of(path) != digest:
            raise ValueError(f"{path}: changed since it was written (its sum differs); copy or train it again")
        weights = load_file(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    _check_shapes(path, weights, {"L": len(labels), "D": dim})
    own = ("format", "labels", "judged", "encoder", "thresholds", "blocks", "weights_sha256")
    about = {key: value for key, value in settings.items() if key not in own}
    return Head(labels, judged, name, dim, weights, thresholds, blocks, about)


def _check_shapes(path: Path, weights: Mapping[str, Array], sizes: dict[str, int]) -> None:
    if set(weights) != set(TENSORS):
        wrong = sorted(set(weights) ^ set(TENSORS))
        raise ValueError(f"{path}: the tensors are not those of a head: {', '.join(wrong)}")
    sizes["K"], sizes["B"], sizes["H"] = (len(weights[name]) for name in ("keys", "bag_scale", "b1"))
    sizes["I"] = sizes["D"] + sizes["B"]
    for name, (kind, letters) in TENSORS.items():
        shape = tuple(sizes[letter] for letter in letters)
        if weights[name].dtype != kind or weights[name].shape != shape:
            raise ValueError(f"{path}: '{name}' is {weights[name].dtype} {weights[name].shape}, not {shape}")
    keys = weights["keys"]
    if not len(keys) or (keys[1:] <= keys[:-1]).any():
        raise ValueError(f"{path}: 'keys' is not a rising list")


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tanh form."""
    result: NDArray[np.float32] = (
        np.float32(0.5) * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x**3)))
    )
    return result
