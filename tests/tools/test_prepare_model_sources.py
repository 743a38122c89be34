"""Preparing models from a hub (a fake one on 127.0.0.1), a URL or a folder: whole and checked, or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from file_server import COMMIT, Site, serving
from hypothesis import given
from hypothesis import strategies as st

from common.models import HUB_MODELS, resolve_model
from tools.preparing import weights
from tools.preparing.gathering import File, check_space, size_text

ROOT = Path(__file__).resolve().parents[2]
# Several commands in one process, since importing takes its time: what each says, and its exit code.
DRIVER = """
import json, sys
from click.testing import CliRunner
from tools.prepare_model import cli
results = [CliRunner().invoke(cli, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([(each.exit_code, each.stderr, repr(each.exception)) for each in results]))
"""


def command(*arguments: str, home: Path, site: Site | None = None, **environment: str) -> dict[str, Any]:
    """What subprocess needs to run prepare_model with the hub at `site`; nobody is there without one."""
    address = site.url if site else "http://127.0.0.1:9"
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf"), "PARLEY_HOME": str(home)}
    return {
        "args": [sys.executable, "tools/prepare_model.py", *arguments],
        "cwd": ROOT,
        "env": os.environ | settings | environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def run(*runs: list[str], home: Path, site: Site | None = None, **environment: str) -> list[tuple[int, str]]:
    """(exit code, stderr) of each command."""
    options = command(home=home, site=site, **environment)
    options["args"] = [sys.executable, "-c", DRIVER, json.dumps([[*each, "--retries", "0"] for each in runs])]
    done = subprocess.run(timeout=120, check=False, **options)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert not [each for each in results if "SystemExit" not in each[2] and each[2] != "None"], results
    return [(code, said) for code, said, _ in results]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def sharded(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in several shards."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_pretrained(tiny_chat_model).save_pretrained(folder, max_shard_size="50KB")
    AutoTokenizer.from_pretrained(tiny_chat_model).save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def hub_files(folder: Path) -> dict[str, bytes]:
    """A repository as people have them: with what nobody needs, and what nobody should open."""
    return contents(folder) | {
        "README.md": b"# A model",
        ".gitattributes": b"*.bin lfs",
        "pytorch_model-00001-of-00002.bin": b"pickle" * 100,
        "modeling_evil.py": b"raise SystemExit",
        "original/consolidated.00.pth": b"pickle" * 100,
        "model.fp16.safetensors": b"another precision" * 100,
        "onnx/model.onnx": b"onnx" * 100,
    }


@pytest.fixture
def hub(sharded: Path) -> Iterator[Site]:
    site = Site()
    site.add_repo("owner/model", hub_files(sharded))
    with serving(site) as running:
        yield running


def logits(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(torch.arange(50)[None]).logits


# Where from -----------------------------------------------------------------------------------------------------------


def test_a_hub_id_becomes_a_directory_that_loads(
    hub: Site, sharded: Path, tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, said), (again, said_again) = run(["owner/model"], ["owner/model"], home=tmp_path, site=hub)
    assert (first, again) == (0, 0), (said, said_again)
    made = contents(tmp_path / "models" / "owner" / "model")
    record = json.loads(made.pop("parley.json"))
    assert made == contents(sharded), "nothing else of it, and nothing else beside it"
    assert names_in(tmp_path / "models" / "owner") == ["model"]
    assert record["source"] == f"hf://owner/model@{COMMIT}"
    assert {name: each["sha256"] for name, each in record["files"].items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in made.items()
    }
    assert "already in" in said_again
    assert hub.num_asked("model-00001-of-00004.safetensors") <= 1, "fetched once"
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    assert logits(resolve_model("owner/model")).equal(logits(str(tiny_chat_model)))


def test_a_token_goes_to_the_hub(hub: Site, tmp_path: Path) -> None:
    token = {"HF_TOKEN": "hf_secret"}
    assert run(["owner/model"], home=tmp_path, site=hub, **token)[0][0] == 0
    about_it = [{name.lower(): value for name, value in each.items()} for path, each in hub.asked if "owner" in path]
    assert {headers.get("authorization") for headers in about_it} == {"Bearer hf_secret"}
    assert not [path for path in tmp_path.rglob("*.json") if b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize("name", HUB_MODELS)
def test_a_short_name_that_is_not_prepared_says_how_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"not prepared yet; run: python tools/prepare_model.py {name}"):
        resolve_model(name)


def test_a_short_name_stands_for_its_repository_and_revision(sharded: Path, tmp_path: Path) -> None:
    name = "pythia-chat-base-7b"
    site = Site()
    site.add_repo(HUB_MODELS[name].repo, hub_files(sharded))
    with serving(site):
        ((code, said), again, (other, why)) = run([name], [name], [name, "--revision", "x"], home=tmp_path, site=site)
    assert (code, again[0], other) == (0, 0, 2), said
    assert f"is there already, of hf://{HUB_MODELS[name].repo}@refs/pr/3; --force replaces it" in why
    assert set(contents(tmp_path / "models" / name)) == {*contents(sharded), "parley.json"}
    assert site.num_asked("/revision/refs/pr/3") == 1


def test_a_url_of_a_directory(sharded: Path, tiny_chat_model: Path, tmp_path: Path) -> None:
    site = Site({f"/files/shards/{name}": content for name, content in hub_files(sharded).items()})
    site.files |= {f"/one/{name}": content for name, content in contents(tiny_chat_model).items()}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in site.files.items())
    site.files["/files/shards/SHA256SUMS"] = sums.replace("/files/shards/", "").encode()
    with serving(site):
        ((code, said), (other, said_too)) = run(
            [f"{site.url}/files/shards/"], [f"{site.url}/one", "--name", "mine"], home=tmp_path
        )
    assert (code, other) == (0, 0), (said, said_too)
    assert set(contents(tmp_path / "models" / "shards")) == {*contents(sharded), "parley.json"}
    assert set(contents(tmp_path / "models" / "mine")) == {*contents(tiny_chat_model), "parley.json"}


def test_sums_beside_the_files_are_checked(tiny_chat_model: Path, tmp_path: Path) -> None:
    site = Site({f"/m/{name}": content for name, content in contents(tiny_chat_model).items()})
    site.files["/m/SHA256SUMS"] = b"0" * 64 + b" *model.safetensors\n"
    with serving(site):
        ((code, said),) = run([f"{site.url}/m"], home=tmp_path)
    assert (code, f"expected {'0' * 64}" in said) == (2, True)
    assert not (tmp_path / "models" / "m").exists()


def test_a_folder_is_copied_with_links_followed(sharded: Path, tmp_path: Path) -> None:
    source = tmp_path / "cache" / "snapshot"
    source.mkdir(parents=True)
    for path in sharded.iterdir():
        (source / path.name).symlink_to(path)
    (source / "parley.json").write_text("{}")
    once, again = run([str(source)], [str(source)], home=tmp_path)
    assert (once[0], again[0]) == (0, 0), (once, again)
    made = contents(tmp_path / "models" / "snapshot")
    del made["parley.json"]
    assert made == contents(sharded)


# What cannot be had ---------------------------------------------------------------------------------------------------


def test_refusals_say_what_to_do(sharded: Path, tmp_path: Path) -> None:
    site = Site()
    for repo in ("gated", "limited", "broken"):
        site.add_repo(f"owner/{repo}", hub_files(sharded))
    site.always[f"/owner/gated/resolve/{COMMIT}/config.json"] = (403, {"X-Error-Code": "GatedRepo"})
    site.always[f"/owner/limited/resolve/{COMMIT}/config.json"] = (429, {"Retry-After": "0"})
    site.always["/api/models/owner/broken"] = (500, {})
    bins = {"config.json": b"{}", "pytorch_model.bin": b"pickle" * 100}
    site.add_repo("owner/bins", bins)
    site.add_repo("owner/pulled", bins)
    site.repos["models/owner/pulled"]["discussions"] = [
        {"title": "Adding `safetensors` variant of this model", "num": number, "status": "open", "isPullRequest": True}
        | {"author": {"name": "SFconvertbot"}, "createdAt": "2024-01-01T00:00:00.000Z"}
        | {"repo": {"name": "owner/pulled", "type": "model"}}
        for number in (3, 7)
    ]
    site.add_repo("owner/gguf", {"config.json": b"{}", "model.Q4_0.gguf": b"GGUF" * 100})
    site.add_repo("owner/data", {"train.jsonl": b"{}"})
    expected = {
        "owner/gated": "it asks for its terms to be accepted; accept them on its page and set HF_TOKEN",
        "owner/limited": "the server answered 429",
        "owner/broken": "the hub answered 500",
        "owner/none": "the hub has no such model, or it is private; check the name and HF_TOKEN",
        "owner/bins": "(pytorch_model.bin), which can run code when it is opened; ask the hub's space",
        "owner/pulled": "made safetensors of them in a pull request: --revision refs/pr/7",
        "owner/gguf": "it has GGUF files only: fetch one, and make a model of it with tools/convert_gguf_to_hf.py",
        "owner/data": "there is no config.json, so it is no model of transformers",
        "one/two/three": "neither a folder that is there, nor a URL, nor a name on the hub",
        "http://127.0.0.1:9/model": "cannot be fetched",
    }
    with serving(site):
        answers = run(*([source] for source in expected), home=tmp_path, site=site)
    for (code, said), (source, reason) in zip(answers, expected.items(), strict=True):
        assert (code, reason in said) == (2, True), (source, said)
        assert said.splitlines()[-1].startswith("error: ")
    assert not [path for path in (tmp_path / "models").rglob("config.json") if ".part" not in str(path)]


def test_without_a_network_there_is_a_way(tmp_path: Path) -> None:
    ((code, said),) = run(["owner/model"], home=tmp_path)
    assert (code, "the hub cannot be reached; or set HF_ENDPOINT" in said) == (2, True), said
    ((code, said),) = run(["owner/model"], home=tmp_path, HF_HUB_OFFLINE="1")
    assert (code, "HF_HUB_OFFLINE is set; unset it" in said) == (2, True), said
    assert "copy its directory here from a machine that has it, and give its path" in said


def test_too_little_disk_is_said_before_anything_is_fetched(sharded: Path, tmp_path: Path) -> None:
    site = Site()
    site.add_repo("owner/huge", hub_files(sharded))
    for each in site.repos["models/owner/huge"]["siblings"]:
        if each["rfilename"].startswith("model-00001"):
            each["lfs"]["size"] = 10**18
    with serving(site):
        ((code, said),) = run(["owner/huge"], home=tmp_path, site=site)
    assert (code, "huge needs 1,000,000 TB (1,000,000,000,000," in said) == (2, True), said
    assert site.num_asked("config.json") == 0
    assert names_in(tmp_path / "models" / "owner") == []


def test_the_numbers_of_the_disk(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, free // 2, "x")
    with pytest.raises(ValueError, match=rf"x needs .* \({free * 2:,} bytes\) in .*, which has .* bytes\) free"):
        check_space(tmp_path, free * 2, "x")
    assert [size_text(n) for n in (0, 999, 1500, 123_456_789, 41_300_000_000)] == [
        *("0 B", "999 B", "1.5 kB", "123 MB", "41.3 GB")
    ]


# What is damaged ------------------------------------------------------------------------------------------------------


def test_a_damaged_shard_is_no_model(sharded: Path, tmp_path: Path) -> None:
    files = contents(sharded)
    shard = next(name for name in files if name.startswith("model-00001"))
    site = Site()
    site.add_repo("owner/flipped", files)
    site.files[f"/owner/flipped/resolve/{COMMIT}/{shard}"] = files[shard][:-1] + b"\xff"
    site.add_repo("owner/short", files | {shard: files[shard][:-8]})
    site.add_repo("owner/less", {name: content for name, content in files.items() if name != shard})
    site.add_repo("owner/swapped", files | {shard: files[shard.replace("00001", "00002", 1)]})
    with serving(site):
        answers = run(*([name] for name in ("owner/flipped", "owner/short", "owner/less", "owner/swapped")),
                      home=tmp_path, site=site)  # fmt: skip
    for (code, said), reason in zip(
        answers, ("has SHA-256", "no sound safetensors file", "is missing, which", "are not where"), strict=True
    ):
        assert (code, reason in said) == (2, True), said
    assert not [path for path in (tmp_path / "models" / "owner").iterdir() if not path.name.startswith(".")]


def test_damage_after_preparing_is_found(hub: Site, tmp_path: Path) -> None:
    assert run(["owner/model"], home=tmp_path, site=hub)[0][0] == 0
    made = tmp_path / "models" / "owner" / "model"
    shard = next(made.glob("model-00001*"))
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + b"\xff")
    (code, said), (forced, _) = run(["owner/model"], ["owner/model", "--force"], home=tmp_path, site=hub)
    assert (code, f"files are not what was fetched ({shard.name}); --force fetches" in said) == (2, True), said
    assert (forced, shard.read_bytes() == before) == (0, True)
    assert names_in(made.parent) == ["model"]


def test_a_name_that_another_model_has(hub: Site, tiny_chat_model: Path, tmp_path: Path) -> None:
    hub.files |= {f"/a/model/{name}": content for name, content in contents(tiny_chat_model).items()}
    hub.files |= {path.replace("/a/", "/b/"): content for path, content in hub.files.items() if path.startswith("/a/")}
    (first, _), (second, said) = run([f"{hub.url}/a/model"], [f"{hub.url}/b/model"], home=tmp_path)
    assert (first, second) == (0, 2)
    assert f"is there already, of {hub.url}/a/model; --force replaces it, --name makes another" in said


# What is killed -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 48 MB of further weights, in two files."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("large")
    for path in tiny_chat_model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    tensors = {name: np.frombuffer(random.Random(name).randbytes(24_000_000), np.int8) for name in "ab"}
    for number, (name, tensor) in enumerate(tensors.items(), start=1):
        save_file({name: tensor}, folder / f"model-0000{number}-of-00002.safetensors")
    shards = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate("ab", start=1)}
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": shards}))
    return folder


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_nothing_that_looks_whole_and_is_gone_on_with(
    kill: int, large: Path, tmp_path: Path
) -> None:
    site = Site(slow=0.003)
    site.add_repo("owner/large", contents(large))
    made = tmp_path / "models" / "owner" / "large"
    part = made.with_name(".large.part") / ".model-00002-of-00002.safetensors.part"
    with serving(site):
        process = subprocess.Popen(**command("owner/large", home=tmp_path, site=site))
        while not (part.with_name(part.name + ".json").exists() and part.stat().st_size > 20_000_000):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(kill)
        process.communicate(timeout=60)
        assert process.returncode == (130 if kill == signal.SIGINT else -kill)
        assert not made.exists()
        site.slow = 0.0
        site.asked.clear()
        ((code, said),) = run(["owner/large"], home=tmp_path, site=site)
    assert code == 0, said
    found = contents(made)
    del found["parley.json"]
    assert found == contents(large)
    assert names_in(made.parent) == ["large"]
    ranges = {path.rsplit("/", 1)[1]: headers.get("Range") for path, headers in site.asked if "/resolve/" in path}
    assert list(ranges) == ["model-00002-of-00002.safetensors"], "what was whole is not fetched again"
    assert int(str(next(iter(ranges.values()))).removeprefix("bytes=").removesuffix("-")) >= 16 << 20


def test_two_at_once(large: Path, tmp_path: Path) -> None:
    site = Site(slow=0.002)
    site.add_repo("owner/large", contents(large))
    with serving(site):
        first = subprocess.Popen(**command("owner/large", home=tmp_path, site=site))
        while not (tmp_path / "models" / "owner" / ".large.part").exists():
            time.sleep(0.01)
        ((code, said),) = run(["owner/large"], home=tmp_path, site=site)
        assert first.wait(60) == 0
        first.communicate()
    assert (code, f"another process (pid {first.pid}) is preparing large; wait until it has ended" in said) == (2, True)


# Which files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        (["model.safetensors", "tokenizer.json", "merges.txt", "tokenizer.model", "chat_template.jinja"], []),
        (["model.safetensors"], ["model-00001-of-00001.safetensors", weights.INDEX]),
        (["model-00001-of-00002.safetensors", weights.INDEX], ["model.fp16.safetensors", "pytorch_model.bin"]),
        (["model.safetensors", "modules.json", "2_Dense/model.safetensors", "1_Pooling/config.json"], ["x.onnx"]),
        (["model.safetensors"], ["consolidated.safetensors", "original/params.json", "tf_model.h5", "parley.json"]),
    ],
)
def test_the_files_of_a_model(wanted: list[str], others: list[str]) -> None:
    assert weights.chosen(["config.json", *others, *wanted]) == ["config.json", *wanted]


@given(st.text(max_size=30))
def test_a_file_s_name_never_leads_out_of_the_folder(name: str) -> None:
    try:
        file = File(name, Path("x"))
    except ValueError:
        return
    assert (Path("/base") / file.name).resolve().is_relative_to("/base")
    assert (Path("/base") / file.name).resolve() != Path("/base")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", ".hidden", "a/.git/x", "", "a\\b", ".", "a\x00", "a\nb"]
)
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name for a file"):
        File(name, Path("x"))
