"""torch.compile's kernels beside the network itself. The network is a small one: compiling takes seconds a layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from model.compiled import Compiled, CompileError
from tests.by_hand import Net, batches

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: torch.compile has nothing to compile with"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, about torch.jit
]


def there_and_back(compiled: Compiled) -> Callable[[Tensor], None]:
    def run(images: Tensor) -> None:
        torch.autograd.backward(compiled(images).sum() * 0)

    return run


@pytest.fixture(autouse=True)
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of one test is left for the next: neither kernels on the disk nor the counts of what was compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_it_computes_what_the_network_does_and_leaves_its_statistics() -> None:
    (images, labels), (others, _) = batches(2)
    net, plain = Net(), Net()
    compiled = Compiled(net, "default")
    before = {name: value.clone() for name, value in net.state_dict().items()}

    assert compiled.prepare(images, there_and_back(compiled)) > 0
    assert compiled.prepare(others, there_and_back(compiled)) == 0, "of the same shape"
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    net.zero_grad()
    for network in (compiled, plain):
        torch.autograd.backward(cross_entropy(network(images), labels))
    for (name, mine), (_, theirs) in zip(net.named_parameters(), plain.named_parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_what_it_was_not_told_of_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch's last batch, and scoring: bit for bit the network's own."""
    images, _ = batches(1)[0]
    net = Net()
    compiled = Compiled(net, "default")
    compiled.prepare(images, there_and_back(compiled))

    def never(_: Tensor) -> Tensor:
        raise AssertionError("was compiled for another shape")

    monkeypatch.setattr(compiled, "_compiled", never)
    assert torch.equal(compiled(images[:3]).detach(), Net()(images[:3]).detach())
    net.eval()
    plain = Net().eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(compiled(images).detach(), plain(images).detach())


def test_as_many_shapes_are_compiled_as_there_are() -> None:
    """torch stops at 8, and runs what comes then as it is."""
    net, seen = nn.Linear(1, 1), []
    compiled = Compiled(net, "default")

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        seen.append(max(len(x) for x in examples if x.ndim))
        return graph.forward

    compiled._compiled = torch.compile(net, backend=backend, dynamic=False)
    for count in range(2, 22):
        compiled.prepare(torch.ones(count, 1), compiled)
    assert seen == list(range(2, 22))


def test_without_a_compiler_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/g++",))
    compiled = Compiled(Net(), "default")
    with pytest.raises(CompileError, match=r"^--compile: torch\.compile failed \([^\n]*\); .*g\+\+[^\n]*$"):
        compiled.prepare(batches(1)[0][0], there_and_back(compiled))
