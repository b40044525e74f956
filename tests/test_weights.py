"""A weights file that fits is loaded to the last bit; any other is refused in one line and changes nothing."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.inceptionv4 import InceptionV4
from model.weights import WeightsError, load_pretrained

SMALL = (1, 1, 1)
State = dict[str, Tensor]


def shapes_of(num_classes: int, blocks: tuple[int, int, int] = SMALL) -> State:
    """Names and shapes without numbers, at no cost."""
    with torch.device("meta"):
        return InceptionV4(num_classes, blocks).state_dict()


def donor_state(num_classes: int) -> State:
    """A state_dict in which every tensor, the batch-norm statistics too, differs from a fresh model's."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else torch.tensor(77)
        for name, value in shapes_of(num_classes).items()
    }


def hollow(state: State) -> State:
    """The same names and shapes at no size: every tensor is one number, expanded."""
    return {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}


def snapshot(model: InceptionV4) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(found: State, wanted: State, but: tuple[str, ...] = ()) -> None:
    assert found.keys() == wanted.keys()
    for name in found.keys() - set(but):
        assert torch.equal(found[name], wanted[name]), name


@pytest.fixture(scope="module")
def seven() -> State:
    return donor_state(7)


@pytest.fixture(scope="module")
def resident() -> InceptionV4:
    """The model of 7 classes that every refusal must leave alone."""
    return InceptionV4(7, SMALL)


@pytest.fixture(scope="module")
def before(resident: InceptionV4) -> State:
    return snapshot(resident)


@pytest.fixture
def refused(resident: InceptionV4, before: State) -> Iterator[Callable[..., str]]:
    """Loads, expects one line of refusal that names the file, and returns it; then the model is as it was."""

    def refuse(path: Path, *, new_head: bool = False) -> str:
        with pytest.raises(WeightsError) as caught:
            load_pretrained(resident, path, new_head=new_head)
        line = str(caught.value)
        assert line.startswith(f"{path}: ")
        assert line.isprintable(), repr(line)
        assert len(line) < 500 + len(str(path))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None  # no traceback of torch's
        return line

    yield refuse
    assert_same(resident.state_dict(), before)


# What is loaded


def test_a_bare_state_dict_is_loaded_to_the_last_bit(tmp_path: Path, seven: State) -> None:
    torch.save(seven, tmp_path / "w.pth")
    model = InceptionV4(7, SMALL)
    assert load_pretrained(model, str(tmp_path / "w.pth")) == "loaded w.pth: features and classifier of 7 classes"
    assert_same(model.state_dict(), seven)


def cadene_file(folder: Path) -> tuple[Path, State]:
    """Weights in the form of inceptionv4-8e4777a0.pth: 1,001 classes, torch's file format of 2017, no counters."""
    state = donor_state(1001)
    old = OrderedDict((name, value) for name, value in state.items() if "num_batches_tracked" not in name)
    path = folder / "inceptionv4-8e4777a0.pth"
    torch.save(old, path, _use_new_zipfile_serialization=False)
    return path, state


def test_cadenes_weights_lose_the_background_in_a_model_of_1000_classes(tmp_path: Path) -> None:
    path, state = cadene_file(tmp_path)
    model = InceptionV4(1000, SMALL)
    line = load_pretrained(model, path)
    assert line == (
        "loaded inceptionv4-8e4777a0.pth: features and classifier of 1,000 classes "
        "(class 0 of 1,001, the background, left out)"
    )
    for name, value in model.state_dict().items():
        if name.startswith("last_linear."):
            assert torch.equal(value, state[name][1:]), name
        elif name.endswith("num_batches_tracked"):
            assert value == 0, name
        else:
            assert torch.equal(value, state[name]), name


def test_cadenes_weights_keep_the_background_in_a_model_of_1001_classes(tmp_path: Path) -> None:
    path, state = cadene_file(tmp_path)
    model = InceptionV4(1001, SMALL)
    assert load_pretrained(model, path).endswith("classifier of 1,001 classes")
    assert torch.equal(model.last_linear.weight, state["last_linear.weight"])
    assert torch.equal(model.last_linear.bias, state["last_linear.bias"])


