"""TransformersClassifier: any Hugging Face sequence-classification model. Importing this loads neither torch nor
transformers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.devices import choose_device
from common.models import loading_errors, resolve_model
from moderation.classifiers.windows import encodable
from moderation.labels import did_you_mean, is_benign
from moderation.types import Scores

if TYPE_CHECKING:
    import torch

LabelMap = Mapping[str, "str | None"]

# Windows of a long text share this many tokens (a quarter of the window where that is less), so that a phrase of up
# to that length stands whole in at least one of them.
OVERLAP = 64
# Windows of similar length are run together, up to this many tokens with padding.
BATCH_TOKENS = 8192


class TransformersClassifier:
    """Any Hugging Face sequence-classification model, by path or id, with the label names of its config, or with
    those that `label_map` gives them: its name -> another, or None to leave the label out. A name that the map does
    not have stays; where several become one, the highest score counts.

    Probabilities are a softmax over the labels, or a sigmoid for each where the config says
    `multi_label_classification` or there is one label only. A text longer than the model's maximum length is scored
    in overlapping windows: a label gets its highest score in any of them, a label that means "nothing wrong"
    (`is_benign`) its lowest, so the scores of a long text need not add up to 1.

    `device` is a torch device name; a GPU where there is one if left out. Safe to call from several threads. Raises
    ValueError where the model cannot be found, loaded or read as a classifier, and where `label_map` names a label
    that it does not have.
    """

    def __init__(self, path_or_id: str, device: str | None = None, label_map: LabelMap | None = None) -> None:
        source = resolve_model(path_or_id)
        self._device = choose_device(device)
        self._multi_label, self._labels = _outputs(source, path_or_id)
        self._renamed = _renamed(self._labels, label_map or {}, path_or_id)
        self._tokenizer, self._model = _load(source, path_or_id, self._device)
        self._window = _maximum_length(self._tokenizer, self._model)
        # One call at a time: a tokenizer keeps settings in itself, and the memory needed stays that of one batch.
        self._lock = threading.Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in self._renamed if name is not None))

    def scores(self, texts: Sequence[str]) -> list[Scores]:
        """For each text: label -> probability in [0, 1]; None for all labels where the text has no tokens."""
        if not texts:
            return []
        with self._lock:
            owners, windows = self._windows(texts)
            probabilities_WL = self._probabilities(windows)  # W windows, L labels
        of_text: list[list[int]] = [[] for _ in texts]
        for window, owner in enumerate(owners):
            of_text[owner].append(window)
        return [self._worst(probabilities_WL[mine]) for mine in of_text]

    def _worst(self, probabilities_WL: torch.Tensor) -> Scores:
        """The scores of one text from those of its windows, under the names that the label map gives."""
        if not len(probabilities_WL):
            return dict.fromkeys(self.labels)
        # Not Python's min and max, which can lose a NaN: the moderator must see it.
        scores: Scores = {}
        for label in self.labels:
            columns = [i for i, name in enumerate(self._renamed) if name == label]
            of_label = probabilities_WL[:, columns]
            scores[label] = (of_label.amin() if is_benign(label) else of_label.amax()).item()
        return scores

    def _windows(self, texts: Sequence[str]) -> tuple[list[int], list[dict[str, list[int]]]]:
        """The windows of all texts, and for each window the number of its text; a text without tokens has none."""
        encoded = self._tokenizer(
            [encodable(text) for text in texts],
            truncation=True,
            max_length=self._window,
            stride=min(OVERLAP, self._window // 4),
            return_overflowing_tokens=True,
            split_special_tokens=True,  # "[SEP]" in a text is five characters, not a separator
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        windows = [{name: column[i] for name, column in encoded.items()} for i in range(len(owners))]
        kept = [i for i, window in enumerate(windows) if window["input_ids"]]
        return [owners[i] for i in kept], [windows[i] for i in kept]

    def _probabilities(self, windows: list[dict[str, list[int]]]) -> torch.Tensor:
        """One row of label probabilities for each window, on the CPU."""
        import torch

        probabilities_WL = torch.empty(len(windows), len(self._labels))
        with torch.inference_mode():
            for batch in self._batches(windows):
                inputs = self._tokenizer.pad([windows[i] for i in batch], padding=len(batch) > 1, return_tensors="pt")
                logits_BL = self._model(**inputs.to(self._device)).logits.float()
                probabilities_BL = logits_BL.sigmoid() if self._multi_label else logits_BL.softmax(-1)
                probabilities_WL[batch] = probabilities_BL.cpu()
        return probabilities_WL

    def _batches(self, windows: list[dict[str, list[int]]]) -> Iterator[list[int]]:
        """Window numbers, longest first, cut so that no batch is above BATCH_TOKENS (or it is one window)."""
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i]["input_ids"]))
        # Decoders find the end of a text by the padding token, and cannot be batched where the two do not agree on it.
        pad = self._tokenizer.pad_token_id
        can_pad = pad is not None and pad == self._model.config.pad_token_id
        while order:
            size = max(1, BATCH_TOKENS // len(windows[order[0]]["input_ids"])) if can_pad else 1
            yield order[:size]
            order = order[size:]


def open_transformers(name: str, device: str | None, label_map: LabelMap) -> TransformersClassifier:
    """The sequence classifier of that path or id."""
    return TransformersClassifier(name, device, label_map)


def _renamed(labels: tuple[str, ...], label_map: LabelMap, name: str) -> list[str | None]:
    """What each of the model's labels is called, None for one that is left out."""
    for label in label_map:
        if label not in labels:
            hint = did_you_mean(label, labels)
            raise ValueError(f"the label map names '{label}', which model '{name}' lacks: {', '.join(labels)}{hint}")
    renamed = [label_map.get(label, label) for label in labels]
    if not any(renamed):
        raise ValueError(f"the label map leaves out every label of model '{name}': {', '.join(labels)}")
    return renamed


