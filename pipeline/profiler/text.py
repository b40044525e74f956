"""The report for a terminal: the answer first, then what it stands on."""

from __future__ import annotations

from collections.abc import Iterator

from .report import Rate, Report


def write_text(report: Report) -> str:
    """Lines of at most some 110 characters, but for the answer, names and commands."""
    sections = (_answer, _rates, _shares, _stages, _needs, _remedies, _slow_samples, _conditions)
    return "\n\n".join(filter(None, ("\n".join(section(report)) for section in sections)))


def _answer(report: Report) -> Iterator[str]:
    yield report.sentence
    if report.confidence != "high":
        yield f"confidence {report.confidence}"


def _rates(report: Report) -> Iterator[str]:
    yield "how fast it would go"
    for rate in report.rates:
        yield f"  {_rate(rate)}".rstrip()


def _rate(rate: Rate) -> str:
    if rate.images_per_s is None or rate.low is None or rate.high is None:
        return f"{rate.name}  {'-':>12s}  {rate.label:42s} {rate.note}"
    spread = f"{rate.low:,.0f} to {rate.high:,.0f}"
    return f"{rate.name}  {rate.images_per_s:10,.0f}/s  {rate.label:42s} {spread:22s} {rate.note}"


def _shares(report: Report) -> Iterator[str]:
    yield "where the devices' time goes"
    yield "  " + ", ".join(
        f"{share.name} {100 * share.fraction:.0f} %" for share in report.shares if share.fraction > 0
    )


def _stages(report: Report) -> Iterator[str]:
    yield "what a picture costs, CPU us        share      p50      p99   waiting us"
    for stage in report.stages:
        spread = "".join(f"{'-' if value is None else f'{value:,.0f}':>9s}" for value in (stage.p50_us, stage.p99_us))
        waiting = max(0.0, stage.wall_us_per_image - stage.cpu_us_per_image)
        yield f"  {stage.name:12s}{stage.cpu_us_per_image:18,.0f}{100 * stage.share:7.0f} %{spread}{waiting:13,.0f}"


def _needs(report: Report) -> Iterator[str]:
    yield "what it takes                  needed        here"
    for need in report.needs:
        here = "?" if need.here is None else _number(need.here)
        yield f"  {need.name:10s}{need.unit:>8s}{_number(need.needed):>17s}{here:>12s}   {need.how}"


def _remedies(report: Report) -> Iterator[str]:
    if not report.remedies:
        if report.verdict != "compute":
            yield "nothing that this tool knows of helps on this host"
        return
    yield "what would help, with the rate that these measurements predict"
    for remedy in report.remedies:
        yield f"  {remedy.predicted_images_per_s:8,.0f}/s  {remedy.action} ({remedy.basis})"
        yield f"              {remedy.command}"
    if done := report.verified:
        rates = f"predicted {done.predicted_images_per_s:,.0f}/s, measured {done.measured_images_per_s:,.0f}/s"
        yield f"tried: {done.action}: {rates}: off by {100 * done.error:+.0f} % ({done.how})"


def _slow_samples(report: Report) -> Iterator[str]:
    if report.verdict == "compute":
        return
    yield "the slowest pictures, CPU ms"
    for sample in report.slow_samples[:5]:
        yield f"  {sample.cpu_us / 1e3:8.1f}  {sample.bytes / 1e3:8,.0f} kB  {sample.why:32s} {sample.name}"


def _conditions(report: Report) -> Iterator[str]:
    for name, value in report.conditions:
        yield f"{name}: {value}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
