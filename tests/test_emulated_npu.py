"""The emulated card: that the real torch_npu computes on it what the processor computes, and that it shows mistakes.

Functions named ``on_card_...`` run in processes of their own, for torch_npu must not be loaded here: loading takes
seconds, so each looks at many things and says what it saw.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.emulated_card import ROOT, EmulatedCard

PINNED = 0x10000000  # ACL_HOST_REG_PINNED
DELAY_US = 150_000


def start(function: Callable[..., object], environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    """A test module's function in a process with a card; warnings are errors there, too."""
    call = f"from {function.__module__} import {function.__name__} as f; f(*{arguments!r})"
    return subprocess.Popen(
        [sys.executable, "-c", call],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "error", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it has said in its last line."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said


def load() -> tuple[Any, Any]:
    """torch_npu, and the emulation's kernels."""
    return importlib.import_module("torch_npu"), importlib.import_module("kernels")


# ---- one card ---------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two convolutions with batch norms, both poolings, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.second = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(16)])
        self.linear = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.norms[0](self.first(images)), inplace=True)
        y = functional.relu(self.norms[1](self.second(functional.max_pool2d(x, 3, 2))))
        x = torch.cat([y[:, :8], functional.avg_pool2d(y, 3, 1, 1, count_include_pad=False)[:, 8:]], 1)
        logits: Tensor = self.linear(functional.dropout(x.mean((2, 3)), 0.0))
        return logits


def train(device: str, *, half: bool, fused: bool) -> list[float]:
    """The losses of four steps."""
    torch.manual_seed(0)
    model = Net().to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=fused)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=half)
    random = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(4):
        images = torch.randn(4, 3, 21, 21, generator=random).to(device)
        labels = torch.randint(0, 5, (4,), generator=random).to(device)
        with torch.amp.autocast(device, dtype=torch.float16, enabled=half):
            logits = model(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=0.1)
        optimiser.zero_grad()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimiser)
        scaler.update()
        losses.append(float(loss.item()))
    assert int(logits.float().topk(3).indices.shape[1]) == 3
    return losses


