"""The sections of the page below the answer: each a report as HTML, with a line that says how to read it."""

from __future__ import annotations

import math
from collections.abc import Callable

from . import charts
from .figures import byte_count, micros, number, percent, plain
from .markup import command, how, line, row, table, text, two, worth
from .report import Rate, Report, Verified

_DOTS = 500  # of a scatter plot, at most
_BINS = 24  # of a histogram


def _waterfall(report: Report) -> str:
    each_us = 1e6 / report.supply if report.supply > 0 else 0.0
    allowed = report.supply / report.demand if report.demand > 0 else 1.0  # of the time of one picture
    full, start, parts = max(1.0, min(1.1 * allowed, 1.5)), 0.0, ""
    for share in report.shares:
        value = f"{percent(share.fraction)} · {micros(share.fraction * each_us)}"
        title, outline = f"{plain(share.name)}: {value}", share.name == "unattributed"
        picture = charts.bar(title, share.fraction, start=start, full=full, mark=allowed, hollow=outline)
        parts += row(text(share.name), value, picture)
        start += share.fraction
    most = max((rate.high or rate.images_per_s or 0.0 for rate in report.rates), default=0.0)
    rates = "".join(_rate(rate, report.demand, max(most, report.demand)) for rate in report.rates)
    asked_us = micros(1e6 / report.demand) if report.demand > 0 else "time"
    one = (
        f"Each bar begins where the one above ends; together they are the {micros(each_us)} that a picture takes here. "
        f"The dashed line is the {asked_us} that the devices allow: beyond it they wait."
    )
    fast = (
        "Images/s if all that comes before were free: median, and lowest to highest of the repeats. "
        "Where the rate falls, the time is lost. The dashed line is what the devices ask for."
    )
    return two(
        (
            f'<h3>One picture</h3>{how(one)}<ul class="rows">{parts}</ul>',
            f'<h3>How fast each part is</h3>{how(fast)}<ul class="rows">{rates}</ul>',
        )
    )


def _rate(rate: Rate, demand: float, most: float) -> str:
    name = f"<b>{text(rate.name)}</b> {text(rate.label)}"
    note = f'<div class="soft">{text(rate.note)}</div>' if rate.note else ""
    if rate.images_per_s is None:
        return row(name, "not measured", note)
    value = number(rate.images_per_s)
    spread = "" if rate.low is None or rate.high is None else f" <i>({number(rate.low)} to {number(rate.high)})</i>"
    title = f"{plain(rate.name)}: {value} images/s"
    picture = charts.bar(title, rate.images_per_s, full=most, low=rate.low, high=rate.high, mark=demand)
    return row(name, value + spread, picture + note)


def _remedies(report: Report) -> str:
    caption = how(
        "Best first. Filled: images/s as measured; outlined: as predicted. "
        f"The dashed line is the {number(report.demand)} that the devices ask for."
    )
    if not report.remedies:
        why = "the loader is not the limit" if report.verdict == "compute" else "it takes more cores, or a faster disk"
        return f"{caption}<p>None: {why}.</p>"
    rates = (remedy.predicted_images_per_s for remedy in report.remedies)
    most = max(report.demand, report.supply, *filter(math.isfinite, rates))
    now = charts.bar(f"now: {number(report.supply)} images/s", report.supply, full=most, mark=report.demand)
    items = f"<li>{line('As it is', f'{number(report.supply)} images/s')}{now}</li>"
    for rank, remedy in enumerate(report.remedies, 1):
        rate = remedy.predicted_images_per_s
        title = f"predicted: {number(rate)} images/s"
        picture = charts.bar(title, rate, full=most, mark=report.demand, hollow=True)
        items += (
            f'<li><h3>{rank}. {text(remedy.action)}</h3><p class="tight">{worth(remedy, report)}</p>{picture}'
            f'{command(remedy.command)}<p class="soft">Predicted from: {text(remedy.basis)}</p></li>'
        )
    return f'{caption}<ol class="remedies">{items}</ol>{_verified(report.verified) if report.verified else ""}'


def _verified(verified: Verified) -> str:
    predicted, measured = verified.predicted_images_per_s, verified.measured_images_per_s
    most = max(predicted, measured)
    off = f"{percent(abs(verified.error))} too {'high' if verified.error > 0 else 'low'}" if verified.error else "right"
    return (
        f'<h3>Tried: {text(verified.action)}</h3><ul class="rows">'
        + row("predicted", number(predicted), charts.bar("predicted", predicted, full=most, hollow=True))
        + row("measured", number(measured), charts.bar("measured", measured, full=most))
        + f'</ul><p class="soft">The prediction was {off}; {text(verified.how)}.</p>'
    )


def _workers(report: Report) -> str:
    caption = how("More workers help up to the knee. Filled dots were measured, hollow ones computed from the costs.")
    points = sorted((point.workers, point.images_per_s, point.measured) for point in report.curve)
    curve = [(float(workers), rate) for workers, rate, _ in points]
    hollow = [(float(workers), rate) for workers, rate, measured in points if not measured]
    if not points:
        return caption + two(())
    marks = [charts.line(curve), charts.dots(curve), charts.dots(hollow, hole=True)]
    most = max(rate for _, rate in curve)
    if report.demand <= 4 * most:  # beyond that the curve would lie on the ground
        marks.append(charts.across(report.demand, f"asked for: {number(report.demand)}"))
        most = max(most, report.demand)
    if report.knee is not None:
        marks.append(charts.upright(report.knee, f"knee: {number(report.knee)}"))
    plot = charts.Plot(charts.axis("workers", curve[-1][0]), charts.axis("images/s", most))
    knee = "No knee was found." if report.knee is None else f"Beyond {number(report.knee)} workers there is no gain."
    words = f"{knee} Here are {number(report.workers)}. The devices ask for {number(report.demand)} images/s."
    return caption + two((charts.draw("Throughput against workers", words, plot, *marks), f"<p>{words}</p>"))


