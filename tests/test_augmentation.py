"""Mixup, CutMix, erasing: each against its definition, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.augmentation import Augmentation, Augmented

LABELS = torch.arange(8)


def pictures(seed: int = 0) -> torch.Tensor:
    """Every pixel is one of a kind, so that one can tell where it comes from."""
    return torch.randperm(8 * 3 * 20 * 30, generator=torch.Generator().manual_seed(seed)).float().view(8, 3, 20, 30) + 1


def augmented(position: int = 8, **how: float) -> Augmented:
    return Augmentation(**how)(pictures(), LABELS, epoch=0, position=position)  # type: ignore[arg-type]


def test_nothing_is_done_where_nothing_was_asked_for() -> None:
    got = augmented()
    assert torch.equal(got.images, pictures())
    assert got.share == 1
    logits = torch.randn(8, 10)
    assert torch.equal(got.loss(nn.CrossEntropyLoss(), logits), nn.functional.cross_entropy(logits, LABELS))


def test_mixup_blends_each_picture_with_its_partner() -> None:
    shares = []
    for position in range(200):
        got = augmented(position, mixup=0.4)
        want = got.share * pictures() + (1 - got.share) * pictures().flip(0)
        torch.testing.assert_close(got.images, want, rtol=1e-5, atol=1e-2)
        assert torch.equal(got.others, LABELS.flip(0))
        shares.append(got.share)
    assert len(set(shares)) == 200
    assert sum(shares) / 200 == pytest.approx(0.5, abs=0.1)
    logits, loss = torch.randn(8, 10), nn.CrossEntropyLoss(label_smoothing=0.1)
    want_loss = got.share * loss(logits, LABELS) + (1 - got.share) * loss(logits, LABELS.flip(0))
    torch.testing.assert_close(got.loss(loss, logits), want_loss)


def test_cutmix_puts_one_rectangle_of_the_partner_in_and_counts_its_pixels() -> None:
    sizes = set()
    for position in range(200):
        got = augmented(position, cutmix=1.0)
        partner = got.images == pictures().flip(0)
        assert torch.equal(got.images, torch.where(partner, pictures().flip(0), pictures()))
        where = partner[0, 0]
        assert (partner == where).all(), "one rectangle for all pictures and channels"
        rows, columns = where.any(1), where.any(0)
        assert torch.equal(where, rows[:, None] & columns[None, :])
        for line in (rows, columns):
            assert line.diff().count_nonzero() <= 2, "no hole in it"
        assert got.share == pytest.approx(1 - where.float().mean().item())
        sizes.add(where.sum().item())
    assert len(sizes) > 100
    assert min(sizes) < 60 < 400 < max(sizes)


def test_of_both_each_batch_gets_one() -> None:
    cut = [bool((augmented(p, mixup=1.0, cutmix=1.0).images % 1 == 0).all()) for p in range(200)]
    assert 60 < sum(cut) < 140


def test_erasing_sets_one_rectangle_to_zero_in_as_many_pictures_as_it_should() -> None:
    areas = []
    for position in range(100):
        got = augmented(position, erase=0.25)
        for image in got.images == 0:
            where = image[0]
            assert (image == where).all()
            assert torch.equal(where, where.any(1)[:, None] & where.any(0)[None, :])
            areas.append(where.float().mean().item())
        assert torch.equal(got.images, torch.where(got.images == 0, 0, pictures()))
    erased = [area for area in areas if area]
    assert len(erased) / len(areas) == pytest.approx(0.25, abs=0.05)
    assert 0.01 < min(erased) < 0.05
    assert 0.3 < max(erased) < 0.45


def test_draws_hang_on_seed_epoch_position_and_rank_alone() -> None:
    def share(seed: int = 0, epoch: int = 0, position: int = 8, rank: int = 0) -> float:
        return Augmentation(mixup=1.0, seed=seed)(pictures(), LABELS, epoch=epoch, position=position, rank=rank).share

    assert share() == share()
    assert len({share(), share(seed=1), share(epoch=1), share(position=16), share(rank=1)}) == 5


def test_a_batch_of_one_keeps_its_picture_and_its_label() -> None:
    one = pictures()[:1]
    got = Augmentation(mixup=1.0)(one.clone(), LABELS[:1], epoch=0, position=1)
    torch.testing.assert_close(got.images, one)
    assert torch.equal(got.others, got.labels)


@pytest.mark.parametrize(("most", "sizes"), [(9, [8]), (8, [8]), (7, [4, 4]), (3, [3, 3, 2]), (1, [1] * 8)])
def test_parts_are_the_whole(most: int, sizes: list[int]) -> None:
    whole = augmented(mixup=1.0)
    parts = whole.parts(most)
    assert [len(part.labels) for part in parts] == sizes
    for name in ("images", "labels", "others"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.share for part in parts} == {whole.share}
