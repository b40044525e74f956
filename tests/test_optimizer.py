"""The optimiser's steps against apex's definition: the levels, overflows, clipping, and what a step costs."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.by_hand import (
    BF16,
    DECAY,
    HALF,
    LR,
    MOMENTUM,
    OVERFLOWING,
    ByHand,
    Calls,
    Net,
    Training,
    batches,
    everything,
    momenta,
    same_bits,
)
from tests.test_loss_scale import Flag


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("overflows", [(), (0,), (0, 1, 4)])
def test_o2_is_apexs_bit_for_bit(dtype: torch.dtype, overflows: tuple[int, ...], channels_last: bool) -> None:
    net = Net()
    if channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    theirs = ByHand(copy.deepcopy(net), dtype)
    ours = Training(net, dtype=dtype, loss_scale="dynamic")
    for n, batch in enumerate(batches(7, channels_last)):
        factor = OVERFLOWING if n in overflows else 1.0
        before = everything(ours)
        assert torch.equal(ours.step(*batch, factor=factor), theirs.step(*batch, factor=factor))
        same_bits(ours, theirs)
        unchanged = [torch.equal(a, b) for a, b in zip(before, everything(ours), strict=True)]
        assert all(unchanged) == (n in overflows)
    assert theirs.skipped == len(overflows)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_o2_under_a_static_scale(scale: float) -> None:
    net = Net()
    theirs = ByHand(copy.deepcopy(net), HALF, scale, dynamic=False)
    ours = Training(net, loss_scale=scale)
    for batch in batches(4):
        assert torch.equal(ours.step(*batch), theirs.step(*batch))
        same_bits(ours, theirs)
    ours.step(*batches(1)[0], factor=math.inf)
    assert ours.optimizer.skipped == 0
    assert not ours.optimizer.weights()["linear.weight"].isfinite().all(), "as in apex, nobody looks"


def test_usual_numbers_too() -> None:
    """With products that are not exact, the first step agrees to fp32's rounding."""
    net, (batch,) = Net(), batches(1)
    ours = Training(net, lr=0.1, momentum=0.9, weight_decay=4e-5)
    start = {name: p.detach().double() for name, p in net.named_parameters()}
    ours.step(*batch)
    weights = ours.optimizer.weights()
    for name, p in net.named_parameters():
        if p.grad is not None:
            gradient = p.grad.double() / (65536 if p.dtype == HALF else 1)
            want = start[name] - 0.1 * (gradient + 4e-5 * start[name])
            torch.testing.assert_close(weights[name].double(), want, rtol=1e-6, atol=1e-8)


def test_small_steps_add_up_in_the_masters() -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    optimizer = Training(net, loss_scale=1.0, weight_decay=0.0, momentum=0.0, lr=2.0**-13).optimizer
    for n in range(1, 9):  # half has 2**-11 between 0.5 and 1
        optimizer.backward(net(torch.ones(1, 1)).sum())
        optimizer.step()
        assert optimizer.weights()["weight"].item() == 1 - n * 2.0**-13
    assert net.weight.item() == 1 - 2.0**-10


def test_momentum_is_zero_after_a_skipped_first_step() -> None:
    ours = Training(Net())
    assert all(not m.any() for m in momenta(ours.optimizer))
    ours.step(*batches(1)[0], factor=OVERFLOWING)
    assert len(momenta(ours.optimizer)) == len([*ours.net.parameters()])
    assert all(not m.any() for m in momenta(ours.optimizer))


def test_the_scale_grows_after_2000_clean_steps_and_not_past_the_cap() -> None:
    net = nn.Linear(2, 1)
    optimizer = Training(net, lr=0.0).optimizer
    optimizer.load_amp_state_dict({"loss_scaler0": {"loss_scale": 2.0**23, "unskipped": 0}})
    x = torch.full((1, 2), 2.0**-20)
    seen = []
    for n in range(1, 4001):
        optimizer.backward(net(x).sum() * 2.0**-16)
        optimizer.step()
        if n in (1999, 2000, 3999, 4000):
            seen.append(tuple(optimizer.amp_state_dict()["loss_scaler0"].values()))
    assert seen == [(2.0**23, 1999), (2.0**24, 0), (2.0**24, 1999), (2.0**24, 0)]
    assert optimizer.skipped == 0


