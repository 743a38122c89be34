"""The ONNX graph of a BERT-like sentence encoder, written by hand: token ids in, a unit vector out.

One text at a time (the batch is 1), so no padding and no attention mask. With int8, the weights of every linear layer
are rounded to 7 bits with a scale for each output, and its input to 8 bits with a range found as it runs
(DynamicQuantizeMatMul of ONNX Runtime). 7 bits, since the AVX2 instruction that adds pairs of products saturates at 16
bits with 8: so the products are the same on every CPU. The first token ([CLS]) goes through the feed-forward layers
apart from the others: its values are up to ten times theirs, and one range for all left the others few steps (mean
cosine of all-MiniLM-L6-v2 .9936, apart .9968, for 5% of the speed). Exact gelu becomes its tanh form (Hendrycks and
Gimpel, 2016, arXiv:1606.08415), which differs by less than 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MICROSOFT = "com.microsoft"  # the operators that ONNX Runtime adds
_OPSET, _IR_VERSION = 17, 8
_WEIGHT_LEVELS = 63  # 7 bits with a sign
_BYTE_LEVELS = 127
_FAR = 1 << 30  # past the end of any text


@dataclass(frozen=True)
class _Names:
    """Where a family keeps the weights of a layer, below its prefix with the layer's number for {}."""

    layer: str
    qkv: tuple[str, str, str]
    attention_out: str
    attention_norm: str
    up: str
    down: str
    out_norm: str


def _bert(attention: str, *qkv: str, out: str, norm: str) -> _Names:
    query, key, value = (f"{attention}.{name}" for name in qkv)
    return _Names(
        "encoder.layer.{}.", (query, key, value), out, norm, "intermediate.dense", "output.dense", "output.LayerNorm"
    )


