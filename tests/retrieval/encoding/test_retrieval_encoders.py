"""Encoders against sentence-transformers' own, on real and on tiny random models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.encoders import FLOORS, HashEncoder, cached, default_floor, open_encoder

TEXTS = [
    "The bridge opened in 1932.",
    "",
    "   ",
    "A longer text about the same bridge, " * 8,
    "Grüße aus Zürich! 你好，世界。 😀",
    "word " * 600,
    "The bridge opened in 1932.",
    "x",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine spend their time waiting for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(model: Path, texts: list[str]) -> NDArray[np.float32]:
    """What sentence-transformers says."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu")
    return np.asarray(encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Hugging Face BERT of two layers with random weights and a vocabulary of letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    letters = [chr(i) for i in range(33, 127)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


def sentence_model(
    plain: Path, folder: Path, pooling: dict[str, Any], transformer: dict[str, Any], *extra: str
) -> Path:
    """A sentence-transformers directory around a plain model, in the layout of its older versions."""
    shutil.copytree(plain, folder)
    kinds = ["Transformer", "Pooling", *extra]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    for i, kind in enumerate(kinds[1:], start=1):
        (folder / f"{i}_{kind}").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    return folder


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
SHORT = {"max_seq_length": 20, "do_lower_case": False}


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: Path) -> None:
    encoder = open_encoder("minilm:float32", "cpu")
    vectors = encoder.encode(TEXTS)
    assert (encoder.name, encoder.dim, vectors.dtype) == ("minilm:float32", 384, np.float32)
    np.testing.assert_allclose(vectors, reference(minilm, TEXTS), atol=2e-6)


@pytest.mark.parametrize(("pooling", "extra"), [(MEAN, ("Normalize",)), (CLS, ()), ({"pooling_mode": "cls"}, ())])
def test_saved_sentence_models(
    tiny_encoder: Path, tmp_path: Path, pooling: dict[str, Any], extra: tuple[str, ...]
) -> None:
    model = sentence_model(tiny_encoder, tmp_path / "model", pooling, SHORT, *extra)
    encoder = open_encoder(str(model), "cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), reference(model, TEXTS), atol=2e-6)


def test_the_layout_that_sentence_transformers_saves_today(tiny_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    old = sentence_model(tiny_encoder, tmp_path / "old", CLS, SHORT)
    SentenceTransformer(str(old), device="cpu").save(str(tmp_path / "new"))
    new = open_encoder(str(tmp_path / "new"), "cpu")
    np.testing.assert_allclose(new.encode(TEXTS), open_encoder(str(old), "cpu").encode(TEXTS), atol=2e-6)


def test_a_plain_model_is_averaged(tiny_encoder: Path) -> None:
    encoder = open_encoder(str(tiny_encoder), "cpu")
    assert encoder.name == f"{tiny_encoder.resolve()}:float32"
    np.testing.assert_allclose(encoder.encode(TEXTS), reference(tiny_encoder, TEXTS), atol=2e-6)


def test_lower_casing_and_a_transformer_in_a_subfolder(tiny_encoder: Path, tmp_path: Path) -> None:
    model = sentence_model(tiny_encoder, tmp_path / "model", MEAN, {"max_seq_length": 20, "do_lower_case": True})
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "0_Transformer").mkdir()
    for file in [file for file in model.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename(model / "0_Transformer" / file.name)
    encoder = open_encoder(str(model), "cpu")
    vectors = encoder.encode(["Hello World", "hello world"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors, reference(model, ["Hello World", "hello world"]), atol=2e-6)


def test_a_vector_does_not_depend_on_its_neighbours_or_its_place(tiny_encoder: Path) -> None:
    encoder = open_encoder(str(tiny_encoder), "cpu")
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdef "), size=rng.integers(0, 90))) for _ in range(150)]
    together = encoder.encode(texts)
    order = rng.permutation(len(texts))
    np.testing.assert_allclose(encoder.encode([texts[i] for i in order]), together[order], atol=2e-6)
    alone = np.concatenate([encoder.encode([text]) for text in texts[:20]])
    np.testing.assert_allclose(alone, together[:20], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_nothing_to_encode(tiny_encoder: Path) -> None:
    vectors = open_encoder(str(tiny_encoder), "cpu").encode([])
    assert (vectors.shape, vectors.dtype) == ((0, 16), np.float32)


def test_threads_can_share_an_encoder(tiny_encoder: Path) -> None:
    encoder = open_encoder(str(tiny_encoder), "cpu")
    lists = [[f"text {i} {j}" * (j + 1) for j in range(20)] for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(encoder.encode, lists))
    for texts, vectors in zip(lists, results, strict=True):
        np.testing.assert_allclose(vectors, encoder.encode(texts), atol=2e-6)


def test_a_fingerprint_follows_what_decides_the_vectors(tiny_encoder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = sentence_model(tiny_encoder, tmp_path / "base", MEAN, SHORT)
    prints = {"base": open_encoder(str(base)).fingerprint}
    copy = shutil.copytree(base, tmp_path / "copy")
    assert open_encoder(str(copy)).fingerprint == prints["base"]

    tensors = load_file(base / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    prints["weights"] = open_encoder(str(copy)).fingerprint
    for name, pooling, transformer in (("pooling", CLS, SHORT), ("length", MEAN, {**SHORT, "max_seq_length": 19})):
        model = sentence_model(tiny_encoder, tmp_path / name, pooling, transformer)
        prints[name] = open_encoder(str(model)).fingerprint
    assert len(set(prints.values())) == len(prints)


def edited(model: Path, name: str, **changes: Any) -> None:
    path = model / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_be_followed_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    def refuse(model: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            open_encoder(str(model), "cpu")
        assert str(model) in str(error.value)

    refuse(sentence_model(tiny_encoder, tmp_path / "a", MEAN, SHORT, "Dense"), "asks for 'Dense'; known: Transformer")
    both = {**MEAN, "pooling_mode_cls_token": True}
    refuse(
        sentence_model(tiny_encoder, tmp_path / "b", both, SHORT), r"pooling is '(mean\+cls|cls\+mean)'; known: mean"
    )
    refuse(sentence_model(tiny_encoder, tmp_path / "c", {"pooling_mode": "max"}, SHORT), "pooling is 'max'")

    pickled = shutil.copytree(tiny_encoder, tmp_path / "d")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refuse(pickled, "model.safetensors is missing; only safetensors weights are loaded")

    deeper = shutil.copytree(tiny_encoder, tmp_path / "e")
    edited(deeper, "config.json", num_hidden_layers=3)
    refuse(deeper, "its weights lack encoder.layer.2")

    prompted = sentence_model(tiny_encoder, tmp_path / "f", MEAN, SHORT)
    (prompted / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    refuse(prompted, "prompt 'query'")

    cut = shutil.copytree(tiny_encoder, tmp_path / "h")
    os.truncate(cut / "model.safetensors", 1000)
    refuse(cut, "cannot load model")

    broken = sentence_model(tiny_encoder, tmp_path / "g", MEAN, SHORT)
    (broken / "modules.json").write_text('{"a": 1}')
    refuse(broken, "modules.json is not a list of modules")


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("", None, "model name is empty"),
        ("./nowhere", None, "model directory './nowhere' does not exist"),
        ("no-such-model-here", None, "model 'no-such-model-here' from the Hugging Face hub"),
        ("./nowhere", "toaster", "device 'toaster' cannot be used"),
        ("./nowhere", "cuda:99", "device 'cuda:99' cannot be used"),
    ],
)
def test_names_and_devices_that_do_not_exist(name: str, device: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_encoder(name, device)


def test_a_hub_model_from_the_cache(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model under a hub id, in a cache laid out as huggingface_hub does, has the same fingerprint."""
    model = sentence_model(tiny_encoder, tmp_path / "model", CLS, SHORT, "Normalize")
    repository = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(model, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    local, hub = open_encoder(str(model), "cpu"), open_encoder("someone/tiny", "cpu")
    assert (hub.name, hub.fingerprint) == ("someone/tiny:float32", local.fingerprint)
    np.testing.assert_array_equal(hub.encode(TEXTS), local.encode(TEXTS))


def test_importing_loads_no_heavy_library() -> None:
    program = "import sys, retrieval.build; print({'torch', 'transformers', 'faiss', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_hash_encoder() -> None:
    encoder = open_encoder("hash")
    vectors = encoder.encode(["Red bridge", "the red BRIDGE!", "blue sky", "", "?!"])
    assert (vectors.shape, vectors.dtype) == ((5, 256), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0] @ vectors[1], 2 / np.sqrt(2 * 3), atol=1e-6)
    assert vectors[0] @ vectors[2] == 0
    np.testing.assert_array_equal(vectors[3], vectors[4])
    assert np.flatnonzero(encoder.encode(["bridge"])).tolist() == [38]  # the same on every machine and version
    assert encoder.encode([]).shape == (0, 256)
    assert HashEncoder(8).fingerprint != encoder.fingerprint
    assert encoder.count_tokens(["Red bridge, the red one!", ""]) == [5, 0]


def test_floors() -> None:
    assert default_floor("minilm") == default_floor("sentence-transformers/all-MiniLM-L6-v2") == FLOORS["minilm"]
    assert default_floor("/somewhere/models/minilm") == FLOORS["minilm"]
    assert default_floor("minilm:int8") == default_floor("/somewhere/minilm:float32") == FLOORS["minilm"]
    assert default_floor("hash") == default_floor("someone/other") == 0


# The cache -----------------------------------------------------------------------------------------------------------


class Counting(HashEncoder):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(list(texts))
        return super().encode(texts)


def test_the_cache_encodes_what_it_lacks() -> None:
    counting = Counting()
    encoder = cached(counting, 3)
    assert cached(encoder) is encoder
    assert (encoder.name, encoder.fingerprint, encoder.dim) == ("hash", counting.fingerprint, 256)
    for texts, asked in (
        (["a", "b", "a"], ["a", "b"]),
        (["b"], None),
        (["c", "b", "a"], ["c"]),
        (["b"], None),
        (["d"], ["d"]),  # a, c, b were there, in the order of their last use: a goes
        (["a", "b", "c"], ["a"]),
        (["v", "w", "x", "y", "z"], ["v", "w", "x", "y", "z"]),  # more than fit
        (["x", "y", "z", "w"], ["w"]),
        ([], None),
    ):
        counting.asked.clear()
        np.testing.assert_array_equal(encoder.encode(texts), HashEncoder().encode(texts))
        assert counting.asked == ([asked] if asked else []), texts


def test_cached_vectors_cannot_be_changed_from_outside() -> None:
    encoder = cached(HashEncoder())
    encoder.encode(["a b", "c"])[:] = 0
    encoder.encode(["a b"])[:] = 0
    np.testing.assert_array_equal(encoder.encode(["a b", "c"]), HashEncoder().encode(["a b", "c"]))


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=8), st.integers(1, 6))
def test_a_cache_changes_no_vector(requests: list[list[str]], size: int) -> None:
    encoder = cached(HashEncoder(), size)
    for texts in requests:
        np.testing.assert_array_equal(encoder.encode(texts), HashEncoder().encode(texts))


def test_threads_can_share_a_cache() -> None:
    encoder = cached(HashEncoder(), 4)
    lists = [[f"text {(i * j) % 7}" for j in range(6)] for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for texts, vectors in zip(lists, pool.map(encoder.encode, lists), strict=True):
            np.testing.assert_array_equal(vectors, HashEncoder().encode(texts))


def test_a_cache_of_nothing() -> None:
    with pytest.raises(ValueError, match="the cache is of 0 texts; it must hold at least 1"):
        cached(HashEncoder(), 0)


def test_half_a_surrogate_pair(tiny_encoder: Path) -> None:
    """Such a string comes out of json.loads, and no tokenizer takes it."""
    one, other = open_encoder(str(tiny_encoder), "cpu").encode(["a \ud800 b", "a ? b"])
    np.testing.assert_allclose(one, other, atol=1e-6)
