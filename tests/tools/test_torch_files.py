"""What torch wrote is read as it was, and nothing in a pickle runs: torch's own reader is the oracle."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.torch_files import METADATA, load, load_tensor, stored_in_dcp

# torch warns that it saves without other processes.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def values() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    made = {
        "model.norm.weight": torch.randn(7),
        "lm_head.weight": torch.randn(5, 3).bfloat16(),
        "steps": torch.tensor(3),
        "mask": torch.tensor([True, False]),
    }
    return made | {"half": torch.randn(2, 2, 2).half()}


def save_dcp(folder: Path, state: dict[str, Any]) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=folder)
    return folder


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    import torch

    state = values()
    torch.save({"state": state, "more": [1, "x", None]}, tmp_path / "file.pt")
    read = load(tmp_path / "file.pt")
    assert read["more"] == [1, "x", None]
    assert all(torch.equal(read["state"][name], each) for name, each in state.items())
    torch.save(state, tmp_path / "flat.pt")
    assert torch.equal(load_tensor(tmp_path / "flat.pt", "half"), state["half"])


@pytest.mark.parametrize("parent", [None, "model"])
def test_a_distributed_checkpoint_is_read_as_torch_reads_it(parent: str | None, tmp_path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    state = values()
    optimizer = {"state": {"model.norm.weight": {"exp_avg": torch.ones(7)}}, "lr": 0.1}
    folder = save_dcp(tmp_path / "saved", {"model": state, "optim": optimizer} if parent else state)
    empty = {name: torch.zeros_like(each) for name, each in state.items()}
    dcp.load({"model": empty} if parent else empty, checkpoint_id=folder)
    found, others = stored_in_dcp(folder)
    assert found.keys() == state.keys()
    assert others == (2 if parent else 0)
    for name, expected in empty.items():
        stored = found[name]
        read = stored.read()
        assert (stored.shape, stored.dtype) == (tuple(expected.shape), expected.dtype)
        assert read.dtype == expected.dtype
        assert torch.equal(read, expected)


# Pickles -------------------------------------------------------------------------------------------------------------


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def hostile(folder: Path) -> list[bytes]:
    """Pickles that make a folder where they are let."""
    ran = str(folder / "ran")
    calls = [
        Call(os.mkdir, ran),
        Call(eval, f"__import__('os').mkdir({ran!r})"),
        Call(getattr, Call(__import__, "os"), "mkdir"),
        Call(pickle.loads, pickle.dumps(Call(os.mkdir, ran))),
        {"state_dict_metadata": Call(os.mkdir, ran)},
    ]
    by_hand = [
        f"cos\nmkdir\n(V{ran}\ntR.",
        f"(ios\nmkdir\nV{ran}\n.",
        f"ctorch.distributed.checkpoint.metadata\nos.mkdir\n(V{ran}\ntR.",
        f"ctorch\nload\n(V{ran}\ntR.",
        f"ctorch.serialization\nos\n(V{ran}\ntR.",
        f"cpathlib\nos.mkdir\n(V{ran}\ntR.",
        f"cpathlib\nPath.mkdir\n(V{ran}\ntR.",
        f"c__main__\n__builtins__\n(V{ran}\ntR.",
    ]
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    return [pickle.dumps(each, protocol) for each in calls for protocol in protocols] + [
        each.encode() for each in by_hand
    ]


def test_a_hostile_list_of_contents_runs_nothing(tmp_path: Path) -> None:
    contents = hostile(tmp_path)
    pickle.loads(contents[0])  # noqa: S301  # so that it is known to work
    (tmp_path / "ran").rmdir()
    for content in contents:
        (tmp_path / METADATA).write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read: it names .*, which has no place there"):
            stored_in_dcp(tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == [METADATA]


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    import torch

    (tmp_path / "inner").mkdir()
    for content in hostile(tmp_path / "inner"):
        (tmp_path / "bare.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"bare\.pt"):
            load(tmp_path / "bare.pt")
    for call in (Call(os.mkdir, str(tmp_path / "inner" / "ran")), [Call(eval, "1")]):
        torch.save({"x": torch.ones(2), "y": call}, tmp_path / "file.pt")
        with pytest.raises(ValueError, match=r"file\.pt is damaged, or holds something else than tensors"):
            load(tmp_path / "file.pt")
    assert not any((tmp_path / "inner").iterdir())


def edited(folder: Path, **changes: Any) -> None:
    """Change what the list of contents says of where the first tensor's only part is."""
    metadata = pickle.loads((folder / METADATA).read_bytes())  # noqa: S301
    place = next(place for index, place in metadata.storage_data.items() if index.fqn == "model.norm.weight")
    for name, value in changes.items():
        setattr(place, name, value)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))


def test_what_is_not_there_whole_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"relative_path": "../saved/__0_0.distcp"}, "names a file outside of its folder"),
        ({"relative_path": "gone.distcp"}, r"gone\.distcp .'model\.norm\.weight'. cannot be read"),
        ({"transform_descriptors": ["zstd"]}, "compressed or encrypted"),
        ({"length": 100}, r"__0_0\.distcp .'model\.norm\.weight'. cannot be read"),
        ({"offset": -3}, "cannot be read: it has no .* bytes at -3"),
        ({"length": 10**30}, "cannot be read: it has no 10{30} bytes"),
    ]
    for number, (change, message) in enumerate(cases):
        folder = save_dcp(tmp_path / str(number), values())
        edited(folder, **change)
        with pytest.raises(ValueError, match=message):
            stored_in_dcp(folder)[0]["model.norm.weight"].read()
    metadata = pickle.loads((folder / METADATA).read_bytes())  # noqa: S301
    metadata.storage_data = {index: each for index, each in metadata.storage_data.items() if index.fqn != "half"}
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="has only parts of 'half'"):
        stored_in_dcp(folder)
    for content in (b"", b"N.", b"]\x94.", pickle.dumps({"a": 1})):
        (folder / METADATA).write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read|is no list of a checkpoint's contents"):
            stored_in_dcp(folder)


def changed(content: bytes, data: st.DataObject) -> bytes:
    made = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        made[data.draw(st.integers(0, len(made) - 1))] ^= data.draw(st.integers(1, 255))
    return bytes(made[: data.draw(st.integers(0, len(made)))] if data.draw(st.booleans()) else made)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = save_dcp(tmp_path_factory.mktemp("torch-files"), values())
    torch.save(values(), folder / "file.pt")
    return folder


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_an_error_or_change_nothing(data: st.DataObject, saved: Path) -> None:
    import torch

    for name in ("file.pt", "__0_0.distcp"):
        whole = (saved / name).read_bytes()
        try:
            (saved / name).write_bytes(changed(whole, data))
            read = (
                load(saved / name)
                if name == "file.pt"
                else {k: each.read() for k, each in stored_in_dcp(saved)[0].items()}
            )
        except ValueError:
            continue
        finally:
            (saved / name).write_bytes(whole)
        assert all(torch.equal(read[key], each) for key, each in values().items() if key in read)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_list_of_contents_is_an_error_or_read(data: st.DataObject, saved: Path) -> None:
    """It has no sums. What it says is compared with config.json later; here no other exception may come."""
    whole = (saved / METADATA).read_bytes()
    try:
        (saved / METADATA).write_bytes(changed(whole, data))
        for each in stored_in_dcp(saved)[0].values():
            if sum(each.shape) < 100:
                each.read()
    except ValueError:
        pass
    finally:
        (saved / METADATA).write_bytes(whole)