def test_clipping_is_of_unscaled_gradients_by_the_masters() -> None:
    net = Net()
    theirs = ByHand(copy.deepcopy(net), HALF, clip=0.02)
    free, ours = Training(copy.deepcopy(net)), Training(net)
    for batch in batches(3):
        free.step(*batch)
        assert torch.equal(ours.step(*batch, clip=0.02), theirs.step(*batch))
        same_bits(ours, theirs)
    assert not torch.equal(ours.optimizer.weights()["conv.weight"], free.optimizer.weights()["conv.weight"])


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    net = Net()
    theirs, ours = ByHand(copy.deepcopy(net), HALF), Training(net)
    used = [True, False, True, False, False]
    for n, (batch, spare) in enumerate(zip(batches(5), used, strict=True)):
        factor = OVERFLOWING if n == 2 else 1.0  # what it left behind must not count as an overflow of the next
        before = ours.optimizer.weights()["spare.weight"]
        ours.step(*batch, factor=factor, spare=spare)
        theirs.step(*batch, factor=factor, spare=spare)
        same_bits(ours, theirs)
        assert torch.equal(before, ours.optimizer.weights()["spare.weight"]) == (n != 0)
    assert theirs.skipped == 1


def test_frozen_parameters_stay() -> None:
    net = Net()
    net.conv.weight.requires_grad_(False)
    ours = Training(net)
    before = ours.optimizer.weights()
    ours.step(*batches(1)[0])
    after = ours.optimizer.weights()
    assert torch.equal(before["conv.weight"], after["conv.weight"])
    assert not torch.equal(before["point.weight"], after["point.weight"])


