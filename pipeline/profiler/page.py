"""A report as one HTML page: the answer first, then what it rests on. It needs no network, and no JavaScript."""

from __future__ import annotations

from .figures import number, percent
from .markup import command, text, worth
from .page_style import CSS, SCRIPT
from .report import Cause, Report
from .sections import SECTIONS

_LIMIT: dict[Cause, tuple[str, str]] = {
    "step": ("Not input-bound", "the devices are kept busy"),
    "transfer": ("Transfer-bound", "the copy to the device"),
    "decode": ("Input-bound", "CPU decode"),
    "workers": ("Input-bound", "too few workers"),
    "neighbour": ("Input-bound", "other programs have the cores"),
    "stragglers": ("Input-bound", "a few slow pictures"),
    "hand-over": ("Input-bound", "the loader's own process"),
    "disk": ("Input-bound", "the disk"),
}


def write_page(report: Report) -> str:
    """The whole page. The same report gives the same page, under 200 kB; encode it as UTF-8."""
    kind, what = (text(words) for words in _LIMIT[report.cause])
    sections = "".join(
        f"<section><h2>{place}. {title}</h2>{section(report)}</section>\n"
        for place, (title, section) in enumerate(SECTIONS.items(), 1)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{kind}: {what} - Headrace profile</title>
<style>{CSS}</style>
</head>
<body>
{_answer(report, kind, what)}
<main>
{sections}</main>
<footer><p class="soft">Headrace, report version {report.version}. --json writes all of it as numbers.</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _answer(report: Report, kind: str, what: str) -> str:
    good = report.verdict == "compute"
    asks, are = ("device asks", "device is") if report.devices == 1 else ("devices ask", "devices are")
    numbers = (
        (number(report.demand), f"images/s {number(report.devices)} {asks} for", ""),
        (number(report.supply), "images/s this host gives", ""),
        (percent(report.stall_fraction), f"of the time, the {are} idle", "good" if good else "lack"),
    )
    key = "".join(f'<div class="{mood}"><dt>{words}</dt><dd>{value}</dd></div>' for value, words, mood in numbers)
    return f"""<header>
<p class="kicker">Headrace profile: why is the accelerator starving?</p>
<h1><span class="{"good" if good else "lack"}">{kind}:</span> {what}</h1>
<p class="sentence">{text(report.sentence)} <span class="soft">Confidence: {text(report.confidence)}.</span></p>
<dl class="key">{key}</dl>
{_supply(report)}
{_best(report)}
</header>"""


def _supply(report: Report) -> str:
    """What is given of what is asked for, as one bar; the numbers above say the same."""
    share = 100 * min(1.0, report.supply / report.demand) if report.demand > 0 else 100.0
    given = "given" if share > 15 else ""
    missing = f"{percent(1 - share / 100)} missing" if share < 70 else ""
    rest = f'<div class="missing">{missing}</div>' if share < 99.5 else ""
    return f'<div class="supply" aria-hidden="true"><div style="width:{share:.1f}%">{given}</div>{rest}</div>'


def _best(report: Report) -> str:
    if report.remedies:
        best = report.remedies[0]
        return f"""<div class="best"><p class="kicker">What to do first</p><h2>{text(best.action)}</h2>
<p class="worth">{worth(best, report)}</p>{command(best.command)}</div>"""
    words = "Nothing that this tool knows of helps on this host. Section 5 says what is short."
    if report.verdict == "compute":
        words = "The host keeps up. What makes the step itself faster makes training faster."
    return f'<div class="best"><h2>What to do</h2><p class="worth">{words}</p></div>'
