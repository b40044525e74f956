"""From the measurements to the report."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time

import numpy as np
import torch

from .. import __version__
from ..config import PipelineConfig
from .bench import Host, Run
from .forecast import forecast
from .machine import Machine
from .measure import WINDOWS
from .on_device import OnDevice, Speed
from .remedies import Candidate, Place, remedies
from .report import Cause, Need, Point, Rate, Remedy, Report, Stage
from .verdict import Evidence, Judgement, divide, judge

_ENOUGH = 0.97  # of the most that any number of workers gives: the knee
_IMAGE_BYTES = 3  # of a pixel on its way to the device


def write_report(
    config: PipelineConfig,
    host: Host,
    device: OnDevice | None,
    *,
    demand_per_device: float,
    devices: int,
    machine: Machine,
    place: Place,
    disk_mb_per_s: float | None = None,
    conditions: tuple[tuple[str, str], ...] = (),
) -> tuple[Report, tuple[Candidate, ...]]:
    """All that is known, in order; and the remedies once more, as they can be tried."""
    demand = demand_per_device * devices
    # One device stands for all: each has its own loader, on its part of the host.
    stall = host.usual.at_demand.stall
    if device and devices == 1:
        stall = device.stall
    evidence = Evidence(
        demand=demand,
        stall=stall,
        transfer=device.transferred.images_per_s * devices if device else None,
        replayed=host.replayed.images_per_s,
        in_memory=host.usual.run.images_per_s * host.in_memory.faster,
        supply=host.usual.run.images_per_s,
        supply_low=host.usual.run.taking.low,
        supply_high=host.usual.run.taking.high,
        workers=host.usual.workers,
        cores=machine.capacity,
        ours=host.usual.run.taking.use.ours_cores,
        others=host.usual.run.taking.use.others_cores,
        taken=host.usual.run.taking.use.taken_cores,
        slowest_share=host.usual.ledger.slowest_share,
    )
    judgement = judge(evidence)
    candidates = remedies(host, evidence, judgement.cause, place)
    found = tuple(candidate.remedy for candidate in candidates)
    arrivals = host.usual.at_demand.arrivals
    curve, knee = _curve(host, evidence, config)
    report = Report(
        verdict=judgement.verdict,
        cause=judgement.cause,
        sentence=_sentence(judgement, evidence, host, devices, found[0] if found else None),
        confidence=judgement.confidence,
        demand=demand,
        demand_per_device=demand_per_device,
        devices=devices,
        demand_source=f"measured on {device.name}" if device else "--demand",
        supply=evidence.supply,
        supply_low=evidence.supply_low,
        supply_high=evidence.supply_high,
        stall_fraction=stall,
        rates=_rates(host, device, devices, demand),
        shares=divide(evidence),
        stages=_stages(host),
        needs=_needs(host, device, demand, machine, place, disk_mb_per_s, config.image_size),
        slots=config.slots,
        occupancy=tuple(((arrival.at_ns - arrivals[0].at_ns) / 1e9, arrival.ready) for arrival in arrivals),
        waits_ms=tuple(arrival.wait_ns / 1e6 for arrival in arrivals),
        slow_samples=host.usual.slowest,
        costs=host.usual.costs,
        workers=host.usual.workers,
        curve=curve,
        knee=knee,
        remedies=found,
        conditions=(*_conditions(config, host, machine), *conditions),
    )
    return report, candidates


def _rates(host: Host, device: OnDevice | None, devices: int, demand: float) -> tuple[Rate, ...]:
    together = f"{devices} such devices" if devices > 1 else ""
    if device:
        synthetic = _device_rate("S0", "the step alone, batches on the device", device.synthetic, devices, together)
        copied = _device_rate("S1", "and their way there, host batches ready", device.transferred, devices, together)
    else:
        synthetic = _unmeasured("S0", "the step alone, batches on the device", f"--demand: {demand:,.1f} images/s")
        copied = _unmeasured("S1", "and their way there, host batches ready", "no device was named: --device")
    return (
        synthetic,
        copied,
        _rate("S2", "batches moved about that nobody decodes", host.replayed, ""),
        _in_memory(host),
        _rate("S4", "as it is", host.usual.run, ""),
    )


def _rate(name: str, label: str, run: Run, note: str) -> Rate:
    taking = run.taking
    return Rate(
        name=name,
        label=label,
        images_per_s=taking.images_per_s,
        low=taking.low,
        high=taking.high,
        repeats=len(taking.rates),
        note=note,
    )


def _in_memory(host: Host) -> Rate:
    """Measured in turns with S4: brought to the rate that this has."""
    rates = [host.usual.run.images_per_s * ratio for ratio in host.in_memory.ratios]
    return Rate(
        name="S3",
        label="pictures prepared that lie in memory",
        images_per_s=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        repeats=len(rates),
        note="copies of some pictures",
    )


def _device_rate(name: str, label: str, speed: Speed, devices: int, note: str) -> Rate:
    return Rate(
        name=name,
        label=label,
        images_per_s=speed.images_per_s * devices,
        low=min(speed.rates) * devices,
        high=max(speed.rates) * devices,
        repeats=len(speed.rates),
        note=note,
    )


def _unmeasured(name: str, label: str, why: str) -> Rate:
    return Rate(name=name, label=label, images_per_s=None, low=None, high=None, repeats=0, note=why)


def _stages(host: Host) -> tuple[Stage, ...]:
    """Those of the workers, and what the process costs that takes the batches."""
    loader = host.usual.run.loader_us
    total = float(host.usual.ledger.cpu_us.mean()) + loader
    workers = [dataclasses.replace(stage, share=stage.cpu_us_per_image / total) for stage in host.usual.ledger.stages]
    mine = Stage(
        name="loader",
        process="loader",
        cpu_us_per_image=loader,
        share=loader / total,
        wall_us_per_image=loader,
        p50_us=None,
        p99_us=None,
    )
    return (*workers, mine)


def _needs(
    host: Host,
    device: OnDevice | None,
    demand: float,
    machine: Machine,
    place: Place,
    disk_mb_per_s: float | None,
    image_size: int,
) -> tuple[Need, ...]:
    picture, size = image_size * image_size * _IMAGE_BYTES, host.usual.run.bytes
    return (
        Need(
            name="cores",
            unit="cores",
            needed=demand * host.usual.run.cpu_us / 1e6,
            here=machine.capacity,
            how=f"{demand:,.0f} images/s x {host.usual.run.cpu_us:,.0f} CPU us",
        ),
        Need(
            name="disk",
            unit="MB/s",
            needed=demand * size / 1e6,
            here=disk_mb_per_s,
            how=f"{demand:,.0f} images/s x {size / 1e3:,.0f} kB, while they are not in memory",
        ),
        Need(
            name="memory",
            unit="GB",
            needed=place.dataset_bytes / 1e9,
            here=None if machine.memory_for_us is None else machine.memory_for_us / 1e9,
            how=f"{host.usual.samples:,} pictures x {size / 1e3:,.0f} kB, to be read from the disk only once",
        ),
        Need(
            name="transfer",
            unit="MB/s",
            needed=demand * picture / 1e6,
            here=device.transfer_mb_per_s if device else None,
            how=f"{demand:,.0f} images/s x {picture / 1e3:,.0f} kB of uint8, all devices together",
        ),
    )


def _curve(host: Host, evidence: Evidence, config: PipelineConfig) -> tuple[tuple[Point, ...], int | None]:
    """Throughput against workers: measured where it was, else forecast from the pictures' costs and brought to what
    was measured; and the fewest workers that give nearly all of it.
    """
    measured = {host.usual.workers: evidence.supply}
    measured |= {count: evidence.supply * other.faster for count, other in host.by_workers.items()}

    def simulated(workers: int) -> float:
        return forecast(
            host.usual.ledger.cpu_us,
            workers=workers,
            cores=max(0.1, evidence.cores - evidence.others),
            slots=config.slots,
            batch_size=config.batch_size,
            demand=None,
            loader_us_per_image=host.usual.run.loader_us,
            images=5_000,
        ).images_per_s

    as_measured = evidence.supply / simulated(host.usual.workers)
    most = max(host.usual.workers, round(1.5 * evidence.cores), 4)
    counts = set(np.geomspace(1, most, 12).round().astype(int).tolist()) | set(measured)
    points = tuple(
        Point(
            workers=count,
            images_per_s=measured.get(count) or as_measured * simulated(count),
            measured=count in measured,
        )
        for count in sorted(counts)
    )
    best = max(point.images_per_s for point in points)
    return points, next(point.workers for point in points if point.images_per_s >= _ENOUGH * best)


def _sentence(judgement: Judgement, evidence: Evidence, host: Host, devices: int, best: Remedy | None) -> str:
    """The answer: what is asked for, what is given, what that costs, and what helps most."""
    asked = f"{devices} device{'s ask' if devices > 1 else ' asks'} for {evidence.demand:,.0f} images/s"
    gives = f"this host gives {evidence.supply:,.0f} ({evidence.supply_low:,.0f} to {evidence.supply_high:,.0f})"
    if judgement.verdict == "compute":
        spare = evidence.supply / evidence.demand
        return f"NOT INPUT-BOUND: {asked}, {gives}, {spare:.1f} times that: the loader is not what limits them."
    what, why = _causes(evidence, host)[judgement.cause]
    idle = f"they stand idle {100 * evidence.stall:.0f} % of the time, because {why}."
    helps = ""
    if best:
        trained = evidence.supply
        if judgement.cause == "transfer":  # behind a slow bus that is less than the host gives
            trained = max(0.01, 1 - evidence.stall) * evidence.demand
        gain = best.predicted_images_per_s / trained
        helps = f" Best remedy: {best.action}: {gain:.1f} times as fast, {best.predicted_images_per_s:,.0f} images/s."
    return f"INPUT-BOUND ({what}): {asked}, {gives}: {idle}{helps}"


def _causes(evidence: Evidence, host: Host) -> dict[Cause, tuple[str, str]]:
    """What it is called, and the figure behind it."""
    cores = f"{evidence.cores:g} core{'s'[: evidence.cores != 1]}"
    disk, each_ms = evidence.supply * host.usual.run.bytes / 1e6, host.usual.run.cpu_us / 1e3
    return {
        "transfer": ("copy to the device", "a batch takes longer to the device than to be trained"),
        "hand-over": ("hand-over", "the process that takes the batches is busy with moving them"),
        "decode": (
            "CPU decode",
            f"a picture takes {each_ms:.2f} ms of its {cores}",
        ),
        "workers": ("too few workers", f"{host.usual.workers} of its {cores} decode"),
        "neighbour": ("other programs", f"other programs use {evidence.others:.1f} of its {cores}"),
        "stragglers": (
            "a few slow pictures",
            f"1 in 100 takes {100 * evidence.slowest_share:.0f} % of the time of all",
        ),
        "disk": (
            "disk",
            f"pictures arrive at {disk:,.0f} MB/s, and {evidence.in_memory:,.0f} a second could be decoded",
        ),
        "step": ("", ""),
    }


def _conditions(config: PipelineConfig, host: Host, machine: Machine) -> tuple[tuple[str, str], ...]:
    usual, taking = host.usual, host.usual.run.taking
    loader = (
        f"{usual.backend}, {usual.workers} workers, batches of {config.batch_size} at {config.image_size} px, "
        f"{config.slots} in the ring, split {config.split}, seed {config.seed}"
    )
    counted = (
        f"{taking.images:,} counted in {taking.seconds:.1f} s, of {usual.samples:,}; the first ring of batches and "
        "0.3 s are left out"
    )
    versions = f"headrace {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    return (
        ("when", time.strftime("%Y-%m-%d %H:%M")),
        ("host", str(machine)),
        ("loader", loader),
        ("pictures", counted),
        ("rates", f"medians of {WINDOWS} windows; other ways in turns with the way as it is"),
        ("run at the demand", f"{usual.asked:,.0f} images/s for {usual.at_demand.seconds:.1f} s"),
        ("other programs", f"{taking.use.others_cores:.2f} cores"),
        (
            "profiler",
            f"noting stages took {100 * usual.recording:.1f} % of the CPU time, in the run at the demand only",
        ),
        ("versions", f"{versions}, numpy {np.__version__}"),
    )
