"""The int8 encoder against torch's float32, on tiny random models of each family and on the real one."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval.encoders import open_encoder
from retrieval.encoding.onnx_encoder import FOLDER, MODEL, PROOF, THRESHOLDS, TOKENIZER, OnnxEncoder, Proof, read_proof
from retrieval.encoding.torch_encoder import TorchEncoder
from tools import export_onnx
from tools.export_onnx import compare, export
from tools.onnx_graph import build_graph

SENTENCE = "the red bridge over a river was opened by two old kings in may and closed again when snow fell"
WORDS = SENTENCE.split()
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 1 + i % 23)) for i in range(80)]
ODD = ["", "   ", "Grüße! 你好 😀", "word " * 600, "x", "the red bridge", "a \ud800 b", "[CLS] [SEP]"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(family, settings of its config) -> the directory of a random model with a vocabulary of words and letters."""

    def make(family: str, **settings: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModel, BertTokenizerFast

        folder = tmp_path_factory.mktemp(family)
        letters = [chr(i) for i in range(33, 127)]
        special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), *WORDS]
        vocabulary = list(dict.fromkeys(vocabulary))
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        torch.manual_seed(0)
        sizes = {"vocab_size": len(vocabulary), "max_position_embeddings": 64, "pad_token_id": 1, **SIZES}
        if family == "distilbert":
            sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "initializer_range": 0.2, **sizes}
            for key in SIZES:
                del sizes[key]
        config = AutoConfig.for_model(family, **{"initializer_range": 0.2, **sizes, **settings})
        model = AutoModel.from_config(config)
        for parameter in model.parameters():  # biases and norms too, which begin as 0 and 1
            parameter.data += torch.randn_like(parameter) * 0.05
        model.save_pretrained(folder)
        BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=60).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def bert(make_model: Callable[..., Path]) -> Path:
    return make_model("bert")


