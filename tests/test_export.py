"""tools/export.py: what others load computes what ours does, or is not written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import model.deployment
from model.deployment import Deployed, ExportError, export_onnx, export_pt2, export_timm
from model.inceptionv4 import InceptionV4
from model.trained import Trained
from model.weights import load_pretrained
from tests.conftest import Run


@pytest.fixture(scope="module")
def trained() -> Trained:
    torch.manual_seed(0)
    network = InceptionV4(3, blocks=(0, 0, 1))
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(4, 3, 96, 96) * 2 - 1)
        network.last_linear.weight.mul_(20)
    return Trained(model=network.eval(), classes=("ant", "bee", "cat"), image_size=96, note="")


def pictures(count: int) -> Tensor:
    return torch.randint(256, (count, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def by_hand(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network((images.permute(0, 3, 1, 2).double() / 255 - 0.5).div(0.5).float())
    return logits.detach()


def test_onnx_computes_the_same_for_any_number_of_pictures(trained: Trained, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    found = export_onnx(trained, tmp_path / "a.onnx", pictures(5))
    assert (found.pictures, found.agree) == (5, 5)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["ant", "bee", "cat"]
    assert (about["image_size"], about["input"]) == ("96", "images: uint8 [N, 96, 96, 3], RGB, not normalised")
    for count in (1, 2, 3, 17):
        images = pictures(count)
        (got,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), by_hand(trained.model, images), rtol=1e-4, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_pt2_is_loaded_by_torch_alone(trained: Trained, tmp_path: Path) -> None:
    assert export_pt2(trained, tmp_path / "a.pt2", pictures(3)).good
    extra = {"headrace.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=extra).module()
    assert json.loads(json.loads(extra["headrace.json"])["classes"]) == ["ant", "bee", "cat"]
    for count in (1, 4):
        torch.testing.assert_close(program(pictures(count)).detach(), by_hand(trained.model, pictures(count)))


def test_pt2_does_not_hold_the_pictures_that_it_was_checked_with(trained: Trained, tmp_path: Path) -> None:
    for count in (2, 200):
        export_pt2(trained, tmp_path / f"{count}.pt2", pictures(count))
    few, many = ((tmp_path / f"{count}.pt2").stat().st_size for count in (2, 200))
    assert many - few < 50_000  # 198 pictures are 5 MB


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_timms_weights_have_timms_names(trained: Trained, name: str, tmp_path: Path) -> None:
    assert export_timm(trained, tmp_path / name, pictures(2)).difference == 0
    network = InceptionV4(3, blocks=(0, 0, 1)).eval()
    load_pretrained(network, tmp_path / name)
    assert torch.equal(by_hand(network, pictures(2)), by_hand(trained.model, pictures(2)))


def test_timm_loads_them(tmp_path: Path) -> None:
    try:
        import timm
    except ImportError:
        pytest.skip("timm is not installed, so nothing of its loads what we export: pip install timm")
    torch.manual_seed(0)
    ours = Trained(model=InceptionV4(5).eval(), classes=("a", "b", "c", "d", "e"), image_size=96, note="")
    export_timm(ours, tmp_path / "a.pth", pictures(2))
    theirs = timm.create_model("inception_v4", num_classes=5, checkpoint_path=str(tmp_path / "a.pth")).eval()
    torch.testing.assert_close(by_hand(theirs, pictures(2)), by_hand(ours.model, pictures(2)), rtol=1e-5, atol=1e-5)


def test_what_computes_something_else_is_not_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what was there before touched."""
    (tmp_path / "a.pth").write_text("before")

    class Wrong(Deployed):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 1.01

    monkeypatch.setattr(model.deployment, "Deployed", Wrong)
    monkeypatch.setattr(model.deployment, "_compare", compare_with_truth(trained))
    with pytest.raises(
        ExportError, match=r"a.pth was not written: it computes something else: the same best class for"
    ):
        export_timm(trained, tmp_path / "a.pth", pictures(2))
    assert (tmp_path / "a.pth").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def compare_with_truth(trained: Trained):  # type: ignore[no-untyped-def]
    real = model.deployment._compare
    return lambda _network, other, images: real(lambda x: by_hand(trained.model, x), other, images)


def test_a_disk_that_is_full_is_one_line(trained: Trained, tmp_path: Path) -> None:
    """/dev/full is one."""
    (tmp_path / ".a.partial.pth").symlink_to("/dev/full")
    with pytest.raises(ExportError, match=r"a\.pth cannot be written: "):
        export_timm(trained, tmp_path / "a.pth", pictures(2))
    assert not list(tmp_path.iterdir())


def test_the_tool_says_how_each_compares(trained: Trained, folder: Path, tmp_path: Path, run_here: Run) -> None:
    torch.save({"state_dict": trained.model.state_dict(), "image_size": 96}, tmp_path / "w.pth")
    done = run_here(
        "tools/export.py", "--weights", tmp_path / "w.pth", "--timm", tmp_path / "a.pth", "--check", folder / "val"
    )
    assert done.returncode == 0, done.stderr
    assert "the same best class for 21 of 21 pictures" in done.stdout.splitlines()[-1]
    noise = run_here("tools/export.py", "--weights", tmp_path / "w.pth", "--timm", tmp_path / "b.pth")
    assert noise.stdout.endswith("(of noise)\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to do"),
        (["--onnx", "{here}/nowhere/a.onnx"], 2, "no such folder: {here}/nowhere"),
        (["--onnx", "{here}"], 2, "{here} is a folder"),
        (["--timm", "{here}/a.pth", "--image-size", "10"], 1, "at least 75 pixels"),
        (["--timm", "{here}/a.pth", "--image-size", "0"], 2, "must be a whole number of at least 1, was '0'"),
        (["--timm", "{here}/a.pth", "--check", "{here}/none"], 2, "no such picture or folder"),
    ],
)
def test_a_wrong_call_is_one_clear_line(
    arguments: list[str], code: int, message: str, trained: Trained, tmp_path: Path, run_here: Run
) -> None:
    torch.save(trained.model.state_dict(), tmp_path / "w.pth")
    argv = [argument.format(here=tmp_path) for argument in arguments]
    done = run_here("tools/export.py", "--weights", tmp_path / "w.pth", *argv)
    assert done.returncode == code, done.stderr
    assert message.format(here=tmp_path) in done.stderr.splitlines()[-1]


def test_a_missing_package_is_one_line(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="onnxruntime is not installed: pip install onnx onnxscript onnxruntime"):
        export_onnx(trained, tmp_path / "a.onnx", pictures(2))
