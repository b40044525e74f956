"""The page: whole, harmless and the same each time; and in a real browser, where there is one, it fits and is quiet."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.profiler import charts
from pipeline.profiler.figures import byte_count, micros, number, percent, plain, short
from pipeline.profiler.page import write_page
from pipeline.profiler.report import Report
from tests.browser import Browser, browser
from tests.reports import edge_reports, example_report

REPORTS = {"example": example_report(), **edge_reports()}
VOID = {"meta", "link"}


@pytest.fixture(params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]


class Reader(html.parser.HTMLParser):
    """Elements and attributes of a page; strict where a browser would guess."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"{tag} is closed at once outside of SVG"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def test_it_is_whole_and_needs_nothing_from_elsewhere(report: Report) -> None:
    page = write_page(report)
    read = Reader(page)
    assert len(page.encode()) < 200_000
    assert read.tags().count("script") == read.tags().count("style") == 1
    assert not {"img", "iframe", "object", "image", "use", "a", "form"} & set(read.tags())
    for tag, attributes in read.elements:
        assert not any(name.startswith("on") or name in ("src", "xlink:href") for name in attributes), (tag, attributes)
        assert attributes.get("href", "data:,") == "data:,"
    assert "url(" not in page
    assert "@import" not in page


def test_headings_are_in_order_and_every_drawing_has_a_title(report: Report) -> None:
    page = write_page(report)
    levels = [int(tag[1]) for tag in Reader(page).tags() if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    drawings = re.findall("<svg[^>]*>(.{7})", page)
    assert set(drawings) == ({"<title>"} if drawings else set())
    assert page.count('class="plot"') == page.count("<desc>")


def test_every_number_in_a_drawing_is_one(report: Report) -> None:
    for path in re.findall(r' d="([^"]*)"', write_page(report)):
        assert re.fullmatch(r"([MLHVhz]|-?[0-9.]+| )*", path), path


def test_names_are_read_and_not_obeyed() -> None:
    page = write_page(REPORTS["hostile names"])
    assert "<script>alert" not in page
    assert page.encode("utf-8", "strict")
    assert "<script>alert(1)</script>\"'&\\xff\\ud800\\x00\\x1b\\u202e" in Reader(page).words


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    assert write_page(report) == write_page(dataclasses.replace(report))


def test_the_answer_comes_first_with_all_its_numbers() -> None:
    report = example_report()
    words = Reader(write_page(report)).words
    parts = (
        "Input-bound: CPU decode", report.sentence, "images/s 8 devices ask for3,797", "images/s this host gives2,412",
        "of the time, the devices are idle36 %", "What to do first", report.remedies[0].action,
        "3,595 images/s (1.49x)", report.remedies[0].command, "1. Where",
    )  # fmt: skip
    at = words.index("Headrace profile:")
    for part in parts:
        at = words.index(part, at)
    for remedy in report.remedies:
        rate, stall = number(remedy.predicted_images_per_s), percent(remedy.predicted_stall)
        for part in (remedy.action, rate, stall, remedy.command, remedy.basis):
            at = words.index(part, at)


def test_all_that_the_report_holds_is_on_the_page() -> None:
    report = example_report()
    words = Reader(write_page(report)).words
    assert report.verified is not None
    wanted = [
        *(part for rate in report.rates for part in (rate.label, rate.note)),
        *(number(rate.images_per_s) for rate in report.rates if rate.images_per_s),
        *(part for share in report.shares for part in (share.name, percent(share.fraction))),
        *(part for stage in report.stages for part in (stage.name, number(stage.cpu_us_per_image))),
        *(part for need in report.needs for part in (f"{number(need.needed)} {need.unit}", need.how)),
        *(part for slow in report.slow_samples for part in (slow.name, byte_count(slow.bytes), slow.why)),
        *(part for condition in report.conditions for part in condition),
        report.confidence, report.demand_source, "knee: 24", "3,512", "2.4 % too high", report.verified.how,
    ]  # fmt: skip
    assert [part for part in wanted if part not in words] == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3797), (0, 7e-9), (0, 1e15), (0, 36), (2.3, 2.4)])
