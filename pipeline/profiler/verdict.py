"""From what was measured to what is wrong: pure functions."""

from __future__ import annotations

import dataclasses

from .report import Cause, Share, Verdict

NOTHING = 0.03  # a smaller stall is no reason to change anything, nor surely more than noise
_STRAGGLING = 0.25  # of all CPU time, in the slowest hundredth of the pictures: ImageNet's have 3 to 4 %
_CROWDED = 1.15  # what the loader could gain if other programs left its cores alone, and is worth saying
_UNUSED = 0.15  # of the cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured. Rates in images/s; those of a run that was not made are None."""

    demand: float  # what the devices take: S0 of all of them
    stall: float  # of the time, the devices have nothing to do, in a run at that demand
    transfer: float | None  # S1: of batches that the host has ready
    replayed: float  # S2: of slots that nobody fills
    in_memory: float  # S3: of pictures in memory
    supply: float  # S4: as it is
    supply_low: float
    supply_high: float
    workers: int
    cores: float  # that this process may use
    ours: float  # of these cores, in use by the loader and its workers at S4
    others: float  # and by other programs
    taken: float  # of these, those for which the loader's processes waited
    slowest_share: float  # of all pictures' CPU time, that of the slowest hundredth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is wrong, and how sure that is."""

    verdict: Verdict
    cause: Cause
    confidence: str  # "high", or "low: why"


def divide(evidence: Evidence) -> tuple[Share, ...]:
    """The time of one picture, by what it is spent on; the shares' sum is 1.

    The stages work side by side, so a slower one adds to the time only what it takes longer than all before it. What
    the run at the demand stood idle beyond that (or below) is nobody's.
    """
    order = (
        ("transfer", evidence.transfer),
        ("hand-over", evidence.replayed),
        ("decode", evidence.in_memory),
        ("disk", evidence.supply),
    )
    longest = 1 / evidence.demand
    longer: dict[str, float] = {}
    for name, rate in order:
        time = max(longest, 1 / rate) if rate else longest
        longer[name] = time - longest
        longest = time
    idle = {name: time / longest for name, time in longer.items()}
    known = sum(idle.values())
    if known > evidence.stall:
        idle = {name: share * evidence.stall / known for name, share in idle.items()}
    rest = max(0.0, evidence.stall - known)
    shares = {"step": 1 - evidence.stall} | idle | {"unattributed": rest}
    return tuple(Share(name=name, fraction=fraction) for name, fraction in shares.items())


def judge(evidence: Evidence) -> Judgement:
    """The one thing to look at first."""
    shares = {share.name: share.fraction for share in divide(evidence)}
    confidence = _confidence(evidence)
    if evidence.stall < NOTHING:
        return Judgement(verdict="compute", cause="step", confidence=confidence)
    largest = max(("disk", "decode", "hand-over", "transfer"), key=lambda name: shares[name])
    if shares["unattributed"] > shares[largest]:  # enough on the whole, but not at every moment
        largest = "decode"
    if largest == "disk":
        return Judgement(verdict="io", cause="disk", confidence=confidence)
    if largest == "transfer":
        return Judgement(verdict="transfer", cause="transfer", confidence=confidence)
    cause: Cause = "hand-over" if largest == "hand-over" else _why_decoding_is_slow(evidence)
    return Judgement(verdict="cpu", cause=cause, confidence=confidence)


def _why_decoding_is_slow(evidence: Evidence) -> Cause:
    if evidence.slowest_share > _STRAGGLING:
        return "stragglers"
    unused = evidence.cores - evidence.ours - evidence.others
    if unused > _UNUSED * evidence.cores and evidence.workers < evidence.cores:
        return "workers"
    held = evidence.others if evidence.workers < evidence.cores else evidence.taken
    if (evidence.ours + held) / evidence.ours > _CROWDED:
        return "neighbour"
    return "decode"


def _confidence(evidence: Evidence) -> str:
    if evidence.supply_low < evidence.demand < evidence.supply_high:
        return "low: what the host gives varies around what the devices ask for"
    if evidence.supply_high > 1.5 * evidence.supply_low:
        return "low: the rate varied by half while it was measured"
    return "high"