@pytest.fixture
def exported(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny BERT with its int8 version."""
    model = shutil.copytree(bert, tmp_path / "model")
    assert export(str(model), texts=TEXTS).shortcoming is None
    return model


def opened(encoder: TorchEncoder, pooling: str = "mean", int8: bool = True) -> OnnxEncoder:
    """What `export` makes of a torch encoder, without the files."""
    graph = build_graph(encoder.model, pooling, encoder.max_length, int8)
    proof = Proof("", "", "", {}, encoder.max_length, encoder.recipe.lower_case, 0, {})
    return OnnxEncoder("tiny", graph, export_onnx._tokenizer_of(encoder), proof)


# The graph -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings", "tolerance"),
    [
        ("bert", {"hidden_act": "relu"}, 1e-5),
        ("bert", {}, 2e-3),  # the tanh form of gelu
        ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1}, 1e-5),
        ("roberta", {"hidden_act": "relu"}, 1e-5),
        ("xlm-roberta", {"hidden_act": "relu", "type_vocab_size": 1}, 1e-5),
        ("mpnet", {"hidden_act": "relu"}, 1e-5),
        ("distilbert", {"activation": "relu"}, 1e-5),
    ],
)
def test_the_graph_of_each_family(
    make_model: Callable[..., Path], family: str, settings: dict[str, Any], tolerance: float
) -> None:
    encoder = TorchEncoder(str(make_model(family, **settings)), "cpu")
    texts = [*TEXTS[:20], *(text for text in ODD if "\ud800" not in text)]
    wanted = encoder.encode(texts)
    np.testing.assert_allclose(opened(encoder, int8=False).encode(texts), wanted, atol=tolerance)
    assert ((opened(encoder).encode(texts) * wanted).sum(axis=1) > 0.98).all()
    encoder.recipe = dataclasses.replace(encoder.recipe, pooling="cls")
    np.testing.assert_allclose(opened(encoder, "cls", int8=False).encode(texts), encoder.encode(texts), atol=tolerance)


def test_the_graph_depends_on_the_weights_alone(bert: Path) -> None:
    graphs = {build_graph(TorchEncoder(str(bert), "cpu").model, "mean", 60) for _ in range(2)}
    assert len(graphs) == 1
    assert b"location" not in graphs.pop()  # what OnnxEncoder takes for a reference to another file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "electra"}, "knows the model types bert, .*, not 'electra'"),
        ({"hidden_act": "silu"}, "knows the activations gelu, .*, not 'silu'"),
        ({"position_embedding_type": "relative_key"}, "absolute position embeddings, not 'relative_key'"),
        ({"is_decoder": True}, "not decoders"),
    ],
)
def test_a_model_that_the_graph_does_not_know(
    bert: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    model = shutil.copytree(bert, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(ValueError, match=message):
        export(str(model), texts=TEXTS)
    assert not (model / FOLDER).exists()


def test_a_model_without_a_fast_tokenizer_is_refused_without_torch(bert: Path, tmp_path: Path) -> None:
    model = shutil.copytree(bert, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    program = (
        "import sys\nfrom tools.export_onnx import export\n"
        "try: export(sys.argv[1])\nexcept ValueError as e: print(e, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=True)
    assert "needs a tokenizer.json" in done.stdout
    assert done.stdout.endswith("False\n")


# The encoder ---------------------------------------------------------------------------------------------------------


def test_a_vector_depends_on_its_text_alone(exported: Path) -> None:
    encoder = open_encoder(f"{exported}:int8")
    texts = [*TEXTS, *ODD]
    together = encoder.encode(texts)
    np.testing.assert_array_equal(encoder.encode(texts[::-1])[::-1], together)
    np.testing.assert_array_equal(np.concatenate([encoder.encode([text]) for text in texts]), together)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(encoder.encode, [texts] * 8):
            np.testing.assert_array_equal(vectors, together)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert (together.dtype, encoder.encode([]).shape) == (np.float32, (0, 32))


def test_one_thread_gives_the_same(exported: Path) -> None:
    program = (
        "import sys\nfrom retrieval.encoders import open_encoder\n"
        "print(open_encoder(sys.argv[1]).encode(['the red bridge', 'old kings']).tobytes().hex())\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    outputs = []
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program, f"{exported}:int8"],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(done.stdout.splitlines())
    assert outputs[0] == outputs[1]
    assert outputs[0][1] == "set()", "opening int8 by name needs neither"


def test_tokens_are_counted_as_transformers_does(exported: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    texts = [text for text in [*TEXTS, *ODD] if "\ud800" not in text]
    wanted = [len(tokenizer(text.strip(), add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    for precision in ("int8", "float32"):
        encoder = open_encoder(f"{exported}:{precision}", "cpu")
        assert (encoder.count_tokens(texts), encoder.max_length) == (wanted, 60)
        assert encoder.count_tokens([]) == []
    assert max(wanted) > 600


def test_a_text_is_cut_where_torch_cuts_it(exported: Path) -> None:
    encoder = open_encoder(f"{exported}:int8")
    words = ["river"] * 58  # and [CLS] and [SEP]: 60 tokens
    one, same, other = encoder.encode(
        [" ".join(words), " ".join([*words, "bridge"]), " ".join([*words[:-1], "bridge"])]
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


# Which encoder a name means ------------------------------------------------------------------------------------------


def test_names_and_precisions(exported: Path, bert: Path) -> None:
    automatic, int8, float32 = (open_encoder(str(exported) + end, "cpu") for end in ("", ":int8", ":float32"))
    assert automatic.name == int8.name == f"{exported.resolve()}:int8"
    assert automatic.fingerprint == int8.fingerprint != float32.fingerprint
    assert isinstance(float32, TorchEncoder)
    for encoder in (int8, float32):
        assert open_encoder(encoder.name, "cpu").fingerprint == encoder.fingerprint
    assert open_encoder(str(exported), "cpu", "float32").name == float32.name == f"{exported.resolve()}:float32"
    assert open_encoder(str(exported), precision="int8").name == int8.name
    assert open_encoder(str(bert), "cpu").name == f"{bert.resolve()}:float32", "where there is no int8 version"
    again = shutil.copytree(exported, exported.parent / "again")
    assert open_encoder(f"{again}:int8").fingerprint == int8.fingerprint

    with pytest.raises(ValueError, match=f"no int8 version yet; run: python tools/export_onnx.py {bert}"):
        open_encoder(str(bert), precision="int8")
    with pytest.raises(ValueError, match=r"is not float32; leave out one"):
        open_encoder(int8.name, precision="float32")
    with pytest.raises(ValueError, match=r"precision is 'int4'; it must be one of auto, float32, int8"):
        open_encoder(int8.name, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"device 'toaster' cannot be used"):
        open_encoder(int8.name, "toaster")


def test_a_folder_whose_name_has_a_colon(exported: Path) -> None:
    odd = exported.parent / "a:int8"
    shutil.copytree(exported, odd)
    assert open_encoder(str(odd), "cpu").name == f"{odd}:int8"
    float32 = open_encoder(f"{odd}:float32", "cpu")
    assert float32.name == f"{odd}:float32"
    assert isinstance(float32, TorchEncoder)


# What is refused -----------------------------------------------------------------------------------------------------


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _other_weights(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: _flip(model / FOLDER / MODEL), "int8.onnx is damaged"),
        (lambda model: os.truncate(model / FOLDER / MODEL, 100), "int8.onnx is damaged"),
        (lambda model: _flip(model / FOLDER / TOKENIZER), "tokenizer.json is damaged"),
        (lambda model: (model / FOLDER / MODEL).unlink(), "No such file"),
        (_other_weights, "made from other weights"),
        (lambda model: _edit(model / FOLDER / PROOF, max_length=59), "made from other weights or settings"),
        (lambda model: _edit(model / FOLDER / PROOF, max_length="60"), "max_length or lower_case is out of range"),
        (lambda model: _edit(model / FOLDER / PROOF, figures={}), "figures are not those"),
        (lambda model: _edit(model / FOLDER / PROOF, format_version=9), "another version"),
        (lambda model: (model / FOLDER / PROOF).write_text("[]"), "proof.json cannot be used"),
        (lambda model: (model / FOLDER / PROOF).write_text("{"), "not JSON"),
    ],
)
def test_what_is_not_as_proven_is_not_used(
    exported: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(exported)
    with pytest.raises(ValueError, match=f"{message}.*; run: python tools/export_onnx.py"):
        open_encoder(f"{exported}:int8")
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_encoder(str(exported), "cpu"), TorchEncoder)
    assert message.split(".*")[0] in caplog.text
    assert "using float32" in caplog.text


@pytest.mark.parametrize("value", [0.9, float("nan")])
def test_int8_that_is_not_good_enough_is_not_used(
    exported: Path, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    proof = read_proof(exported / FOLDER / PROOF)
    worse = dataclasses.replace(proof, figures={**proof.figures, "mean_cosine": value})
    worse.write(exported / FOLDER / PROOF)
    assert worse.shortcoming == f"mean_cosine is {value:.4f}, below 0.99"
    assert json.loads((exported / FOLDER / PROOF).read_text())["passed"] is False
    assert isinstance(open_encoder(str(exported), "cpu"), TorchEncoder)
    assert caplog.text == "", "this is no fault"
    with pytest.raises(ValueError, match="not good enough: mean_cosine"):
        open_encoder(f"{exported}:int8")


def test_a_model_that_refers_to_other_files_is_refused(exported: Path, tmp_path: Path) -> None:
    import onnx

    secret = tmp_path / "secret"
    model = onnx.load(exported / FOLDER / MODEL)
    onnx.save(model, tmp_path / "external.onnx", save_as_external_data=True, location="secret", size_threshold=0)
    assert secret.is_file()
    content = (tmp_path / "external.onnx").read_bytes()
    tokenizer = (exported / FOLDER / TOKENIZER).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="refers to other files"):
        OnnxEncoder("tiny", content, tokenizer, read_proof(exported / FOLDER / PROOF))
    with pytest.raises(ValueError, match="ONNX Runtime refuses the int8 model of 'tiny'"):
        OnnxEncoder("tiny", b"no model", tokenizer, read_proof(exported / FOLDER / PROOF))


# The proof -----------------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    angles = np.linspace(0, 0.6, 12)
    wanted = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert list(compare(wanted, wanted).values()) == pytest.approx([1, 1, 1])
    # Each row has eleven others, and its ten nearest leave out the farthest of them. The first row is now turned away.
    got = wanted.copy()
    got[0] = (0, 1)
    figures = compare(wanted, got)
    assert figures["mean_cosine"] == pytest.approx(11 / 12, abs=1e-6)
    assert figures["min_cosine"] == pytest.approx(0, abs=1e-6)
    # Rows 0 to 5 left out row 11, rows 6 to 11 row 0. Now rows 1 to 11 leave out row 0, and row 0 leaves out row 1.
    assert figures["recall_at_10"] == pytest.approx((6 * 10 + 6 * 9) / 120)


def test_an_export_that_falls_short_leaves_only_its_proof(bert: Path, tmp_path: Path) -> None:
    """A model of random weights that are all far too large: int8 cannot follow it."""
    from safetensors.numpy import load_file, save_file

    model = shutil.copytree(bert, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if name.endswith(("query.weight", "key.weight")):
            tensors[name] = (20 * rng.standard_normal(tensor.shape)).astype(np.float32)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    done = CliRunner().invoke(export_onnx.cli, [str(model), "--texts", str(tmp_path / "texts.txt")])
    assert done.exit_code == 2
    assert "int8 is not good enough (" in done.output
    assert "below" in done.output
    assert [file.name for file in (model / FOLDER).iterdir()] == [PROOF]
    assert isinstance(open_encoder(str(model), "cpu"), TorchEncoder)


def test_the_command(bert: Path, tmp_path: Path) -> None:
    model = shutil.copytree(bert, tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    arguments = [str(model), "--texts", str(tmp_path / "texts.txt")]
    done = CliRunner().invoke(export_onnx.cli, [*arguments, "--out", str(tmp_path / "elsewhere")])
    assert (done.exit_code, (model / FOLDER).exists()) == (0, False), done.output
    done = CliRunner().invoke(export_onnx.cli, arguments)
    assert "int8 is good enough" in done.output
    names = sorted(file.name for file in (model / FOLDER).iterdir())
    assert names == sorted((MODEL, TOKENIZER, PROOF)) == sorted(f.name for f in (tmp_path / "elsewhere").iterdir())
    (tmp_path / "texts.txt").write_text("one\ntwo\n\none\n")
    done = CliRunner().invoke(export_onnx.cli, arguments)
    assert done.exit_code == 2
    assert "there are 2 different texts to measure on; give at least 50" in done.output


def test_the_real_model_keeps_its_promise(minilm: Path) -> None:
    if not (minilm / FOLDER / PROOF).is_file():
        pytest.skip("no int8 version; run: python tools/export_onnx.py minilm")
    proof = read_proof(minilm / FOLDER / PROOF)
    assert proof.shortcoming is None
    root = Path(__file__).resolve().parents[3]
    texts = [part for file in sorted(root.glob("docs/*.md")) for part in file.read_text().split("\n\n")][:60]
    int8, float32 = open_encoder("minilm:int8"), open_encoder("minilm:float32", "cpu")
    figures = compare(float32.encode(texts), int8.encode(texts))
    assert all(figures[name] >= least for name, least in THRESHOLDS.items()), figures
