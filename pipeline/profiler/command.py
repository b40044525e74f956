"""The command line of tools/profile_loader.py (installed: headrace-profile)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import PipelineConfig
from ..console import run_tool
from ..errors import ConfigError, DataError
from ..files import atomic_write
from ..host import available_cores
from ..place import local_folder
from .bench import Bench, Host
from .disk import read_speed
from .findings import write_report
from .foreign import profile_named
from .machine import read_machine
from .on_device import OnDevice
from .page import write_page
from .plan import Plan
from .planner import Cost, make_plan
from .remedies import Place
from .report import Report
from .text import write_text
from .trace import Counter, Span, SpanTrack, WorkerTrack, write_trace
from .trial import try_out

NPU = 474.6  # images/s of one Ascend NPU on InceptionV4, as published
Say = Callable[[str], None]
Trainer = Callable[[str, PipelineConfig, float, Sequence[str], Say], OnDevice]

EXAMPLE = """example: eight NPUs that each train 474.6 images/s
  python tools/profile_loader.py --shards /data/shards --demand 474.6 --devices 8 --html report.html
the device that is here:
  python tools/profile_loader.py --shards /data/shards --device auto
a loader that is not ours, under its own step:
  headrace-profile --loader mytrain:make_loader --step mytrain:make_step --data /data/imagenet
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags. Raises ConfigError for what makes no sense."""
    parser = argparse.ArgumentParser(
        prog="profile_loader",
        description="Why is my accelerator starving? Measures what this host gives, says what stands in the way, and "
        "what each remedy is worth.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shards", metavar="DST", help="a folder of shards")
    add("--data", metavar="SRC", help="an ImageNet folder")
    add("--loader", metavar="MODULE:FUNCTION", help="somebody else's: a function that returns an iterable of batches")
    add("--step", metavar="MODULE:FUNCTION", help="with --loader: a function that returns the step, which is called "
        "with a batch (default: one that takes --demand images/s)")  # fmt: skip
    add("--demand", metavar="IMG_PER_S", type=float,
        help="what one device trains (default: 474.6, an Ascend NPU; with --device: measured)")  # fmt: skip
    add("--devices", metavar="N", type=int, default=1, help="devices that this host feeds (default: 1)")
    add("--device", metavar="D", help="measure a real one too: auto, npu, cuda, cpu. Flags of train.py may follow "
        "behind --, such as -- --amp --blocks 1,1,1")  # fmt: skip
    add("--seconds", metavar="S", type=float, default=20.0, help="how long to measure (default: 20; and some 20 more "
        "to start processes and to make shards of a few pictures)")  # fmt: skip
    add("--image-size", metavar="PX", type=int, default=299, help="default: 299")
    add("--batch-size", metavar="B", type=int, default=64, help="of one device (default: 64)")
    add("--backend", default="auto", help="auto, pillow, dali")
    add("--workers", metavar="N", type=int, help="processes that decode (default: one for each core)")
    add("--split", default="train", help="default: train")
    add("--verify", action="store_true", help="apply the first remedy, measure again, and compare")
    add("--plan", action="store_true", help="say which host feeds --devices, with which settings")
    add("--cores", metavar="N", type=float, help="of the host to plan for (default: this one's)")
    add("--json", metavar="F", type=Path, help="write the report to a file")
    add("--html", metavar="F", type=Path, help="write it as a page")
    add("--trace", metavar="F", type=Path, help="write what each worker did, for ui.perfetto.dev")
    add("train_flags", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("demand", "devices", "seconds", "cores"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} must be above 0, was {value}")
    if args.train_flags and not args.device:
        raise ConfigError(f"{' '.join(args.train_flags)}: flags behind -- are train.py's, and want a --device")
    if args.device and args.demand:
        raise ConfigError("--device measures what it takes: leave out --demand, or --device")
    if args.step and not args.loader:
        raise ConfigError("--step goes with --loader")
    local_folder(args.shards or args.data or "", "profile_loader")
    return args


def run(argv: Sequence[str] | None = None, trainer: Trainer | None = None) -> int:
    """Measure, show, and write the files. ``trainer`` measures a real device: the tool in the checkout has one."""
    start = time.monotonic()
    args = parse(argv)
    if args.loader:
        return run_foreign(args)
    if args.device and not trainer:
        raise ConfigError("--device trains with train.py: python tools/profile_loader.py, from the checkout")
    config = PipelineConfig(
        shards=args.shards,
        data=args.data,
        split=args.split,
        image_size=args.image_size,
        batch_size=args.batch_size,
        backend=args.backend,
        workers=args.workers or available_cores(),
    )

    def say(what: str) -> None:
        print(f"{time.monotonic() - start:5.1f} s  {what}", file=sys.stderr, flush=True)

    device = None
    if trainer and args.device:
        device = trainer(args.device, config, args.seconds, args.train_flags, say)
    demand = device.synthetic.images_per_s if device else args.demand or NPU
    report, host = profile_host(
        config,
        demand_per_device=demand,
        devices=args.devices,
        device=device,
        seconds=args.seconds,
        verify=args.verify,
        say=say,
    )
    plan = plan_of(report, host, config, args.cores) if args.plan else None
    print(write_text(report))
    if plan:
        print(f"\n{plan}")
    if args.html:
        with atomic_write(args.html) as file:
            file.write(write_page(report).encode())
    if args.trace:
        trace_of(host, args.trace)
    if args.json:
        with atomic_write(args.json) as file:
            content = report.as_json() | ({"plan": plan.as_json()} if plan else {})
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    return 0


def run_foreign(args: argparse.Namespace) -> int:
    """Somebody else's loader."""
    report = profile_named(
        args.loader,
        args.step,
        seconds=args.seconds,
        demand=args.demand or NPU * args.devices,
        data=args.data or args.shards,
    )
    print(report)
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(report.as_json(), indent=1).encode() + b"\n")
    return 0