def _stages(report: Report) -> str:
    most, rows = max((stage.share for stage in report.stages), default=0.0), []
    for stage in report.stages:
        picture = charts.bar(f"{plain(stage.name)}: {percent(stage.share)}", stage.share, full=most)
        share = f'<span class="share">{percent(stage.share)}{picture}</span>'
        of_one = ("-" if us is None else number(us) for us in (stage.p50_us, stage.p99_us))
        waiting = number(max(0.0, stage.wall_us_per_image - stage.cpu_us_per_image))
        rows.append(
            (text(stage.name), text(stage.process), number(stage.cpu_us_per_image), share, *of_one, waiting)
        )  # fmt: skip
    total = number(sum(stage.cpu_us_per_image for stage in report.stages))
    caption = (
        f"CPU time of one picture over all processes: {total} us. One picture in a hundred takes longer than p99. "
        "Waiting is no work: it is for the disk, or for a core that others had."
    )
    head = ("stage", "in", "+CPU us per image", "share", "+median us", "+p99 us", "+waiting us")
    return how(caption) + table("Ledger of stages", head, rows)


def _needs(report: Report) -> str:
    rows = []
    for need in report.needs:
        here, enough = "not known", ""
        if need.here is not None:
            here = f"{number(need.here)} {text(need.unit)}"
            enough = "yes" if need.here >= need.needed else '<b class="lack">no</b>'
        rows.append((text(need.name), f"{number(need.needed)} {text(need.unit)}", here, enough, text(need.how)))
    caption = f"What it takes to give the devices {number(report.demand)} images/s, and what this host has."
    return how(caption) + table("Capacity", ("", "+needed", "+here", "enough", "because"), rows)


def _queue(report: Report) -> str:
    parts = []
    if report.occupancy:
        first, last = report.occupancy[0][0], report.occupancy[-1][0]
        ready = [(at - first, float(count)) for at, count in report.occupancy]
        empty = sum(count == 0 for _, count in ready) / len(ready)
        plot = charts.Plot(charts.axis("seconds", last - first), charts.axis("batches ready", report.slots))
        words = f"Of {number(report.slots)} places; none was filled at {percent(empty)} of the moments noted."
        parts.append(f"{charts.draw('Batches ready over time', words, plot, charts.steps(ready, last - first))}{words}")
    if report.waits_ms:
        waits = sorted(report.waits_ms)
        across = charts.axis("ms that the devices waited for a batch", waits[-1])
        edges = [across.ticks[-1] * edge / _BINS for edge in range(_BINS + 1)]
        counts = [0] * _BINS
        for wait in waits:
            counts[min(_BINS - 1, int(wait / edges[-1] * _BINS))] += 1
        plot = charts.Plot(across, charts.axis("batches", max(counts)))
        words = (
            f"{number(sum(wait == 0 for wait in waits))} of {number(len(waits))} batches were there at once; "
            f"median wait {number(waits[len(waits) // 2])} ms, longest {number(waits[-1])} ms."
        )
        parts.append(charts.draw("How long the devices waited", words, plot, charts.columns(edges, counts)) + words)
    caption = (
        "One run at the devices' pace. Line: mean; band: lowest to highest. Where the ring is empty the devices wait, "
        "where it is full the loader does."
    )
    return how(caption) + two(parts)


def _pictures(report: Report) -> str:
    some = report.costs[:: -(-len(report.costs) // _DOTS) or 1]
    dots = [(float(size), us) for size, us in some if size > 0 and us > 0]
    sizes = charts.log_axis("compressed size", [size for size, _ in dots], byte_count)
    plot = charts.Plot(sizes, charts.log_axis("CPU time", [us for _, us in dots], micros))
    words = f"{number(len(dots))} pictures. What lies above the others costs more than its bytes explain."
    chart = (charts.draw("CPU time against compressed size", words, plot, charts.cloud(dots)), f"<p>{words}</p>")
    rows = [
        (
            f'<span class="name">{text(sample.name)}</span>',
            micros(sample.cpu_us),
            byte_count(sample.bytes),
            number(sample.megapixels),
            text(sample.why),
        )
        for sample in report.slow_samples
    ]
    slowest = table("Slowest pictures", ("slowest", "+CPU", "+size", "+megapixels", "why"), rows) if rows else ""
    caption = how("Each dot is a picture; both axes are logarithmic. Below them the slowest, by name.")
    return caption + two(chart if dots else ()) + slowest


def _conditions(report: Report) -> str:
    rows = (
        ("confidence", text(report.confidence)),
        ("demand", f"{number(report.demand_per_device)} images/s and device: {text(report.demand_source)}"),
        *((text(name), text(value)) for name, value in report.conditions),
    )
    return how("What it was measured under, and how far to trust it.") + table("Conditions", ("", ""), rows)


SECTIONS: dict[str, Callable[[Report], str]] = {
    "Where the time of one picture goes": _waterfall,
    "What would help": _remedies,
    "How many workers": _workers,
    "What each stage costs": _stages,
    "What the devices need, and what is here": _needs,
    "Was a batch ready when it was wanted?": _queue,
    "Which pictures are slow": _pictures,
    "What this rests on": _conditions,
}
