"""The classifiers: scores against a formula and against transformers' own pipeline, and models that are refused."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moderation.classifiers import KeywordClassifier, TransformersClassifier, kind_of, open_classifier
from moderation.classifiers import transformers_classifier as module

KINDS = ["single", "multi", "one"]
CLOSE = {"rel": 1e-4, "abs": 1e-6}


@pytest.fixture(scope="module")
def loaded(classifiers):
    return {kind: TransformersClassifier(path, "cpu") for kind, path in classifiers.items()}


def random_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    choose = random.Random(seed)
    words = ["good", "day", "fine"] * 5 + ["bad", "kill"]
    return [" ".join(choose.choices(words, k=choose.randint(1, longest))) for _ in range(count)]


def assert_close(got, wanted):
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine == pytest.approx(theirs, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_follow_the_formula_whatever_the_length(loaded, expected, kind):
    texts = random_texts(60, longest=100)
    assert_close(loaded[kind].scores(texts), [expected(kind, text) for text in texts])


def test_one_word_decides(loaded):
    harmless, harmful = loaded["single"].scores(["a good day", "a bad day"])
    assert harmless["toxic"] < 0.1 < 0.9 < harmful["toxic"]
    assert loaded["multi"].scores(["kill"])[0] == pytest.approx({"insult": 0.0474, "threat": 1.0}, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [12, 13, 14, 15, 23, 24, 25, 500])
def test_a_bad_word_at_the_very_end_is_found(loaded, expected, kind, length):
    text = "good " * length + "bad"
    scores = loaded[kind].scores([text])[0]
    assert scores == pytest.approx(expected(kind, text), **CLOSE)
    assert scores["insult" if kind == "multi" else "toxic"] > 0.6
    assert scores.get("safe", 0) < 0.4  # the label for nothing wrong speaks for the worst window as well


@pytest.mark.parametrize("budget", [1, 20, 64])
def test_a_batch_scores_as_its_texts_do_one_by_one(loaded, monkeypatch, budget):
    texts = random_texts(30, longest=60)
    alone = [loaded["multi"].scores([text])[0] for text in texts]
    assert_close(loaded["multi"].scores(texts), alone)
    assert_close(loaded["multi"].scores(texts[::-1]), alone[::-1])
    monkeypatch.setattr(module, "BATCH_TOKENS", budget)
    assert_close(loaded["multi"].scores(texts), alone)


def test_special_tokens_in_a_text_are_plain_text(loaded, expected):
    texts = ["bad [SEP]", "[SEP] bad good"]
    assert_close(loaded["single"].scores(texts), [expected("single", text) for text in texts])


def test_no_texts_and_texts_without_tokens(loaded, random_model, tmp_path):
    assert loaded["single"].scores([]) == []
    path = random_model(tmp_path, "LlamaForSequenceClassification", "LlamaConfig", num_labels=2)
    full, empty = TransformersClassifier(path, "cpu").scores(["good", "\t"])
    assert empty == {"LABEL_0": None, "LABEL_1": None}
    assert None not in full.values()


RANDOM = {
    "bert": ("BertForSequenceClassification", "BertConfig", {"num_labels": 3}),
    "bert, multi": (
        "BertForSequenceClassification",
        "BertConfig",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    # RoBERTa's positions begin at pad_token_id + 1
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {"num_labels": 1}),
    "llama": ("LlamaForSequenceClassification", "LlamaConfig", {"num_labels": 4}),
    "llama without padding": ("LlamaForSequenceClassification", "LlamaConfig", {"num_labels": 4, "pad": False}),
}


@pytest.fixture(scope="module", params=RANDOM)
def random_path(request, random_model, tmp_path_factory):
    architecture, config, settings = RANDOM[request.param]
    return random_model(tmp_path_factory.mktemp("random"), architecture, config, **settings)


def test_scores_equal_those_of_the_transformers_pipeline(random_path):
    from transformers import pipeline

    texts = random_texts(20, longest=10)
    reference = pipeline("text-classification", model=random_path, top_k=None, device="cpu")
    wanted = [{entry["label"]: entry["score"] for entry in entries} for entries in reference(texts)]
    assert_close(TransformersClassifier(random_path, "cpu").scores(texts), wanted)


def test_any_architecture_takes_long_texts_and_batches(random_path):
    classifier = TransformersClassifier(random_path, "cpu")
    texts = random_texts(12, longest=70)
    got = classifier.scores(texts)
    assert_close(got, [classifier.scores([text])[0] for text in texts])
    assert all(set(scores) == set(classifier.labels) for scores in got)
    assert all(0 <= score <= 1 for scores in got for score in scores.values())


def test_half_a_character_spoils_neither_its_text_nor_the_others(loaded):
    texts = ["bad \ud800", "\udfff bad", "bad", "good \ud83d"]
    scores = loaded["one"].scores(texts)
    assert_close(scores, loaded["one"].scores(["bad ?", "? bad", "bad", "good ?"]))
    assert [of_text["toxic"] > 0.9 for of_text in scores] == [True, True, True, False]


def test_threads_can_share_a_classifier(loaded):
    texts = random_texts(8, longest=60)
    wanted = loaded["multi"].scores(texts)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(loaded["multi"].scores, [texts, texts[::-1]] * 10):
            assert_close(got if got[0] == pytest.approx(wanted[0], **CLOSE) else got[::-1], wanted)


# Models that are refused


@pytest.fixture
def copy(classifiers, tmp_path):
    """A copy of the `single` model with settings of its config changed."""

    def copy(**settings) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(classifiers["single"], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))
        return folder

    return copy


def refused(path, *parts: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        TransformersClassifier(str(path), "cpu")
    assert all(part in str(caught.value) for part in (str(path), *parts)), caught.value


def test_a_language_model_is_refused(random_model, tmp_path):
    path = random_model(tmp_path, "LlamaForCausalLM", "LlamaConfig")
    refused(path, "is not a classifier", "LlamaForCausalLM")


@pytest.mark.parametrize("architectures", [None, [], ["BertModel"], ["BertForTokenClassification"]])
def test_an_architecture_that_is_no_classifier_is_refused(copy, architectures):
    refused(copy(architectures=architectures), "is not a classifier", "ForSequenceClassification")


def test_a_language_model_that_calls_itself_a_classifier_is_refused(random_model, tmp_path):
    path = random_model(tmp_path, "BertForMaskedLM", "BertConfig")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    refused(path, "would answer at random")


def test_a_regression_model_is_refused(copy):
    refused(copy(problem_type="regression"), "regression")


def test_labels_of_the_same_name_are_refused(copy):
    refused(copy(id2label={"0": "toxic", "1": "toxic"}), "several labels of the same name")


@pytest.mark.parametrize("id2label", [["safe", "toxic"], {"zero": "safe", "one": "toxic"}])
def test_a_wrong_label_table_is_refused(copy, id2label):
    refused(copy(id2label=id2label), "cannot load model")


def test_a_head_of_another_size_is_refused(copy):
    refused(copy(id2label={"0": "a", "1": "b", "2": "c"}), "no weights that fit classifier.bias")


def test_a_model_without_its_tokenizer_is_refused(copy):
    folder = copy()
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink(missing_ok=True)
    refused(folder, "has no tokenizer")


def test_damaged_and_missing_weights_are_refused(copy):
    weights = copy() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(weights.parent, "cannot load model")
    weights.unlink()
    refused(weights.parent, "cannot load model", "model.safetensors")


def test_pickled_weights_are_never_read(copy):
    folder = copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "cannot load model")


def test_code_of_a_model_is_never_run(copy, tmp_path):
    folder = copy(model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    refused(folder, "custom code")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_config_and_an_empty_folder_are_refused(copy, tmp_path):
    folder = copy()
    (folder / "config.json").write_text("{")
    refused(folder, "config.json")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "cannot load model")
    refused(tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize("device", ["cdua", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(classifiers, device):
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used .*try: cpu"):
        TransformersClassifier(classifiers["single"], device)


# Label maps


def test_a_label_map_renames_joins_and_leaves_out(classifiers, loaded):
    texts = ["good day", "bad", "kill", "good " * 40 + "kill"]
    insults, threats = zip(*[(s["insult"], s["threat"]) for s in loaded["multi"].scores(texts)], strict=True)

    def scores(label_map):
        classifier = TransformersClassifier(classifiers["multi"], "cpu", label_map)
        got = classifier.scores(texts)
        assert all(set(of_text) == set(classifier.labels) for of_text in got)
        return got

    assert_close(scores({"insult": "hate"}), [{"hate": i, "threat": t} for i, t in zip(insults, threats, strict=True)])
    highest = [{"hate": max(pair)} for pair in zip(insults, threats, strict=True)]
    assert_close(scores({"insult": "hate", "threat": "hate"}), highest)
    assert_close(scores({"insult": None}), [{"threat": t} for t in threats])
    single = TransformersClassifier(classifiers["single"], "cpu", {"safe": None, "toxic": "unsafe"})
    assert_close(single.scores(["bad"]), [{"unsafe": loaded["single"].scores(["bad"])[0]["toxic"]}])


def test_a_label_map_that_does_not_fit_the_model_is_refused(classifiers):
    with pytest.raises(ValueError, match=r"names 'insults', which model .* lacks: insult, threat; did you mean 'ins"):
        TransformersClassifier(classifiers["multi"], "cpu", {"insults": "hate"})
    with pytest.raises(ValueError, match="leaves out every label of model"):
        TransformersClassifier(classifiers["one"], "cpu", {"toxic": None})


# By name


def test_names_say_what_kind_of_classifier_it_is(tmp_path):
    (tmp_path / "head.json").write_text("{}")
    kinds = {
        "default": "head",
        str(tmp_path): "head",
        str(tmp_path / "other"): "transformers",
        "unitary/toxic-bert": "transformers",
        "./default": "transformers",
        "./openai": "transformers",
        "/guard:x": "transformers",
        "openai": "openai",
        "openai:omni": "openai",
        "openai+http://x/v1#m": "openai",
        "openai/some-model": "transformers",
        "guard:llama-guard:m": "guard",
        "strictest:a,b": "composite",
        "average:a,b": "composite",
        "strictest": "composite",
        "": "transformers",
    }
    assert {name: kind_of(name) for name in kinds} == kinds


def test_a_composite_by_name(classifiers, loaded, tmp_path):
    texts = ["good day", "bad", "kill"]
    composite = open_classifier(f"strictest:{classifiers['multi']}, {classifiers['one']}", "cpu")
    assert composite.labels == ("insult", "threat", "toxic")
    wanted = [a | b for a, b in zip(loaded["multi"].scores(texts), loaded["one"].scores(texts), strict=True)]
    assert_close(composite.scores(texts), wanted)
    label_map = tmp_path / "map.json"
    label_map.write_text('{"toxic": "unsafe"}')
    mapped = open_classifier(f"average:{classifiers['one']},{classifiers['single']}", "cpu", label_map)
    assert mapped.labels == ("unsafe", "safe")


@pytest.mark.parametrize(
    "name", ["strictest", "strictest:", "average:default", "average:a,,b", "strictest:a,average:b"]
)
def test_a_composite_that_joins_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"classifier '{name}' does not say what to join"):
        open_classifier(name)


def test_a_label_map_for_what_has_our_labels_is_refused(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("toxic: hate")
    for name in ("default", "openai", "guard:gpt-jt:x", "strictest:default,openai"):
        with pytest.raises(ValueError, match=f"a label map is for Hugging Face .* '{name}' is none; leave it out"):
            open_classifier(name, label_map=path)


def test_importing_loads_no_heavy_library():
    code = (
        "import sys, moderation.cli, moderation.classifiers, moderation.moderator; "
        "print(*{'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Keywords


def test_keywords_are_whole_words_in_whatever_case():
    classifier = KeywordClassifier({"insult": ["fool", "big baby"], "price": ["$5", "c++"], "Ä": ["öde"]})
    assert classifier.labels == ("insult", "price", "Ä")
    hits = {
        "You FOOL!": "insult",
        "foolish": None,
        "a Big Baby.": "insult",
        "it costs $5": "price",
        "it costs $55": None,
        "C++, again": "price",
        "ÖDE": "Ä",
        "": None,
    }
    for text, scores in zip(hits, classifier.scores(list(hits)), strict=True):
        assert scores == {label: float(label == hits[text]) for label in classifier.labels}


@pytest.mark.parametrize("words", ["fool", [], [""], ["fool", " "]])
def test_keywords_must_be_a_list_of_words(words):
    with pytest.raises(ValueError, match="words of label 'insult' are"):
        KeywordClassifier({"insult": words})