def profile_host(
    config: PipelineConfig,
    *,
    demand_per_device: float,
    devices: int,
    device: OnDevice | None = None,
    seconds: float = 20.0,
    verify: bool = False,
    say: Say = lambda _: None,
) -> tuple[Report, Host]:
    """The host side, and the report of it all. Raises ConfigError and DataError."""
    machine = read_machine()
    host = Bench(config, demand=demand_per_device * devices, seconds=seconds, say=say).measure()
    say("the disk")
    disk_mb_per_s, disk = _disk(host, seconds)
    cached = (
        "unknown"
        if host.usual.cached is None
        else f"held {100 * host.usual.cached:.0f} % of the files at the beginning"
    )
    report, candidates = write_report(
        config,
        host,
        device,
        demand_per_device=demand_per_device,
        devices=devices,
        machine=machine,
        place=Place(
            flag="--shards" if config.shards is not None else "--data",
            path=str(config.shards if config.shards is not None else config.data),
            dataset_bytes=host.usual.samples * host.usual.run.bytes,
            memory_bytes=machine.memory_for_us,
        ),
        disk_mb_per_s=disk_mb_per_s,
        conditions=(("page cache", cached), ("disk", disk)),
    )
    if verify:
        report = dataclasses.replace(report, verified=try_out(config, candidates, report.supply, seconds / 4, say))
    return report, host


def _disk(host: Host, seconds: float) -> tuple[float | None, str]:
    """What the disk gives without the page cache, where that can be known, and how it was measured."""
    try:
        speed = read_speed(host.usual.files, seconds=min(2.0, seconds / 10), threads=host.usual.workers)
    except DataError as error:  # of a few small files nothing can be said
        return None, str(error)
    return speed.mb_per_s if speed.cold else None, f"{speed.mb_per_s:,.0f} MB/s: {speed.how}"


def trace_of(host: Host, path: Path) -> None:
    """Write what the workers and the loader did in the run at the demand."""
    usual = host.usual
    arrivals = usual.at_demand.arrivals
    waits = [Span("wait for batch", at.at_ns - at.wait_ns, at.at_ns) for at in arrivals if at.wait_ns]
    workers = [
        WorkerTrack(name=f"worker {number} (pid {pid})", events=events)
        for number, (pid, events) in enumerate(usual.recorded.items())
    ]
    ready = Counter(name="batches ready", values=[(arrival.at_ns, arrival.ready) for arrival in arrivals])
    write_trace(path, [SpanTrack(name="loader", spans=waits), *workers], [ready], usual.pictures.__getitem__)


def plan_of(report: Report, host: Host, config: PipelineConfig, cores: float | None) -> Plan:
    """Which host feeds the devices, from the costs that were measured here."""
    place = shlex.quote(str(config.shards or config.data))
    as_is = f"--shards {place}" if config.shards is not None else f"--data {place}"
    source = "SRC" if config.shards is not None else place
    made = {
        "crop": ("crop-addressed, the same pixels", f"python tools/make_shards.py {source} DST"),
        "recode": ("re-encoded smaller", f"python tools/make_shards.py {source} DST --jpeg recode"),
    }
    us, sample = host.usual.run.cpu_us, host.usual.ledger.cpu_us
    costs = {"as they are": Cost(mean_us=us, sample_us=sample, place=as_is, bytes_per_image=host.usual.run.bytes)}
    for name, (title, make) in made.items():
        if other := host.other.get(name):
            cheaper = us / other.cheaper
            costs[title] = Cost(mean_us=cheaper, sample_us=sample, make=make, bytes_per_image=other.bytes)
    return make_plan(
        costs,
        machine=read_machine(),
        measured_with=host.usual.workers,
        devices=report.devices,
        demand_per_device=report.demand_per_device,
        cores=cores,
        batch_size=config.batch_size,
        image_size=config.image_size,
    )


def main() -> None:
    """The console entry."""
    run_tool("profile_loader", run)