@pytest.mark.parametrize("level", ["O0", "O2", "O3"])
def test_gradients_of_other_strides(level: str) -> None:
    """Layouts as no autograd would give them; a kernel that walks by address would mix up the elements."""
    steps = []
    for channels_last in (False, True):
        net = Net()
        if channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ours = Training(net, level, loss_scale=1.0)
        for p in net.parameters():
            values = torch.linspace(-1, 1, p.numel()).view(p.shape)
            p.grad = values.to(p.dtype)
        ours.optimizer.step()
        steps.append(ours.optimizer.weights())
    assert all(torch.equal(a, b) for a, b in zip(steps[0].values(), steps[1].values(), strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_o0_is_plain_sgd_and_nothing_else(channels_last: bool) -> None:
    net, calls = Net(), Calls()
    if channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours, plain = Training(net, "O0"), copy.deepcopy(net)
    sgd = torch.optim.SGD(plain.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for n, batch in enumerate(batches(4, channels_last)):
        ours.optimizer.lr = sgd.param_groups[0]["lr"] = LR / 2**n
        loss = cross_entropy(plain(batch[0]), batch[1])
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        mine = ours.loss(*batch)
        assert ours.optimizer._scale.apply(mine) is mine
        ours.optimizer.backward(mine)
        with calls:
            ours.optimizer.step()
        assert torch.equal(mine, loss)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    assert calls.names == ["_fused_sgd_"] * 4


@pytest.mark.parametrize("overflows", [(), (0, 3)])
def test_o1_is_autocast_and_torchs_own_scaler(overflows: tuple[int, ...]) -> None:
    net = Net()
    plain = copy.deepcopy(net)
    ours = Training(net, "O1")
    sgd = torch.optim.SGD(plain.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    scaler = torch.amp.GradScaler("cpu")
    for n, batch in enumerate(batches(6)):
        factor = OVERFLOWING if n in overflows else 1.0
        with torch.autocast("cpu", HALF):
            logits = plain(batch[0])
        loss = cross_entropy(logits.float(), batch[1]) * factor
        sgd.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(sgd)
        scaler.update()
        assert torch.equal(ours.step(*batch, factor=factor), loss)
        assert ours.optimizer.scale == scaler.get_scale()
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    assert ours.optimizer.skipped == len(overflows)


@pytest.mark.parametrize("loss_scale", [None, 256.0, "dynamic"])
def test_o3_steps_the_half_weights_themselves(loss_scale: Any) -> None:
    net = Net()
    ours = Training(net, "O3", loss_scale=loss_scale)
    batch = batches(1)[0]
    loss = ours.loss(*batch)
    scale = ours.optimizer.scale
    assert scale == {None: 1.0, "dynamic": 65536.0}.get(loss_scale, 256.0)
    if loss_scale == "dynamic":
        loss = loss * 2.0**-6  # so that it does not overflow: there are no fp32 sums at O3
    plain = copy.deepcopy(net)
    ours.optimizer.backward(loss)
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    ours.optimizer.step()
    assert ours.optimizer.skipped == 0
    for name, p in plain.named_parameters():
        stepped = net.get_parameter(name)
        assert stepped.dtype == HALF
        if name in before:
            gradient = (before[name].float() / scale).half().float()
            want = p.float() - LR * (gradient + DECAY * p.float())
            # the kernel may keep fp32 between its operations or round each to half
            torch.testing.assert_close(stepped.float(), want, rtol=2e-3, atol=2e-6)
    if loss_scale == "dynamic":
        kept = everything(ours)
        ours.step(*batch, factor=OVERFLOWING)
        assert ours.optimizer.skipped == 1
        assert all(torch.equal(a, b) for a, b in zip(kept, everything(ours), strict=True))


def test_a_saturated_step_is_skipped() -> None:
    flag = Flag()
    ours = Training(Net(), overflow=flag)
    data = batches(3)
    ours.step(*data[0])
    assert ours.optimizer.skipped == 0, "what was raised before the run is not the step's"
    loss = ours.loss(*data[1])
    flag.up = True
    before = everything(ours)
    ours.optimizer.backward(loss)
    ours.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(ours), strict=True))
    assert (ours.optimizer.skipped, ours.optimizer.scale) == (1, 32768.0)
    ours.step(*data[2])
    assert ours.optimizer.skipped == 1


@pytest.mark.parametrize(("level", "loss_scale"), [("O1", None), ("O2", None), ("O2", 64.0), ("O3", "dynamic")])
def test_nothing_is_read_back_to_the_host(level: str, loss_scale: Any) -> None:
    calls = Calls()
    ours = Training(Net(), level, loss_scale=loss_scale, overflow=Flag())
    for n, batch in enumerate(batches(3)):
        loss = ours.loss(*batch, factor=OVERFLOWING if n == 1 else 1.0)
        with calls:
            ours.optimizer.backward(loss)
            ours.optimizer.step(clip_agc=0.05)
    assert ("_fused_sgd_" in calls.names) == (level != "O3")
    reads = {"_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "allclose", "masked_select"}
    assert not reads & set(calls.names)
    with calls:
        assert ours.optimizer.scale > 0
    assert loss_scale == 64.0 or "_local_scalar_dense" in calls.names, "the test can see a read"


def test_o2_adds_two_copies_and_one_check_to_a_step() -> None:
    calls = Calls()
    ours = Training(Net())
    loss = ours.loss(*batches(1)[0], spare=True)
    ours.optimizer.backward(loss)
    with calls:
        ours.optimizer.step()
    big = [name for name in calls.names if name.startswith(("_foreach", "_fused", "_amp_foreach"))]
    assert big == ["_foreach_copy_", "_amp_foreach_non_finite_check_and_unscale_", "_fused_sgd_", "_foreach_copy_"]


def test_without_momentum() -> None:
    net = Net()
    optimizer = Training(net, loss_scale=64.0, momentum=0.0).optimizer
    plain = {name: v.clone() for name, v in optimizer.weights().items()}
    loss = cross_entropy(net(batches(1)[0][0]), batches(1)[0][1])
    optimizer.backward(loss)
    optimizer.step()
    for name, p in net.named_parameters():
        if p.grad is not None:
            gradient = p.grad.float() / (64 if p.dtype == HALF else 1)
            want = plain[name] - LR * (gradient + DECAY * plain[name])
            assert torch.equal(optimizer.weights()[name], want)
    assert optimizer.state_dict()["state"] == {}


def test_without_momentum_an_overflow_is_skipped_too() -> None:
    ours = Training(Net(), momentum=0.0)
    for n, batch in enumerate(batches(3)):
        before = everything(ours)
        ours.step(*batch, factor=OVERFLOWING if n == 1 else 1.0)
        assert all(torch.equal(a, b) for a, b in zip(before, everything(ours), strict=True)) == (n == 1)
    assert (ours.optimizer.skipped, ours.optimizer.scale) == (1, 32768.0)
    state = ours.optimizer.state_dict()
    state["param_groups"][0]["momentum"] = MOMENTUM  # of a run that had some: it has its buffers from now on
    ours.optimizer.load_state_dict(state)
    assert all(not m.any() for m in momenta(ours.optimizer))
    assert len(momenta(ours.optimizer)) == len([*ours.net.parameters()])