def test_timms_weights_are_loaded(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed, so its names are not checked: pip install timm")
    state = timm.create_model("inception_v4").state_dict()
    torch.save(state, tmp_path / "timm.pth")
    model = InceptionV4(1000)
    load_pretrained(model, tmp_path / "timm.pth")
    assert_same(model.state_dict(), state)


def test_another_pickle_protocol_is_loaded_without_a_warning(tmp_path: Path, seven: State) -> None:
    torch.save(seven, tmp_path / "w.pth", pickle_protocol=3)
    model = InceptionV4(7, SMALL)
    load_pretrained(model, tmp_path / "w.pth")  # pytest makes an error of any warning
    assert_same(model.state_dict(), seven)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_training_checkpoint_is_loaded(tmp_path: Path, seven: State, prefix: str) -> None:
    checkpoint = {
        "epoch": 12,
        "arch": "InceptionV4",
        "state_dict": OrderedDict((prefix + name, value) for name, value in seven.items()),
        "best_acc1": torch.tensor([79.574]),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "amp": OrderedDict(loss_scaler0={"loss_scale": 128.0, "unskipped": 3}),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth.tar")
    model = InceptionV4(7, SMALL)
    load_pretrained(model, tmp_path / "checkpoint.pth.tar")
    assert_same(model.state_dict(), seven)


def test_the_models_dtype_and_memory_format_stay(tmp_path: Path, seven: State) -> None:
    halves = {name: value.half() if value.is_floating_point() else value for name, value in seven.items()}
    torch.save(halves, tmp_path / "half.pth")
    model = InceptionV4(7, SMALL).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_pretrained(model, tmp_path / "half.pth")
    weight = model.state_dict()["features.1.conv.weight"]
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, halves["features.1.conv.weight"].float())


def test_safetensors_are_loaded(tmp_path: Path, seven: State) -> None:
    safetensors = pytest.importorskip(
        "safetensors.torch", reason="safetensors is not installed, so .safetensors is not read: pip install safetensors"
    )
    safetensors.save_file(seven, tmp_path / "w.safetensors")
    model = InceptionV4(7, SMALL)
    load_pretrained(model, tmp_path / "w.safetensors")
    assert_same(model.state_dict(), seven)


# Fine-tuning


@pytest.mark.parametrize("num_classes", [5, 7])
@pytest.mark.parametrize("with_head", [True, False])
def test_new_head_takes_the_features_and_leaves_the_classifier(
    tmp_path: Path, seven: State, num_classes: int, with_head: bool
) -> None:
    torch.save({k: v for k, v in seven.items() if with_head or not k.startswith("last_linear.")}, tmp_path / "w.pth")
    model = InceptionV4(num_classes, SMALL)
    head = model.last_linear.weight.detach().clone(), model.last_linear.bias.detach().clone()
    line = load_pretrained(model, tmp_path / "w.pth", new_head=True)
    assert line == f"loaded w.pth: features only; the classifier of {num_classes} classes starts anew"
    assert torch.equal(model.last_linear.weight, head[0])
    assert torch.equal(model.last_linear.bias, head[1])
    assert_same(model.state_dict(), seven, but=("last_linear.weight", "last_linear.bias"))


@pytest.mark.parametrize("num_classes", [1, 6, 8, 1000, 1001])
def test_another_class_count_is_refused(tmp_path: Path, refused: Callable[..., str], num_classes: int) -> None:
    torch.save(hollow(shapes_of(num_classes)), tmp_path / "w.pth")
    line = refused(tmp_path / "w.pth")
    assert f"{num_classes:,} classes in the file, 7 in the model" in line
    assert "new_head=True" in line


def test_1001_classes_of_a_training_checkpoint_are_not_cut(tmp_path: Path) -> None:
    # The original trains on labels 0 … 999, so its unused output is the last: without the first, every class is wrong.
    torch.save({"state_dict": hollow(shapes_of(1001)), "epoch": 240}, tmp_path / "model_best.pth.tar")
    model = InceptionV4(1000, SMALL)
    before = snapshot(model)
    with pytest.raises(WeightsError, match="1,001 classes in the file, 1,000 in the model, and the unused one may be"):
        load_pretrained(model, tmp_path / "model_best.pth.tar")
    assert_same(model.state_dict(), before)
    assert "1,001 classes" in load_pretrained(InceptionV4(1001, SMALL), tmp_path / "model_best.pth.tar")


# What does not fit


@pytest.mark.parametrize("new_head", [False, True])
def test_other_block_counts_are_refused_by_name(tmp_path: Path, refused: Callable[..., str], new_head: bool) -> None:
    torch.save(hollow(shapes_of(1000, (4, 7, 3))), tmp_path / "full.pth")
    line = refused(tmp_path / "full.pth", new_head=new_head)
    assert "blocks (1, 1, 1) in the model, the file looks like (4, 7, 3)" in line


@pytest.mark.parametrize("new_head", [False, True])
def test_another_network_is_refused(tmp_path: Path, refused: Callable[..., str], new_head: bool) -> None:
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(7)}, tmp_path / "resnet.pth")
    line = refused(tmp_path / "resnet.pth", new_head=new_head)
    assert "does not fit InceptionV4" in line
    assert "features.0.conv.weight" in line
    assert "2 unknown (conv1.weight, fc.bias)" in line


