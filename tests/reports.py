"""Reports to draw: one as an eight-card server gives it, and what is at the edges."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pipeline.profiler.report import Need, Point, Rate, Remedy, Report, Share, SlowSample, Stage, Verified

DEMAND, SUPPLY = 3796.8, 2412.4


def example_report() -> Report:
    """Eight NPUs behind 24 cores that decode verbatim JPEGs."""
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(11.5, 0.6, 500).astype(int)
    cpu_us = 1500 + 0.05 * sizes * rng.lognormal(0, 0.15, 500)
    sizes[7], cpu_us[7] = 15_212_004, 412_000.0
    ready = np.clip(np.cumsum(rng.choice((-1, 0, 1), 900, p=(0.4, 0.24, 0.36))) % 7 - 2, 0, 4)
    return Report(
        verdict="cpu",
        cause="decode",
        sentence="INPUT-BOUND (CPU decode): 8 devices ask for 3,797 images/s, this host gives 2,412 (2,370 to 2,451): "
        "they stand idle 36 % of the time. The best remedy is worth 1.49x.",
        confidence="high",
        demand=DEMAND,
        demand_per_device=474.6,
        devices=8,
        demand_source="--demand",
        supply=SUPPLY,
        supply_low=2370.2,
        supply_high=2451.0,
        stall_fraction=1 - SUPPLY / DEMAND,
        rates=(
            Rate(name="S0", label="synthetic batches that lie on the device: the compute ceiling", images_per_s=None,
                 low=None, high=None, repeats=0, note="no accelerator here: the demand was given with --demand"),
            Rate(name="S1", label="synthetic host batches, copied to the device", images_per_s=11240.0, low=11010.0,
                 high=11390.0, repeats=3, note=""),
            Rate(name="S2", label="decoded batches replayed from memory", images_per_s=9120.0, low=8890.0, high=9305.0,
                 repeats=3, note=""),
            Rate(name="S3", label="JPEGs in memory", images_per_s=2455.0, low=2431.0, high=2467.0, repeats=3, note=""),
            Rate(name="S4", label="as it really is", images_per_s=SUPPLY, low=2370.2, high=2451.0, repeats=5,
                 note="warm: the pictures were in the page cache"),
        ),
        shares=(
            Share(name="step", fraction=0.0),
            Share(name="transfer", fraction=0.21),
            Share(name="hand-over", fraction=0.05),
            Share(name="decode", fraction=0.68),
            Share(name="disk", fraction=0.02),
            Share(name="unattributed", fraction=0.04),
        ),
        stages=(
            Stage(name="read", process="workers", cpu_us_per_image=212, share=0.021, wall_us_per_image=390, p50_us=180,
                  p99_us=1210),
            Stage(name="splice", process="workers", cpu_us_per_image=0, share=0, wall_us_per_image=0, p50_us=None,
                  p99_us=None),
            Stage(name="decode", process="workers", cpu_us_per_image=7630, share=0.767, wall_us_per_image=7702,
                  p50_us=6810, p99_us=31200),
            Stage(name="resize", process="workers", cpu_us_per_image=1790, share=0.18, wall_us_per_image=1801,
                  p50_us=1695, p99_us=3480),
            Stage(name="hand-over", process="workers", cpu_us_per_image=88, share=0.009, wall_us_per_image=90,
                  p50_us=None, p99_us=None),
            Stage(name="loader", process="loader", cpu_us_per_image=229, share=0.023, wall_us_per_image=240,
                  p50_us=None, p99_us=None),
        ),
        needs=(
            Need(name="cores", unit="cores", needed=37.78, here=24, how="3,797 images/s x 9,949 us"),
            Need(name="disk", unit="MB/s", needed=418, here=1900, how="3,797 images/s x 110 kB"),
            Need(name="transfer", unit="MB/s", needed=1018, here=3014, how="3,797 images/s x 268 kB"),
            Need(name="memory", unit="GB", needed=1.2, here=None, how="8 loaders x (4 slots x 64 x 268 kB + 80 MB)"),
        ),
        slots=4,
        occupancy=tuple(zip((np.arange(900) / 37.7).tolist(), ready.tolist(), strict=True)),
        waits_ms=tuple((rng.gamma(2, 6, 900) * (ready == 0)).tolist()),
        slow_samples=(
            SlowSample(name="train/n02128385/n02128385_10264.JPEG", cpu_us=412000, bytes=15_212_004, megapixels=46.2,
                       why="46 megapixels"),
            SlowSample(name="train/n04285008/n04285008_9711.JPEG", cpu_us=96200, bytes=1_104_220, megapixels=5.1,
                       why="progressive"),
            SlowSample(name="train/n01440764/n01440764_18.JPEG", cpu_us=41800, bytes=612_011, megapixels=4.0, why=""),
        ),
        costs=tuple(zip(sizes.tolist(), cpu_us.tolist(), strict=True)),
        workers=24,
        curve=(
            Point(workers=1, images_per_s=104, measured=True),
            Point(workers=6, images_per_s=612, measured=True),
            Point(workers=12, images_per_s=1226, measured=True),
            Point(workers=18, images_per_s=1825, measured=False),
            Point(workers=24, images_per_s=SUPPLY, measured=True),
            Point(workers=28, images_per_s=2431, measured=False),
            Point(workers=36, images_per_s=2431, measured=False),
        ),
        knee=24,
        remedies=(
            Remedy(action="Make the shards crop-addressed: same pixels, less to decode",
                   command="python tools/make_shards.py /data/imagenet /data/shards --jpeg crop\n"
                   "python train.py --shards /data/shards", predicted_images_per_s=3595.0, predicted_stall=0.053,
                   basis="decode of 200 of your pictures, spliced: 0.52 of the CPU time"),
            Remedy(action="Re-encode to 400 pixels at quality 90 (other pixels)",
                   command="python tools/make_shards.py /data/imagenet /data/shards --jpeg recode",
                   predicted_images_per_s=3796.8, predicted_stall=0.0,
                   basis="bytes and sides of your pictures, at this host's cost per pixel"),
            Remedy(action="Decode on four more cores, which the trainer leaves idle",
                   command="python train.py --shards /data/shards --workers 28", predicted_images_per_s=2431.0,
                   predicted_stall=0.36, basis="the fitted knee: 24 workers"),
        ),
        verified=Verified(action="Make the shards crop-addressed: same pixels, less to decode",
                          predicted_images_per_s=3595.0, measured_images_per_s=3512.0, error=0.0236,
                          how="on 512 of your pictures, shards in memory"),
        conditions=(
            ("cores", "24 of 24, AMD EPYC 9654"),
            ("other load", "0.4 of 24 cores were busy with other programs"),
            ("page cache", "warm"),
            ("pictures", "12,288 measured, 512 of warm-up dropped"),
            ("backend", "pillow (pillow-simd 12.1.1.post0)"),
            ("versions", "headrace 0.1.0, Python 3.11.7, torch 2.13.0, numpy 2.3.4, Linux 6.1"),
            ("overhead of this profiler", "0.6 % (with and without recording, in turns)"),
        ),
    )  # fmt: skip


def edge_reports() -> dict[str, Report]:
    """By what is odd about each."""
    plain = example_report()
    rows = (Rate(name="S4", label="as it really is", images_per_s=1.0, low=1.0, high=1.0, repeats=1, note=""),)
    evil = "<script>alert(1)</script>\"'&\udcff\ud800\x00\x1b\u202e\n"
    return {
        "not input-bound": dataclasses.replace(
            plain, verdict="compute", cause="step", sentence="NOT INPUT-BOUND: the step is the limit.",
            supply=5120.0, supply_low=5000.0, supply_high=5200.0, stall_fraction=0.0, remedies=(), verified=None,
        ),
        "nothing known": dataclasses.replace(
            plain, rates=(), shares=(), stages=(), needs=(), occupancy=(), waits_ms=(), slow_samples=(), costs=(),
            curve=(), knee=None, remedies=(), verified=None, conditions=(), confidence="low: 3 windows differ by 40 %",
        ),
        "one of each": dataclasses.replace(
            plain, rates=rows, occupancy=((0.0, 0),), waits_ms=(0.0,), costs=((1, 1.0),), knee=None, devices=1,
            curve=(Point(workers=1, images_per_s=1.0, measured=True),), slots=1, workers=1,
        ),
        "hostile names": dataclasses.replace(
            plain, sentence=evil, confidence=evil, demand_source=evil,
            slow_samples=(SlowSample(name=evil + "x" * 300, cpu_us=1.0, bytes=1, megapixels=0.1, why=evil),),
            remedies=(dataclasses.replace(plain.remedies[0], action=evil, command=evil + "y" * 300, basis=evil),),
            rates=(Rate(name=evil, label=evil, images_per_s=None, low=None, high=None, repeats=0, note=evil),),
            shares=(Share(name=evil, fraction=1.0),), conditions=((evil, evil + "z" * 300),),
            stages=(dataclasses.replace(plain.stages[0], name=evil, process=evil),),
            needs=(Need(name=evil, unit=evil, needed=1, here=None, how=evil),),
            verified=Verified(action=evil, predicted_images_per_s=1, measured_images_per_s=1, error=0, how=evil),
        ),
        "a million asked for": dataclasses.replace(plain, demand=1e6, demand_per_device=125e3, stall_fraction=0.9976),
        "tiny and huge": dataclasses.replace(
            plain, supply=1e-9, supply_low=0.0, supply_high=1e12, demand=1e-6, demand_per_device=1.25e-7,
            costs=((0, 0.0), (1, 1e-9), (10**15, 1e15)), waits_ms=(0.0, 1e-9, 1e9), occupancy=((0.0, 4), (1e9, 0)),
            curve=tuple(Point(workers=w, images_per_s=r, measured=True) for w, r in ((1, 0.0), (4096, 1e12))),
            needs=(Need(name="disk", unit="MB/s", needed=1e-12, here=1e15, how=""),),
        ),
        "no supply": dataclasses.replace(
            plain, supply=0.0, supply_low=0.0, supply_high=0.0, stall_fraction=1.0, verdict="io", cause="disk",
            remedies=(dataclasses.replace(plain.remedies[0], predicted_images_per_s=math.inf),),
        ),
    }  # fmt: skip