def test_ticks_are_round_and_cover_all(low: float, high: float) -> None:
    ticks = charts.nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] - 1e-6 * step <= low < ticks[1] - 1e-6 * step
    assert ticks[-1] + 1e-6 * step >= high > ticks[-2] + 1e-6 * step
    assert 3 <= len(ticks) <= 8
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 2.5, 5)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (1, 10), (999, 15e6), (1e-9, 1e15)])
def test_logarithmic_ticks_are_powers_of_ten_and_cover_all(low: float, high: float) -> None:
    ticks = charts.log_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert all(abs(math.log10(tick) - round(math.log10(tick))) < 1e-9 for tick in ticks)


def test_numbers_are_for_people() -> None:
    values = (0, 3796.8, 37.78, 1.2, 0.0123, 1e-9, 1234567, math.inf, math.nan)
    assert [number(v) for v in values] == [
        "0", "3,797", "37.8", "1.2", "0.0123", "1e-09", "1,234,567", "unbounded", "unknown",
    ]  # fmt: skip
    assert [percent(v) for v in (0, 0.0004, 0.0123, 0.0999, 0.364, 1)] == [
        "0 %",
        "0 %",
        "1.2 %",
        "10 %",
        "36 %",
        "100 %",
    ]
    assert [micros(v) for v in (742, 1240, 2.5e6)] == ["742 us", "1.24 ms", "2.5 s"]
    assert [byte_count(v) for v in (12, 110_000, 15_212_004)] == ["12 B", "110 kB", "15.2 MB"]
    assert [short(v) for v in (4000, 250_000, 1.2e6)] == ["4,000", "250 k", "1.2 M"]
    assert plain("ä猫\udcff\x07") == "ä猫\\xff\\x07"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as page:
        yield page


LAYOUT = """({
    wide: document.documentElement.scrollWidth - innerWidth,
    tall: innerHeight,
    bottoms: ["h1", ".key", ".best h2"].map(part => document.querySelector(part).getBoundingClientRect().bottom),
    cut: [...document.querySelectorAll("h1, h2, h3, p, li, dd, dt, pre, .plot")].filter(part =>
        part.getBoundingClientRect().right > innerWidth + 0.5).length,
    page: getComputedStyle(document.body).backgroundColor,
    buttons: document.querySelectorAll("pre button").length,
    commands: document.querySelectorAll("pre").length,
})"""
# Each piece of text against the colour behind it, as WCAG 2 reckons; what has a colour of its own behind it or is large
# is held to the same.
CONTRAST = """(() => {
    const parse = colour => colour.match(/[0-9.]+/g).map(Number);
    const light = colour => { const [r, g, b] = parse(colour).map(v => (v /= 255) <= 0.04045 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = part => { for (; part; part = part.parentElement) {
        const colour = getComputedStyle(part).backgroundColor;
        if ((parse(colour)[3] ?? 1) > 0) return colour; } return "rgb(255, 255, 255)"; };
    const low = [];
    for (const part of document.querySelectorAll("body *")) {
        const bare = [...part.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!bare || part.closest("script, title, desc")) continue;
        const style = getComputedStyle(part), colour = part.closest("svg") ? style.fill : style.color;
        const [a, b] = [light(colour), light(behind(part))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) low.push([part.outerHTML.slice(0, 80), colour, behind(part), ratio]);
    }
    return low;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)])
def test_it_fits_and_is_quiet_in_a_browser(
    chromium: Browser, report: Report, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(write_page(report), encoding="utf-8")
    chromium.events.clear()
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.call("Emulation.setDeviceMetricsOverride", **size)
    chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    chromium.open(path.as_uri())
    layout = chromium.evaluate(LAYOUT)
    assert chromium.complaints() == []
    assert chromium.requests() == [path.as_uri()]
    assert layout["wide"] <= 0
    assert layout["cut"] == 0
    assert layout["page"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert layout["buttons"] == layout["commands"]
    assert chromium.evaluate(CONTRAST) == []
    if report is not REPORTS["hostile names"]:  # whose names alone fill a telephone
        assert layout["bottoms"] == [pytest.approx(0, abs=layout["tall"])] * 3
    picture = chromium.call("Page.captureScreenshot", format="png")["data"]
    assert len(picture) > 10_000


def test_it_reads_without_javascript(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(write_page(example_report()), encoding="utf-8")
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(path.as_uri())
        seen = chromium.evaluate("document.body.innerText")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "Copy" not in seen
    assert example_report().remedies[-1].command in seen
