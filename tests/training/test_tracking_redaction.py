"""What is a secret and what is not, in configurations and in text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.tracking.redaction import HIDDEN, is_secret_name, redacted, redacted_text

TOKENS = [
    "hf_" + "aB3" * 10,
    "sk-proj-" + "x1" * 20,
    "AKIAABCDEFGHIJKLMNOP",
    "ghp_" + "a" * 36,
    "github_pat_" + "b" * 30,
    "xoxb-123456789012-abcdef",
    "glpat-" + "c" * 20,
]


@pytest.mark.parametrize(
    "name",
    ["api_key", "hub_token", "token", "HF_TOKEN", "aws_secret_access_key", "password", "client_secret", "db.password"],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)
    assert redacted({name: "anything"}) == {name: HIDDEN}


@pytest.mark.parametrize(
    "name",
    [
        "eos_token",
        "bos_token",
        "image_token",
        "max_tokens",
        "tokenizer",
        "sample_tokens",
        "num_tokens",
        "keep",
        "key_dim",
    ],
)
def test_names_of_ordinary_settings(name):
    assert not is_secret_name(name)
    assert redacted({name: "</s>"}) == {name: "</s>"}


def test_what_is_no_text_stays():
    value = {"use_auth_token": True, "hub_token": None, "lr": 1e-3, "layers": [1, 2], "name": "runs/a"}
    assert redacted(value) == value


def test_numbers_under_a_secret_name_are_hidden():
    assert redacted({"password": 12345678}) == {"password": HIDDEN}


@pytest.mark.parametrize("token", TOKENS)
@given(before=st.text(st.characters(categories=["Zs", "P"], exclude_characters="_-"), max_size=5))
def test_tokens_are_found_in_text(token, before):
    assert token not in redacted_text(f"{before} {token} and so on")


def test_urls():
    text = redacted_text("see https://me:s3cret@host/x?X-Amz-Signature=abcdef&page=2 and ftp://host/y")
    assert "s3cret" not in text
    assert "abcdef" not in text
    assert "page=2" in text
    assert text.endswith("ftp://host/y")


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MY_PASSWORD"]
)
def test_what_the_environment_holds_is_hidden_wherever_it_stands(name, monkeypatch):
    monkeypatch.setenv(name, "plain-looking value 42")
    config = {"a": [{"b": "x plain-looking value 42 y"}], "plain": "plain"}
    assert redacted(config) == {"a": [{"b": f"x <{name}> y"}], "plain": "plain"}


def test_short_values_of_the_environment_do_not_blot_out_text(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "e")
    assert redacted_text("three") == "three"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_result_is_json_and_stable(value):
    once = redacted(value)
    assert json.loads(json.dumps(once)) == once
    assert redacted(once) == once
