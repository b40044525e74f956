"""What the optimiser gives to a checkpoint and takes from it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.by_hand import (
    BF16,
    HALF,
    OVERFLOWING,
    Net,
    Training,
    batches,
    everything,
    momenta,
)


@pytest.mark.parametrize(("level", "dtype"), [("O0", HALF), ("O1", HALF), ("O1", BF16), ("O2", HALF), ("O2", BF16)])
def test_a_resumed_run_is_the_uninterrupted_one(level: str, dtype: torch.dtype) -> None:
    whole = Training(Net(), level, dtype)
    data = batches(8)
    for n, batch in enumerate(data[:4]):
        whole.step(*batch, factor=OVERFLOWING if n == 1 and whole.precision.loss_scale == "dynamic" else 1.0)
    file = io.BytesIO()
    torch.save(whole.checkpoint(), file)
    resumed = Training(Net(seed=7), level, dtype, lr=1.0)
    file.seek(0)
    resumed.resume(torch.load(file, weights_only=True))
    for batch in data[4:]:
        assert torch.equal(whole.step(*batch), resumed.step(*batch))
    for a, b in zip(everything(whole), everything(resumed), strict=True):
        assert torch.equal(a, b)
    assert whole.optimizer.amp_state_dict() == resumed.optimizer.amp_state_dict()
    if whole.precision.loss_scale == "dynamic":
        assert whole.optimizer.amp_state_dict() == {"loss_scaler0": {"loss_scale": 32768.0, "unskipped": 6}}
    else:
        assert whole.optimizer.amp_state_dict() == {}


def test_checkpoints_are_fp32_copies() -> None:
    for level in ("O0", "O1", "O2", "O3"):
        ours = Training(Net(), level, loss_scale=1.0)
        saved = ours.checkpoint()
        kept = copy.deepcopy(saved)
        assert list(saved["state_dict"]) == list(Net().state_dict())
        for name, value in saved["state_dict"].items():
            assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
            assert not value.requires_grad
        ours.step(*batches(1)[0])
        assert all(torch.equal(v, kept["state_dict"][name]) for name, v in saved["state_dict"].items())
        for index, of in saved["optimizer"]["state"].items():
            assert of["momentum_buffer"].dtype == torch.float32
            assert torch.equal(of["momentum_buffer"], kept["optimizer"]["state"][index]["momentum_buffer"])


def test_weights_load_exactly_into_masters_of_another_layout_and_level() -> None:
    source = Training(Net(seed=3))
    source.step(*batches(1)[0])
    saved = source.checkpoint()
    last = Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for net, level in ((last, "O2"), (Net(), "O0"), (Net(), "O3")):
        ours = Training(net, level, loss_scale=1.0)
        ours.resume(saved)
        for name, value in ours.optimizer.weights().items():
            want = saved["state_dict"][name]
            if level == "O3" and value.is_floating_point():
                want = want.half().float()
            assert torch.equal(value, want), name
        if level != "O3":
            assert all(
                torch.equal(a, b) for a, b in zip(momenta(ours.optimizer), momenta(source.optimizer), strict=True)
            )
        for name, p in net.named_parameters():
            assert torch.equal(p, saved["state_dict"][name].to(p.dtype))


def test_tied_parameters_are_one_master_and_one_saved_tensor() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    optimizer = Training(net).optimizer
    optimizer.backward(net(torch.ones(1, 3)).sum())
    optimizer.step()
    assert net[1].weight is net[0].weight
    weights = optimizer.weights()
    assert weights["0.weight"] is weights["1.weight"]
    assert len(momenta(optimizer)) == 3


def test_weights_and_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    ours = Training(Net())
    ours.step(*batches(1)[0])
    before, saved = everything(ours), ours.checkpoint()
    weights, state = saved["state_dict"], saved["optimizer"]
    group = state["param_groups"][0]
    bad_weights = [
        {name: value for name, value in weights.items() if name != "linear.bias"},
        weights | {"extra": torch.zeros(1)},
        weights | {"linear.bias": torch.zeros(1)},  # a shape that would broadcast
    ]
    bad_states = [
        {**state, "param_groups": [group, group]},
        {**state, "param_groups": [group | {"params": [0]}]},
        {**state, "param_groups": [group | {"nesterov": True}]},
        {**state, "state": state["state"] | {2: {"momentum_buffer": torch.zeros(1)}}},
    ]
    calls: list[tuple[Callable[[Any], None], Any]] = [(ours.optimizer.load_weights, bad) for bad in bad_weights]
    for call, bad in calls + [(ours.optimizer.load_state_dict, bad) for bad in bad_states]:
        with pytest.raises(ValueError, match=r"only in the model|wanted|Nesterov"):
            call(bad)
        assert all(torch.equal(a, b) for a, b in zip(before, everything(ours), strict=True))


def test_the_state_of_a_plain_sgd_loads() -> None:
    net = Net()
    plain = torch.optim.SGD(net.parameters(), lr=0.25, momentum=0.75, weight_decay=0.5)
    cross_entropy(net(batches(1)[0][0]), batches(1)[0][1]).backward()  # type: ignore[no-untyped-call]
    plain.step()
    state = plain.state_dict()
    assert len(state["state"]) < len([*net.parameters()]), "the spare layer has no momentum yet"
    optimizer = Training(Net()).optimizer
    optimizer.load_state_dict(state)
    assert optimizer.lr == 0.25
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["momentum"], group["weight_decay"], group["fused"]) == (0.75, 0.5, True), "fused: it does the skip"
    for index, momentum in enumerate(momenta(optimizer)):
        assert torch.equal(momentum, state["state"].get(index, {}).get("momentum_buffer", torch.zeros_like(momentum)))
