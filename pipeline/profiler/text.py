"""The report for a terminal: the answer first, then what it stands on."""

from __future__ import annotations

from collections.abc import Iterator

from .report import Report


def write_text(report: Report) -> str:
    """Lines of at most some 110 characters, but for names and commands."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield report.sentence
    if report.confidence != "high":
        yield f"confidence {report.confidence}"
    yield ""
    yield "how fast it would go"
    for rate in report.rates:
        speed = f"{rate.images_per_s:10,.0f}/s" if rate.images_per_s is not None else f"{'-':>12s}"
        spread = f"{rate.low:,.0f} to {rate.high:,.0f}" if rate.low is not None and rate.high is not None else ""
        yield f"  {rate.name}  {speed}  {rate.label:42s} {spread}{'  ' * bool(spread and rate.note)}{rate.note}".rstrip()
    yield ""
    yield "where the devices' time goes"
    yield "  " + ", ".join(
        f"{share.name} {100 * share.fraction:.0f} %" for share in report.shares if share.fraction > 0
    )
    yield ""
    yield "what a picture costs, CPU us        share      p50      p99   waiting us"
    for stage in report.stages:
        spread = "".join(f"{'-' if value is None else f'{value:,.0f}':>9s}" for value in (stage.p50_us, stage.p99_us))
        waiting = max(0.0, stage.wall_us_per_image - stage.cpu_us_per_image)
        yield f"  {stage.name:12s}{stage.cpu_us_per_image:18,.0f}{100 * stage.share:7.0f} %{spread}{waiting:13,.0f}"
    yield ""
    yield "what it takes                  needed        here"
    for need in report.needs:
        here = "?" if need.here is None else _number(need.here)
        yield f"  {need.name:10s}{need.unit:>8s}{_number(need.needed):>17s}{here:>12s}   {need.how}"
    yield ""
    if report.remedies:
        yield "what would help, with the rate that these measurements predict"
        for remedy in report.remedies:
            yield f"  {remedy.predicted_images_per_s:8,.0f}/s  {remedy.action} ({remedy.basis})"
            yield f"              {remedy.command}"
    elif report.verdict != "compute":
        yield "nothing that this tool knows of helps on this host"
    if report.verified:
        done = report.verified
        yield ""
        yield f"tried: {done.action}: predicted {done.predicted_images_per_s:,.0f}/s, measured " \
              f"{done.measured_images_per_s:,.0f}/s, {100 * done.error:+.0f} % ({done.how})"  # fmt: skip
    if report.slow_samples and report.verdict != "compute":
        yield ""
        yield "the slowest pictures, CPU ms"
        for sample in report.slow_samples[:5]:
            yield f"  {sample.cpu_us / 1e3:8.1f}  {sample.bytes / 1e3:8,.0f} kB  {sample.why:32s} {sample.name}"
    yield ""
    for name, value in report.conditions:
        yield f"{name}: {value}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