def changed(state: State, **changes: object) -> dict[str, object]:
    """``state`` with dots written as two underscores in the names of what is put in; None takes a tensor out."""
    new: dict[str, object] = dict(state)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del new[name]
        else:
            new[name] = value
    return new


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"features__0__conv__weight": None}, "1 names missing (features.0.conv.weight)"),
        ({"features__0__bn__running_mean": None}, "1 names missing (features.0.bn.running_mean)"),
        ({"last_linear__bias": None}, "1 names missing (last_linear.bias)"),
        ({"last_linear__weight": None, "last_linear__bias": None}, "features without a classifier"),
        ({"AuxLogits__fc__weight": torch.ones(2)}, "1 unknown (AuxLogits.fc.weight)"),
        ({"features__0__conv__weight": torch.ones(32, 1, 3, 3)}, "is (32, 1, 3, 3), wanted (32, 3, 3, 3)"),
        ({"last_linear__weight": torch.ones(7, 2048)}, "last_linear.weight is (7, 2048), wanted (7, 1536)"),
        ({"last_linear__bias": torch.ones(8)}, "last_linear.bias is (8,), wanted (7,)"),
        ({"last_linear__bias": torch.tensor(1.0)}, "last_linear.bias is (), wanted (7,)"),
        ({"features__0__bn__bias": torch.full((32,), torch.nan)}, "features.0.bn.bias is not all finite"),
        ({"features__0__bn__bias": torch.full((32,), 1e300, dtype=torch.float64)}, "not all finite"),
        ({"features__0__bn__bias": torch.ones(32, dtype=torch.int64)}, "is torch.int64, wanted torch.float32"),
        ({"features__0__bn__bias": torch.ones(32, dtype=torch.complex64)}, "plain float tensors by name"),
        ({"features__0__bn__bias": torch.ones(32).to_sparse()}, "plain float tensors by name"),
        ({"features__0__bn__bias": torch.ones(32, device="meta")}, "got features.0.bn.bias"),
        ({"features__0__bn__bias": 3}, "got features.0.bn.bias"),
        ({"\x1b[2Jgone": torch.ones(1)}, r"1 unknown ('\x1b[2Jgone')"),
    ],
)
def test_a_file_that_is_not_quite_right_is_refused(
    tmp_path: Path, seven: State, refused: Callable[..., str], changes: dict[str, object], told: str
) -> None:
    torch.save(changed(hollow(seven), **changes), tmp_path / "w.pth")
    assert told in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ({}, "got nothing at all"),
        ([1, 2], "got one list"),
        (torch.ones(3), "got one Tensor"),
        ({"state_dict": None}, "got one NoneType"),
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "got model, epoch"),
        ({0: torch.ones(1)}, "got 0"),
    ],
)
def test_a_file_without_weights_is_refused(
    tmp_path: Path, refused: Callable[..., str], contents: object, told: str
) -> None:
    torch.save(contents, tmp_path / "w.pth")
    assert told in refused(tmp_path / "w.pth")


# What is no weights file at all


class Trap:
    """Unpickled without care, runs a shell command that makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def spring(path: Path) -> object:
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("write", "careless", "told"),
    [
        (torch.save, spring, "system) and reading that would run code from the file; nothing was run"),
        (partial(torch.save, _use_new_zipfile_serialization=False), spring, "nothing was run"),
        (
            lambda x, path: path.write_bytes(pickle.dumps(x, 2)),
            lambda path: pickle.loads(path.read_bytes()),
            "nothing was",
        ),
        (
            lambda x, path: path.write_bytes(pickle.dumps(x)),
            lambda path: pickle.loads(path.read_bytes()),
            "not a torch",
        ),
    ],
    ids=["zip", "legacy", "pickle-2", "pickle-4"],
)
def test_a_file_with_code_in_it_is_refused_and_nothing_runs(
    tmp_path: Path,
    seven: State,
    refused: Callable[..., str],
    write: Callable[[object, Path], object],
    careless: Callable[[Path], object],
    told: str,
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pth"
    few = {name: seven[name] for name in ("last_linear.weight", "last_linear.bias")}
    write({"state_dict": few, "amp": Trap(mark)}, path)
    assert told in refused(path)
    assert not mark.exists()
    careless(path)  # the trap does work
    assert mark.exists()


def test_a_missing_file_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "No such file or directory" in refused(tmp_path / "none.pth")
    assert "No such file or directory" in refused(tmp_path / "none.safetensors")


def test_a_folder_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "Is a directory" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_file_is_refused(tmp_path: Path, refused: Callable[..., str], suffix: str) -> None:
    (tmp_path / f"w{suffix}").touch()
    assert "an empty file, 0 bytes" in refused(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("text", ["<html>404</html>\n", "version https://git-lfs.github.com/spec/v1\n", "\xff"])
def test_a_text_file_is_refused(tmp_path: Path, refused: Callable[..., str], text: str) -> None:
    (tmp_path / "w.pth").write_text(text)
    assert "not a torch weights file, or a damaged one" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, refused: Callable[..., str], zipped: bool, part: float) -> None:
    path = tmp_path / "w.pth"
    torch.save({"last_linear.bias": torch.ones(100_000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert "not a torch weights file, or a damaged one" in refused(path)


def test_another_kind_of_zip_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    for name in ("readme.txt", "archive/constants.pkl"):  # the second is what torch takes for TorchScript
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr(name, "hello")
        assert "not a torch weights file, or a damaged one" in refused(tmp_path / "w.pth")


def test_safetensors_without_the_package_names_what_to_install(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "w.safetensors").write_bytes(b"any")
    assert "pip install safetensors" in refused(tmp_path / "w.safetensors")


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed: pip install safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00 not a header")
    assert "not a .safetensors file, or a damaged one" in refused(tmp_path / "w.safetensors")