_BERT = _bert(
    "attention.self", "query", "key", "value", out="attention.output.dense", norm="attention.output.LayerNorm"
)
_FAMILIES = {
    "bert": _BERT,
    "camembert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "mpnet": _bert("attention.attn", "q", "k", "v", out="attention.attn.o", norm="attention.LayerNorm"),
    "distilbert": _Names(
        "transformer.layer.{}.",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}


def check_config(config: Mapping[str, Any]) -> None:
    """Raises ValueError, with the reason, for a model (its config.json) that `build_graph` cannot write."""
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(f"int8 export knows the model types {', '.join(_FAMILIES)}, not '{kind}'")
    activation = config.get("activation" if kind == "distilbert" else "hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"int8 export knows the activations {', '.join(_ACTIVATIONS)}, not '{activation}'")
    if (position := config.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"int8 export knows absolute position embeddings, not '{position}'")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ValueError("int8 export knows encoders, not decoders")


def build_graph(model: Any, pooling: str, max_length: int, int8: bool = True) -> bytes:
    """The ONNX model of a transformers model, as bytes that depend on its weights and settings alone.

    Input `ids` (1, T) int64 with 2 <= T <= `max_length`, output `vectors` (1, dim) float32, unit. Without `int8`, all
    is float32. Raises ValueError as `check_config` does.
    """
    check_config(model.config.to_dict())
    return _Writer(model, max_length, int8).write(pooling)


class _Writer:
    """Nodes and constants of one graph. Methods take and return names of values; T tokens, D dimensions, H heads."""

    def __init__(self, model: Any, max_length: int, int8: bool) -> None:
        self.config = model.config
        self.names = _FAMILIES[self.config.model_type]
        self.weights = {name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}
        self.epsilon = float(getattr(self.config, "layer_norm_eps", 1e-12))
        self.max_length, self.int8 = max_length, int8
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.bias = ""
        padding = model.embeddings.position_embeddings.padding_idx
        self.first_position = 0 if padding is None else padding + 1  # RoBERTa and MPNet count from the padding index up
        self.position_bias = _position_bias(model, max_length)

    def write(self, pooling: str) -> bytes:
        from onnx import TensorProto, helper

        hidden = self.embeddings()
        if self.position_bias is not None:
            table = self.constant("position_bias", self.position_bias)
            length = self.node("Shape", [hidden], start=1, end=2)
            both = self.node("Concat", [length, length], axis=0)
            self.bias = self.node("Slice", [table, self.integers(0, 0), both, self.integers(2, 3)])
        for i in range(self.config.num_hidden_layers):
            hidden = self.layer(hidden, self.names.layer.format(i))
        if pooling == "cls":
            pooled = self.node("Gather", [hidden, self.constant("first", np.array(0))], axis=1)
        else:  # of a mean that is made a unit vector, the sum is enough
            pooled = self.node("ReduceSum", [hidden, self.integers(1)], keepdims=0)
        self.node("LpNormalization", [pooled], output="vectors", axis=-1, p=2)
        graph = helper.make_graph(
            self.nodes,
            "sentence_encoder",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "T"])],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [1, int(self.config.hidden_size)])],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="parley")
        return bytes(made.SerializeToString(deterministic=True))

    def embeddings(self) -> str:
        words = self.weights["embeddings.word_embeddings.weight"]
        if self.int8:
            scales = _scales(words, 1, _BYTE_LEVELS)
            rows = self.node("Gather", [self.constant("words", np.rint(words / scales).astype(np.int8)), "ids"])
            scale = self.node("Gather", [self.constant("words.scale", scales), "ids"])
            words_1TD = self.node("Mul", [self.node("Cast", [rows], to=1), scale])  # 1 is float32
        else:
            words_1TD = self.node("Gather", [self.constant("words", words), "ids"])
        positions = self.weights["embeddings.position_embeddings.weight"][self.first_position :][: self.max_length]
        kinds = self.weights.get("embeddings.token_type_embeddings.weight")
        table = self.constant("positions", positions if kinds is None else positions + kinds[0])
        length = self.node("Shape", ["ids"], start=1, end=2)
        rows = self.node("Slice", [table, self.integers(0), length, self.integers(0)])
        return self.norm(self.node("Add", [words_1TD, rows]), "embeddings.LayerNorm")

    def layer(self, hidden: str, prefix: str) -> str:
        names = self.names
        attended = self.linear(self.attention(hidden, prefix), prefix + names.attention_out)
        hidden = self.norm(self.node("Add", [attended, hidden]), prefix + names.attention_norm)
        if self.int8:
            first = self.node("Slice", [hidden, self.integers(0), self.integers(1), self.integers(1)])
            others = self.node("Slice", [hidden, self.integers(1), self.integers(_FAR), self.integers(1)])
            fed = self.node("Concat", [self.feed_forward(part, prefix) for part in (first, others)], axis=1)
        else:
            fed = self.feed_forward(hidden, prefix)
        return self.norm(self.node("Add", [fed, hidden]), prefix + names.out_norm)

    def attention(self, hidden: str, prefix: str) -> str:
        name = prefix + "qkv"
        weights = [self.weights[f"{prefix}{each}.weight"] for each in self.names.qkv]
        biases = [self.weights[f"{prefix}{each}.bias"] for each in self.names.qkv]
        self.weights[f"{name}.weight"], self.weights[f"{name}.bias"] = np.concatenate(weights), np.concatenate(biases)
        sizes = self.integers(*[len(bias) for bias in biases])
        query, key, value = self.split(self.linear(hidden, name), sizes)
        inputs = [query, key, value, "", "", self.bias] if self.bias else [query, key, value]
        heads = int(self.config.num_attention_heads)
        return self.node("MultiHeadAttention", inputs, domain=_MICROSOFT, num_heads=heads)

    def feed_forward(self, hidden: str, prefix: str) -> str:
        inner = self.linear(hidden, prefix + self.names.up)
        key = "activation" if self.config.model_type == "distilbert" else "hidden_act"
        if _ACTIVATIONS[getattr(self.config, key)] == "gelu":
            inner = self.node("FastGelu", [inner], domain=_MICROSOFT)
        else:
            inner = self.node("Relu", [inner])
        return self.linear(inner, prefix + self.names.down)

    def linear(self, hidden: str, name: str) -> str:
        weight_KN = self.weights[f"{name}.weight"].T
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        if not self.int8:
            product = self.node("MatMul", [hidden, self.constant(f"{name}.weight", weight_KN)])
            return self.node("Add", [product, bias])
        scales = _scales(weight_KN, 0, _WEIGHT_LEVELS)
        inputs = [
            hidden,
            self.constant(f"{name}.weight", np.rint(weight_KN / scales).astype(np.int8)),
            self.constant(f"{name}.scale", scales[0]),
            self.constant(f"{name}.zero", np.zeros(weight_KN.shape[1], dtype=np.int8)),
            bias,
        ]
        return self.node("DynamicQuantizeMatMul", inputs, domain=_MICROSOFT)

    def norm(self, hidden: str, name: str) -> str:
        inputs = [
            hidden,
            *(self.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias")),
        ]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=self.epsilon)

    def split(self, value: str, sizes: str) -> list[str]:
        outputs = [f"{self.next_name('Split')}.{i}" for i in range(3)]
        self.add("Split", [value, sizes], outputs, axis=-1)
        return outputs

    def node(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or self.next_name(kind)
        self.add(kind, inputs, [output], **attributes)
        return output

    def add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))

    def next_name(self, kind: str) -> str:
        return f"{kind}.{len(self.nodes)}"

    def integers(self, *values: int) -> str:
        return self.constant("integers." + ".".join(map(str, values)), np.array(values, dtype=np.int64))

    def constant(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name


def _scales(matrix: Array, axis: int, levels: int) -> NDArray[np.float32]:
    """What one step is worth, over `axis` (kept); 1 where all is zero."""
    scales = np.abs(matrix).max(axis=axis, keepdims=True) / levels
    return np.where(scales > 0, scales, 1).astype(np.float32)


def _position_bias(model: Any, max_length: int) -> Array | None:
    """(1, H, T, T): what MPNet adds to its attention scores for the distance of two tokens; None for the others."""
    compute: Callable[..., Any] | None = getattr(getattr(model, "encoder", None), "compute_position_bias", None)
    if compute is None:
        return None
    import torch

    with torch.inference_mode():
        bias: Array = compute(torch.zeros(1, max_length, 1)).float().cpu().numpy()
    return bias