def refusal(do: Callable[[], object]) -> str:
    """What an exception says."""
    try:
        do()
    except (RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def on_card_one() -> None:
    """Everything that one process can look at."""
    torch_npu, kernels = load()
    npu = torch_npu.npu
    said: dict[str, Any] = {"available": [npu.is_available(), npu.device_count(), npu.get_device_name(0)]}
    said["fp32"] = [train(device, half=False, fused=False) for device in ("cpu", "npu")]
    said["fused"] = train("npu", half=False, fused=True)
    said["half"] = train("npu", half=True, fused=True)

    # Copies are counted as what they are
    pinned, pageable = torch.arange(1000, dtype=torch.uint8).pin_memory(), torch.zeros(2000, dtype=torch.uint8)
    file = os.memfd_create("slots")
    os.ftruncate(file, 3 * 4096)
    slots = torch.frombuffer(mmap.mmap(file, 3 * 4096), dtype=torch.uint8)
    runtime = npu.npurt()
    is_pinned = [slots.is_pinned()]
    said["registered"] = int(runtime.npuHostRegister(slots.data_ptr(), slots.numel(), PINNED))
    is_pinned += [slots.is_pinned(), slots[5000:7000].is_pinned()]
    side = npu.Stream()
    with npu.stream(side):
        arrived = [pinned.to("npu", non_blocking=True), slots[5000:8000].to("npu", non_blocking=True)]
        pageable.to("npu", non_blocking=True)
        event = npu.Event()
        event.record(side)
    npu.current_stream().wait_event(event)
    for tensor in arrived:
        tensor.record_stream(npu.current_stream())
    event.synchronize()
    said["equal"] = [torch.equal(arrived[0].cpu(), pinned), torch.equal(arrived[1].cpu(), slots[5000:8000])]
    runtime.npuHostUnregister(slots.data_ptr())
    said["is_pinned"] = [*is_pinned, slots.is_pinned()]

    # What the card will not do, it says
    said["no kernel"] = refusal(lambda: torch_npu.fast_gelu(torch.ones(3, device="npu")))
    said["no operator"] = refusal(lambda: torch.linalg.eigvals(torch.eye(3, device="npu")))
    said["channels last"] = refusal(lambda: torch.ones(1, 3, 4, 4).to("npu", memory_format=torch.channels_last))

    # Layouts, types, indexes, files
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    there = images.to("npu").permute(0, 3, 1, 2).to(torch.float16).contiguous()
    said["layout"] = torch.equal(there.cpu(), images.permute(0, 3, 1, 2).half())
    said["index"] = torch.equal(there[:, [2, 0]].cpu(), there.cpu()[:, [2, 0]])
    saved = io.BytesIO()
    torch.save({"weights": there}, saved)
    saved.seek(0)
    said["saved"] = torch.equal(torch.load(saved, map_location="cpu")["weights"], there.cpu())
    said["memory"] = [npu.memory_allocated() > 0, npu.mem_get_info()[0] < npu.mem_get_info()[1]]

    # The card's random numbers are its own
    on_host, ones = torch.get_rng_state(), torch.ones(64, device="npu")
    state = npu.get_rng_state()
    draws = [functional.dropout(ones, 0.5).tolist() for _ in range(2)]
    npu.set_rng_state(state)
    draws.append(functional.dropout(ones, 0.5).tolist())
    said["draws"] = draws
    said["the host's are untouched"] = torch.equal(on_host, torch.get_rng_state())

    # Neither the kernels' own waiting nor anything but the program's is counted
    before = kernels.counters()["stream_synchronisations"]
    there.float().sum().add_(1)
    npu.current_stream().synchronize()
    counted = kernels.counters()
    said["synchronisations"] = counted["stream_synchronisations"] - before
    said["counted"] = counted
    said["hazards"] = hazards(npu)
    print(json.dumps(said))


@pytest.fixture(scope="module")
def one(card: EmulatedCard, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with one card has seen; its report with it."""
    folder = tmp_path_factory.mktemp("report")
    said = result_of(start(on_card_one, card.environment(report=folder, TASK_QUEUE_ENABLE="2")))
    (report,) = card.report(folder)
    return said | {"report": report}


def test_training(one: dict[str, Any]) -> None:
    assert one["available"] == [True, 1, "Ascend910B2"]
    on_cpu, on_npu = one["fp32"]
    assert on_npu == pytest.approx(on_cpu, rel=1e-5)
    assert one["fused"] == pytest.approx(on_cpu, rel=1e-5)
    assert one["half"] == pytest.approx(on_cpu, rel=0.02)  # halves have 11 bits: 0.0005 each, through four steps
    assert one["half"] != one["fused"]


def test_copies(one: dict[str, Any]) -> None:
    assert one["registered"] == 0
    assert one["is_pinned"] == [False, True, True, False]
    assert one["equal"] == [True, True]
    assert one["synchronisations"] == 1
    counted = one["counted"]
    copies = {copy["bytes"]: copy for copy in counted["to_device"]}
    asynchronous = {"pinned": True, "asynchronous": True, "on_default_stream": False, "count": 1}
    assert copies[1000] == {"bytes": 1000} | asynchronous
    assert copies[3000] == {"bytes": 3000} | asynchronous
    assert copies[2000] == {"bytes": 2000} | asynchronous | {"pinned": False, "asynchronous": False}
    assert counted["events_waited"] == counted["events_synchronised"] == 1
    assert counted["h2d"] == sum(copy["count"] for copy in counted["to_device"])
    assert counted["kernels"]["convolution"] == counted["kernels"]["convolution_backward"] == 3 * 4 * 2


def test_refusals(one: dict[str, Any]) -> None:
    assert "npu::fast_gelu" in one["no kernel"]
    assert "linalg_eig" in one["no operator"]
    assert "Only contiguous_format or preserve_format is supported" in one["channels last"]


def test_layouts_types_files(one: dict[str, Any]) -> None:
    assert one["layout"]
    assert one["index"]
    assert one["saved"]
    assert one["memory"] == [True, True]


def test_random_numbers(one: dict[str, Any]) -> None:
    first, second, again = one["draws"]
    assert set(first) == {0.0, 2.0}
    assert first != second
    assert first == again
    assert one["the host's are untouched"]


def test_report(one: dict[str, Any]) -> None:
    report = one["report"]
    assert report["finished"]
    assert report["rank"] is None
    assert report["h2d"] > one["counted"]["h2d"]


# ---- what goes wrong without waiting ----------------------------------------------------------------------------


def hazards(npu: Any) -> dict[str, Any]:
    """What arrives by copies that start late, with and without each synchronisation."""
    os.environ["EMULATED_NPU_COPY_DELAY_US"] = str(DELAY_US)
    said: dict[str, Any] = {}
    side, compute = npu.Stream(), npu.current_stream()
    slot = torch.zeros(1000, dtype=torch.uint8).pin_memory()

    def arrive(value: int) -> tuple[Tensor, Any]:
        slot.fill_(value)
        with npu.stream(side):
            copied = slot.to("npu", non_blocking=True)
            event = npu.Event()
            event.record(side)
        return copied, event

    def values(tensor: Tensor) -> list[int]:
        return [int(value) for value in set(tensor.tolist())]

    copied, event = arrive(1)
    said["query"] = [event.query()]
    compute.wait_event(event)
    said["waited"] = values(copied)
    said["query"].append(event.query())

    copied, event = arrive(2)
    said["not waited"] = values(copied)
    event.synchronize()
    said["at last"] = values(copied)

    copied, event = arrive(3)
    slot.fill_(4)  # as a worker would that gets its slot back too early
    side.synchronize()
    said["overwritten"] = values(copied)

    copied, event = arrive(5)
    event.synchronize()
    slot.fill_(6)
    said["kept"] = values(copied)

    # An event that is recorded again does not hold up who waited for the first recording, nor does one never recorded
    copied, event = arrive(7)
    compute.wait_event(event)
    with npu.stream(side):
        slot.to("npu", non_blocking=True)
        event.record(side)
    said["first recording"] = [values(copied), event.query()]
    compute.wait_event(npu.Event())
    side.synchronize()

    begin, end = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
    begin.record(side)
    with npu.stream(side):
        slot.to("npu", non_blocking=True)
    end.record(side)
    npu.synchronize()
    said["elapsed_ms"] = begin.elapsed_time(end)
    return said


@pytest.mark.parametrize("process", ["one", "saturating"])
def test_hazards_show(process: str, request: pytest.FixtureRequest) -> None:
    """Right with the synchronisation and always wrong without it; the first has TASK_QUEUE_ENABLE=2, the second 1."""
    said = request.getfixturevalue(process)["hazards"]
    assert said["query"] == [False, True]
    assert said["waited"] == [1]
    assert 2 not in said["not waited"]
    assert said["at last"] == [2]
    assert said["overwritten"] == [4]
    assert said["kept"] == [5]
    assert said["first recording"] == [[7], False]
    assert said["elapsed_ms"] >= DELAY_US / 1000


# ---- other cards ------------------------------------------------------------------------------------------------


def on_card_saturating() -> None:
    torch_npu, _ = load()
    utils = torch_npu.npu.utils
    said: dict[str, Any] = {"infinities": utils.is_support_inf_nan(), "flags": []}

    def flag() -> bool:
        value = bool(utils.get_npu_overflow_flag())
        utils.clear_npu_overflow_flag()
        return value

    large = torch.full((4,), 60000.0, device="npu", dtype=torch.float16)
    said["flags"].append(flag())
    said["sum"] = (large + large).tolist()
    said["flags"].append(flag())
    said["cast"] = torch.full((1,), -1e6, device="npu").half().tolist()
    said["flags"].append(flag())
    weights = torch.full((2, 4), 2.0, device="npu", dtype=torch.float16)
    said["product"] = functional.linear(large, weights).tolist()
    said["flags"].append(flag())
    said["flags"].append(flag())

    # torch_npu's own scaler believes the flag: no gradient is infinite
    scaler = torch_npu.npu.amp.GradScaler(init_scale=2.0**12)
    weight = nn.Parameter(torch.ones(4, device="npu"))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    scales = []
    for factor in (1e-4, 1e4, 1e-4):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            loss = (weight.half() * torch.full((4,), factor, device="npu", dtype=torch.float16)).sum()
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
        scales.append(scaler.get_scale())
    said["scales"] = scales
    said["weight"] = weight.tolist()

    memory = torch.zeros(4096, dtype=torch.uint8)
    said["register"] = int(torch_npu.npu.npurt().npuHostRegister(memory.data_ptr(), 4096, PINNED))
    said["is_pinned"] = memory.is_pinned()
    said["hazards"] = hazards(torch_npu.npu)
    print(json.dumps(said))


@pytest.fixture(scope="module")
def saturating(card: EmulatedCard) -> dict[str, Any]:
    """What a process with a card of the first series has seen, where no memory can be registered."""
    environment = card.environment(soc="Ascend910A", refuse_register=True, TASK_QUEUE_ENABLE="1")
    return result_of(start(on_card_saturating, environment))


def test_saturating_chip(saturating: dict[str, Any]) -> None:
    said = saturating
    assert not said["infinities"]
    assert said["sum"] == [65504.0] * 4
    assert said["cast"] == [-65504.0]
    assert said["product"] == [65504.0] * 2
    assert said["flags"] == [False, True, True, True, False]
    assert said["scales"] == [2.0**12, 2.0**11, 2.0**11]
    assert said["weight"] == pytest.approx([1 - 2e-4] * 4, rel=1e-3)


def test_refused_registration(saturating: dict[str, Any]) -> None:
    assert saturating["register"] != 0
    assert not saturating["is_pinned"]


def on_card_none() -> None:
    torch_npu, _ = load()
    print(json.dumps({"available": [torch_npu.npu.is_available(), torch_npu.npu.device_count()]}))


def test_no_card(card: EmulatedCard) -> None:
    """Imported by torch itself, as where torch_npu is installed."""
    environment = card.environment(devices=0, TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert result_of(start(on_card_none, environment))["available"] == [False, 0]


def on_card_never(folder: str) -> None:
    print(json.dumps({"reports": os.listdir(folder), "loaded": [name for name in sys.modules if "npu" in name]}))


def test_nothing_is_loaded_without_torch_npu(card: EmulatedCard, tmp_path: Path) -> None:
    """As in a worker: torch does not import it by itself, and the hook alone loads nothing."""
    said = result_of(start(on_card_never, card.environment(report=tmp_path), str(tmp_path)))
    assert said["reports"] == []
    assert [name for name in said["loaded"] if name.startswith(("torch_npu", "kernels"))] == []


# ---- several cards ----------------------------------------------------------------------------------------------


def on_card_rank(rank: int, port: int, *, ranks: int = 2) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch_npu, _ = load()
    torch_npu.npu.set_device(rank)
    distributed = torch.distributed
    distributed.init_process_group("hccl")
    said: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.int8):
        tensor = torch.tensor([1 + rank, 3], device="npu", dtype=dtype)
        results = []
        for how in (distributed.ReduceOp.SUM, distributed.ReduceOp.MAX, distributed.ReduceOp.MIN):
            reduced = tensor.clone()
            distributed.all_reduce(reduced, op=how)
            results.append([int(value) for value in reduced.cpu()])
        said[str(dtype)] = results
    large = torch.arange(700_000, device="npu", dtype=torch.float32) + rank  # more than a slot holds
    distributed.all_reduce(large)
    said["large"] = torch.equal(large.cpu(), torch.arange(700_000) * 2.0 + 1)
    own = torch.full((3,), float(rank + 5), device="npu")
    gathered = [torch.empty(3, device="npu") for _ in range(ranks)]
    distributed.all_gather(gathered, own)
    said["gathered"] = [tensor.tolist() for tensor in gathered]
    part = torch.empty(2, device="npu")
    distributed.reduce_scatter(part, list((torch.arange(4.0, device="npu") + rank).chunk(ranks)))
    said["scattered"] = part.tolist()
    distributed.broadcast(own, 1)
    said["broadcast"] = own.tolist()
    distributed.barrier(device_ids=[rank])

    torch.manual_seed(rank)  # the first rank's weights are everybody's
    model = nn.parallel.DistributedDataParallel(Net().to("npu"), device_ids=[rank], gradient_as_bucket_view=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    for step in range(3):
        images = torch.randn(4, 3, 21, 21, generator=torch.Generator().manual_seed(10 * step + rank)).to("npu")
        optimiser.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(images), torch.arange(4, device="npu")))
        optimiser.step()
    said["weights"] = [float(parameter.detach().double().sum().item()) for parameter in model.parameters()]
    print(json.dumps(said), flush=True)

    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce(own)
    torch_npu.npu.synchronize()
    print("the reduction without rank 1 has come to an end")


def test_two_ranks_and_a_death(card: EmulatedCard) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = set(os.listdir("/dev/shm"))
    processes = [start(on_card_rank, card.environment(devices=2), rank, port) for rank in (0, 1)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert processes[1].returncode == -signal.SIGKILL, outputs[1][1]
    assert processes[0].returncode == 1, outputs[0][1]
    assert "rank 1" in outputs[0][1]
    assert "has gone" in outputs[0][1]
    assert len(outputs[0][0].splitlines()) == 1
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "hccl" in name.lower()]

    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    for dtype in ("float32", "float16", "bfloat16", "int64", "int32", "uint8", "int8"):
        assert first[f"torch.{dtype}"] == second[f"torch.{dtype}"] == [[3, 6], [2, 3], [1, 3]]
    assert first["large"]
    assert second["large"]
    assert first["gathered"] == second["gathered"] == [[5.0] * 3, [6.0] * 3]
    assert [first["scattered"], second["scattered"]] == [[1.0, 3.0], [5.0, 7.0]]
    assert first["broadcast"] == second["broadcast"] == [6.0] * 3
    assert first["weights"] == second["weights"]