def _outputs(source: str, name: str) -> tuple[bool, tuple[str, ...]]:
    """Whether the labels are independent of each other, and their names, from the model's config.

    `source` is where the model lies, `name` what the user calls it. Refuses what loads without an error and yet
    gives no probabilities.
    """
    from transformers import AutoConfig

    with loading_errors(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        labels = tuple(str(label) for _, label in sorted(config.id2label.items()))
    architectures = ", ".join(config.architectures or ["nothing"])
    if "ForSequenceClassification" not in architectures:
        # AutoModelForSequenceClassification would put a random head on it.
        raise ValueError(
            f"model '{name}' is not a classifier: its config names {architectures} as its architecture, and "
            "moderation needs one of ...ForSequenceClassification"
        )
    if config.problem_type == "regression":
        raise ValueError(f"model '{name}' is a regression model: it gives a number, not probabilities of labels")
    if len(set(labels)) < len(labels):
        raise ValueError(f"model '{name}' has several labels of the same name: {', '.join(labels)}; fix its id2label")
    return config.problem_type == "multi_label_classification" or len(labels) == 1, labels


def _load(source: str, name: str, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and model, every weight of it from the checkpoint."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    # Half precision is slow on most CPUs; elsewhere the checkpoint's own precision is kept.
    dtype = torch.float32 if device.type == "cpu" else "auto"
    with loading_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, padding_side="right", truncation_side="right"
        )
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with a clearer word than transformers has for it
        )
    if unset := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        raise ValueError(f"model '{name}' would answer at random: its checkpoint has no weights that fit {unset[0]}")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up by transformers from the config alone
        raise ValueError(f"model '{name}' has no tokenizer; save it into the same directory")
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of model '{name}', a {type(tokenizer).__name__}, cannot cut long texts")
    return tokenizer, model.to(device)


def _maximum_length(tokenizer: Any, model: Any) -> int:
    """The most tokens the model takes at once: the least of what the tokenizer and the config say; 512 if neither."""
    import torch

    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    # RoBERTa and its kin count positions from the padding index up: 514 rows serve 512 tokens.
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and "position" in name and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    # A tokenizer that knows no limit says 10**30.
    return min((limit for limit in limits if limit and limit < 10**9), default=512)
