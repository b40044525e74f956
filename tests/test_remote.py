"""Shards from URLs: what arrives is what a local folder gives, whatever the network does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import ConfigError, DataError, Loader, PipelineConfig, build_loader, delivery
from pipeline.cache import Cache, CachedFile, Partial, Refusal
from pipeline.console import run_tool
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.needs import Needs
from pipeline.place import Place, expand_braces, parse_place
from pipeline.remote import Patience
from pipeline.shards import open_shards
from tests.conftest import ROOT, Run
from tests.http_server import Server, serve
from tests.test_loader import epoch, gone, numbers

pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install aiohttp")

Batches = list[tuple[str, list[int], list[int]]]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a hundredth of the real ones; a read that stalls is given up after half a second."""
    patience = Patience(first_wait_s=0.001, longest_wait_s=0.2, stall_s=0.5)
    monkeypatch.setattr(delivery, "PATIENCE", patience)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def want(shards: Path) -> Batches:
    """Two epochs of the local folder, in the order that is a URL's default."""
    with build(shards, shuffle="block") as loader:
        return epoch(loader) + epoch(loader)


@pytest.fixture(scope="module")
def want_val(shards: Path) -> Batches:
    with build(shards, split="val") as loader:
        return epoch(loader)


def build(where: Any, cache: Path | None = None, **options: Any) -> Loader:
    defaults: dict[str, Any] = {"batch_size": 8, "image_size": 64, "workers": 1, "backend": "pillow"}
    return build_loader(PipelineConfig(**defaults | {"shards": where, "cache_dir": cache} | options))


def tars(cache: Path) -> list[str]:
    """The shards in a cache, by their names at the URL."""
    return sorted(path.name.split(".")[0] + ".tar" for path in cache.glob("*/*.tar"))


def size_of(root: Path, split: str) -> int:
    return sum(info.bytes for info in read_manifest(root).splits[split])


def always_whole(name: str, before: int) -> str:
    return "whole"


# What the network does


def test_an_epoch_over_a_server_that_fails_every_tenth_request_is_the_local_one(
    shards: Path, cache: Path, want: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(3)
    kinds = ["500", "reset", "short", "flip", "whole"]

    def fault(name: str, before: int) -> str | None:
        return chance.choice(kinds) if chance.random() < 0.1 or (name == "train-000001.tar" and not before) else None

    with serve(shards, fault) as server, build(server.url, cache) as loader:
        assert epoch(loader) + epoch(loader) == want
        assert all(path.name.endswith((".tar", ".npy")) for path in cache.glob("*/*"))
    said = [record.message for record in caplog.records if server.url in record.message]
    assert len(said) <= 2


@pytest.mark.parametrize("kind", ["500", "reset", "short", "stall", "flip"])
def test_each_fault_is_retried_and_said_in_two_lines(
    kind: str, shards: Path, cache: Path, want_val: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice for each shard; a wrong bit is only tried once more. What ends early without saying so is gone on with."""
    times = 1 if kind == "flip" else 2

    def fault(name: str, before: int) -> str | None:
        return kind if name.endswith(".tar") and before < times else None

    with serve(shards, fault) as server, build(server.url, cache, split="val") as loader:
        assert epoch(loader) == want_val
    said = [record.message for record in caplog.records]
    if kind not in ("flip", "short"):
        assert len(said) == 2, said
        assert "reads that fail are tried again" in said[0]
        assert f"{server.url}: " in said[1]
        assert "had to be tried again" in said[1]


def test_a_server_that_knows_no_ranges_is_asked_once_for_each_shard(
    shards: Path, cache: Path, want_val: Batches
) -> None:
    with serve(shards, always_whole) as server, build(server.url, cache, split="val") as loader:
        assert epoch(loader) == want_val
        assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("404", "train-000001.tar: there is no such file"),
        ("403", "train-000001.tar cannot be read: the server said 403"),
        ("500", "train-000001.tar cannot be read: the server said 500 .*; 8 tries, each after a longer wait"),
        ("flip", "train-000001.tar: want sha256 [0-9a-f]{64}, got [0-9a-f]{64}, and fetched it twice"),
    ],
)
def test_what_cannot_be_had_ends_the_run_with_its_url(kind: str, message: str, shards: Path, cache: Path) -> None:
    def fault(name: str, before: int) -> str | None:
        return kind if name == "train-000001.tar" else None

    with serve(shards, fault) as server:
        loader = build(server.url, cache)
        with pytest.raises(DataError, match=f"{server.url}/{message}"):
            epoch(loader)
        assert gone([*loader.decode_pids], 2)
        tries = {"404": 1, "403": 1, "500": 8, "flip": 2}[kind]
        assert server.asked["train-000001.tar"] == tries
    assert "train-000001.tar" not in tars(cache)


def test_opening_a_url_that_is_none_says_so(shards: Path, cache: Path, tmp_path: Path) -> None:
    with serve(tmp_path) as server, pytest.raises(ConfigError, match=f"{server.url} has no manifest.json"):
        build(server.url, cache)
    with pytest.raises(DataError, match=r"http://127.0.0.1:\d+/manifest.json cannot be read: .*; 8 tries"):
        build(server.url, cache)  # nobody is there any more
    with pytest.raises(ConfigError, match="nosuch://x cannot be read: Protocol not known"):
        build("nosuch://x", cache)
    with pytest.raises(ConfigError, match=r"gs://x cannot be read .*: pip install gcsfs"):
        build("gs://x", cache)
    with serve(shards) as server, pytest.raises(ConfigError, match=f"{server.url} has no split 'test'; it has train"):
        build(server.url, cache, split="test")
    (tmp_path / "file").write_text("")
    with serve(shards) as server, pytest.raises(ConfigError, match=r"--cache-dir .*/file/cache cannot be made"):
        build(server.url, tmp_path / "file" / "cache")


def test_a_file_url_is_cached_too(shards: Path, cache: Path, want_val: Batches) -> None:
    with build(f"file://{shards}", cache, split="val") as loader:
        assert epoch(loader) == want_val
    assert tars(cache) == sorted(info.name for info in read_manifest(shards).splits["val"])


# The cache


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_small_cache_stays_small_and_gives_the_same_epochs(shards: Path, cache: Path, world_size: int) -> None:
    """Room for four shards, two mixed at a time; shards that had to go are fetched again."""
    largest = max(info.bytes for info in read_manifest(shards).splits["train"])
    index = (shards / "train.index.npy").stat().st_size
    limit = 4 * largest + index
    options: dict[str, Any] = {
        "batch_size": 2,
        "slots": 2,
        "world_size": world_size,
        "image_size": 32,
        "shuffle": "block",
        "shuffle_window": 2,
    }
    with build(shards, **options) as loader:
        local = [numbers(epoch(loader)) for _ in range(3)]
    most = 0
    with serve(shards) as server, build(server.url, cache, cache_gb=limit / 1e9, **options) as loader:
        for want in local:
            got = []
            for batch in loader:
                got += batch.indices.tolist()
                most = max(most, sum(path.stat().st_size for path in list(cache.glob("*/*")) if path.exists()))
            assert got == want
        assert most <= limit
        assert max(server.asked.values()) > 1
        for pid in loader.decode_pids:
            opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
            assert sum(name.endswith(".tar (deleted)") for name in opened) <= 3


def test_a_cache_that_is_too_small_for_the_order_is_refused(shards: Path, cache: Path) -> None:
    size = size_of(shards, "train") / 1e9
    with serve(shards) as server, pytest.raises(ConfigError) as error:
        build(server.url, cache, cache_gb=size / 2, shuffle="global")
    assert f"needs {size:.3g} GB of its {size:.3g} GB at once" in str(error.value)
    assert "raise --cache-gb, or give --shuffle block" in str(error.value)


def test_a_second_run_fetches_the_manifest_and_nothing_else(shards: Path, cache: Path, want_val: Batches) -> None:
    with serve(shards) as server:
        with build(server.url, cache, split="val") as loader:
            assert epoch(loader) == want_val
        server.asked.clear()
        with build(server.url, cache, split="val") as loader:
            assert epoch(loader) == want_val
        assert dict(server.asked) == {MANIFEST: 1}


def test_two_ranks_fetch_each_shard_once(shards: Path, cache: Path) -> None:
    with serve(shards) as server:
        server.slow_s = 0.02
        with (
            build(server.url, cache, rank=0, world_size=2) as first,
            build(server.url, cache, rank=1, world_size=2) as second,
        ):
            both = [b.indices.tolist() + other.indices.tolist() for b, other in zip(first, second, strict=True)]
        assert sorted(i for batch in both for i in batch) == list(range(42))
        assert {name: count for name, count in server.asked.items() if name.endswith(".tar")} == {
            info.name: 1 for info in read_manifest(shards).splits["train"]
        }


def test_a_changed_manifest_brings_the_changed_shard(shards: Path, cache: Path, want_val: Batches) -> None:
    """The same name, another content: the old one is not used, and nobody has to empty the cache."""
    root = cache.with_name("served")
    shutil.copytree(shards, root)
    with serve(root) as server:
        with build(server.url, cache, split="val") as loader:
            epoch(loader)
        server.asked.clear()
        tar = root / "val-000001.tar"
        tar.write_bytes(tar.read_bytes()[:-1] + b"x")  # in the padding
        content = json.loads((root / MANIFEST).read_text())
        content["splits"]["val"]["shards"][1]["sha256"] = hashlib.sha256(tar.read_bytes()).hexdigest()
        (root / MANIFEST).write_text(json.dumps(content))
        with build(server.url, cache, split="val") as loader:
            assert epoch(loader) == want_val
        assert dict(server.asked) == {MANIFEST: 1, tar.name: 1}
    assert tars(cache).count(tar.name) == 2  # another run may still use the old one; it is the first to go


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from pipeline import PipelineConfig, build_loader
loader = build_loader(PipelineConfig(shards={url!r}, cache_dir={cache!r}, split="val", batch_size=8, image_size=64,
                                     workers=1, backend="pillow"))
print(loader.fetch_pid, *loader.decode_pids, flush=True)
for batch in loader:
    pass
print("done", flush=True)
time.sleep(60)
"""


def start(server: Server, cache: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A run in a process of its own, and the processes that it started: the fetcher first."""
    script = SCRIPT.format(root=str(ROOT), url=server.url, cache=str(cache))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.soak
def test_killed_in_the_middle_of_a_shard(shards: Path, cache: Path, want_val: Batches) -> None:
    """No half shard is ever visible, no process stays, and the next run fetches what is missing and no more."""
    infos = {info.name: info for info in read_manifest(shards).splits["val"]}
    with serve(shards) as server:
        server.slow_s = 0.1
        process, pids = start(server, cache)
        deadline = time.monotonic() + 30
        while sum(server.sent[name] for name in infos) < 3 << 16 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert gone(pids)
        for path in cache.glob("*/*.tar"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == infos[path.name.split(".")[0] + ".tar"].sha256
        there = tars(cache)
        assert len(there) < len(infos)
        server.slow_s = 0
        server.asked.clear()
        with build(server.url, cache, split="val") as loader:
            assert epoch(loader) == want_val
        assert sorted(name for name in server.asked if name.endswith(".tar")) == sorted(set(infos) - set(there))
    assert not list(cache.glob("*/.*"))


def test_no_process_outlives_a_trainer_that_is_interrupted(shards: Path, cache: Path) -> None:
    with serve(shards) as server:
        process, pids = start(server, cache)
        assert len(pids) == 2
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert gone(pids)


def test_signals_of_a_scheduler_and_close(shards: Path, cache: Path, want_val: Batches) -> None:
    """SIGTERM and SIGINT go to every process of a job: the fetcher leaves them to the trainer."""
    before = len(os.listdir("/proc/self/fd"))
    with serve(shards) as server, build(server.url, cache, split="val") as loader:
        pid = loader.fetch_pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        assert epoch(loader) == want_val
        assert loader.fetch_pid == pid
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        loader.close()
        loader.close()
        assert gone([pid], 0.5)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_killed_fetcher_is_started_again(shards: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Twice, while shards of later batches are still at the server, which holds them back until then."""
    in_turn: dict[str, Any] = {"shuffle": "block", "shuffle_window": 1, "slots": 2}
    with build(shards, **in_turn) as loader:
        want = [indices for _, _, indices in epoch(loader)]
    local = open_shards(shards, "train")
    turns = list(dict.fromkeys(Path(local.name(i).split(": ")[0]).name for batch in want for i in batch))
    gates = {name: threading.Event() for name in turns}

    def hold(name: str, before: int) -> None:
        if name in gates:
            gates[name].wait(30)

    def open_gates(end: int) -> None:
        for name in turns[:end]:
            gates[name].set()

    with serve(shards, hold) as server:
        open_gates(2)  # of six; a batch, which is 8 of 42 samples, lies in two
        with build(server.url, cache, **in_turn) as loader:
            got = []
            for n, batch in enumerate(loader):
                if n in (0, 2):
                    pid = loader.fetch_pid
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                    assert gone([pid])
                    open_gates(4 if n == 0 else len(turns))
                got.append(batch.indices.tolist())
        assert got == want
    said = f"fetches {server.url} ended: killed by SIGKILL. It is started again"
    assert sum(said in r.message for r in caplog.records) == 2


def cached(data: bytes, name: str = "a.tar") -> CachedFile:
    return CachedFile(name, len(data), hashlib.sha256(data).hexdigest())


def put(cache: Cache, data: bytes, name: str) -> CachedFile:
    file = cached(data, name)
    partial = cache.claim(file, keep=(), last=())
    assert isinstance(partial, Partial), partial
    partial.append(memoryview(data))
    partial.finish(cache)
    partial.close()
    return file


def test_room_is_made_by_what_was_needed_longest_ago_and_nobody_holds(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, "s3://a", 300), Cache(tmp_path, "s3://b", 300)
    files = [put(cache, bytes([n]) * 100, f"{n}.tar") for n in range(2)] + [put(other, b"2" * 100, "2.tar")]
    for n, file in enumerate(files):
        os.utime((other if n == 2 else cache).folder / file.local, (n, n))
    held = cache.hold(files[0])  # the oldest, but needed; and now the youngest
    assert held is not None
    os.utime(held, (0, 0))
    put(cache, b"3" * 100, "3.tar")
    assert [cache.has(f) for f in files[:2]] + [other.has(files[2])] == [True, False, True]
    assert cache.claim(cached(b"4" * 250), keep=(), last=()) is Refusal.FULL
    os.close(held)
    partial = cache.claim(cached(b"4" * 250), keep=(), last=())
    assert isinstance(partial, Partial)
    assert cache.claim(cached(b"4" * 250), keep=(), last=()) is Refusal.BUSY
    assert cache.claim(cached(b"5" * 60), keep=(), last=()) is Refusal.FULL  # what is on its way counts
    partial.append(memoryview(b"4" * 99))
    partial.close()  # as if its process had died
    again = cache.claim(cached(b"4" * 250), keep=(), last=())
    assert isinstance(again, Partial)
    assert again.bytes == 99
    again.close()
    put(other, b"6" * 300, "6.tar")
    assert not list(cache.folder.iterdir())


def test_needs_are_those_of_the_order() -> None:
    """Against brute force, over random orders."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        shards, n = int(rng.integers(1, 9)), 40
        bounds = np.concatenate([[0], np.sort(rng.choice(np.arange(1, n), shards - 1, replace=False)), [n]])
        order = np.arange(n) if rng.random() < 0.2 else rng.permutation(n)
        of = (np.searchsorted(bounds, order, side="right") - 1).tolist()
        needs, sizes = Needs.of(order, bounds[:-1].astype(np.int64)), rng.integers(1, 9, shards)
        stretch = int(rng.integers(1, 12))
        live = [
            {s for s in range(shards) if of.index(s) < at + stretch and n - 1 - of[::-1].index(s) >= at}
            for at in range(n)
        ]
        for at in range(n):
            assert set(needs.between(at, at + stretch)) == live[at]
            later = needs.after(at, 3)
            assert later == sorted((s for s in range(shards) if of.index(s) >= at), key=of.index)[:3]
        assert needs.most_at_once(sizes.astype(np.int64), stretch) == max(sum(int(sizes[s]) for s in at) for at in live)


# Places


def test_braces_are_written_out_as_the_shell_does() -> None:
    assert expand_braces("x-{008..011}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert sorted(expand_braces("{a,b{1,2}}.tar")) == ["a.tar", "b1.tar", "b2.tar"]
    assert parse_place("s3://bucket/folder/") == Place("s3://bucket/folder")
    assert parse_place("s3://bucket/t-{0,1}.tar") == Place("s3://bucket", frozenset({"t-0.tar", "t-1.tar"}))
    assert parse_place("t-0.tar") == Place(".", frozenset({"t-0.tar"}))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{3..1}.tar", r"want \{000000..000146\} or \{a,b\} in braces, got \{3..1\}"),
        ("x-{0..999999999}.tar", "in braces"),
        ("{a,b}/x.tar", "names tars of 2 folders"),
        ("{a,b}.zip", "'a.zip' no tar"),
        ("{shards}/train-00000{{0,9}}.tar", "has no train-000009.tar of those that --shards names; train has"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(pattern: str, message: str, shards: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build(pattern.format(shards=shards) if "{shards}" in pattern else pattern)


@pytest.mark.parametrize("remote", [False, True])
def test_a_pattern_limits_the_split_that_it_names(remote: bool, shards: Path, cache: Path) -> None:
    """Its samples are numbered 0 ... n - 1, and are those of the tars that are named."""
    whole = open_shards(shards, "train")
    infos = read_manifest(shards).splits["train"]
    chosen = [*range(infos[0].samples), *range(int(whole.first[2]), int(whole.first[2]) + infos[2].samples)]
    with serve(shards) as server:
        pattern = f"{server.url if remote else shards}/train-{{000002,000000}}.tar"
        with build(pattern, cache) as loader:
            got = {int(i): int(label) for b in loader for i, label in zip(b.indices, b.labels, strict=True)}
            assert [got[i] for i in range(len(chosen))] == whole.labels[chosen].tolist()
            assert len(got) == len(chosen)
            assert [loader.source.read(i) for i in range(len(chosen))] == [whole.read(i) for i in chosen]
        with build(pattern, cache, split="val") as loader:
            assert loader.samples == 21
        if remote:
            assert {name for name in server.asked if name.startswith("train-")} == {infos[0].name, infos[2].name}


@pytest.mark.parametrize("name", ["../train-000000.tar", "/etc/passwd", "..", "a/b.tar", ""])
@pytest.mark.parametrize("remote", [False, True])
def test_names_in_a_manifest_are_file_names_only(name: str, remote: bool, shards: Path, cache: Path) -> None:
    root = cache.with_name("served")
    root.mkdir()
    content = json.loads((shards / MANIFEST).read_text())
    content["splits"]["train"]["shards"][0]["name"] = name
    (root / MANIFEST).write_text(json.dumps(content))
    if not remote:
        with pytest.raises(DataError, match=r"want a plain file name, got"):
            read_manifest(root)
        return
    with serve(root) as server, pytest.raises(DataError, match=r"want a plain file name, got"):
        build(server.url, cache)


# Commands


@pytest.mark.soak
def test_train_takes_a_url(shards: Path, run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with serve(shards) as server:
        done = run_here(
            "train.py", "--shards", server.url, "--device", "cpu", "--blocks", "0,0,0", "--image-size", 75,
            "--batch-size", 16, "--workers", 1, "--epochs", 1, "--output", tmp_path / "out",
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "42 train, 21 val pictures" in done.stdout
    assert len(tars(tmp_path / "xdg" / "headrace")) == sum(map(len, read_manifest(shards).splits.values()))


@pytest.mark.parametrize("tool", ["profile", "check"])
def test_tools_that_need_a_folder_say_so(tool: str, capfd: pytest.CaptureFixture[str]) -> None:
    from pipeline import check
    from pipeline.profiler import command

    argv = ["--shards", "s3://b/x"] if tool == "profile" else ["s3://b/x"]
    with pytest.raises(SystemExit) as ended:
        run_tool(tool, lambda: {"profile": command, "check": check}[tool].run(argv))
    assert ended.value.code == 2
    assert "reads a local folder of shards, got s3://b/x" in capfd.readouterr().err


# S3


@pytest.fixture
def s3(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket in moto's S3 server, in a process of its own; endpoint and credentials are in the environment."""
    for package in ("moto", "flask", "flask_cors", "s3fs"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install s3fs 'moto[s3]' flask flask-cors")
    with serve(shards) as probe:
        port = probe.server_port  # free again in a moment
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


UPLOAD = """
import pathlib, sys, time, boto3
s3 = boto3.client("s3")
deadline = time.monotonic() + 30
while True:
    try:
        s3.create_bucket(Bucket="photos")
        break
    except Exception:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.1)
for path in pathlib.Path(sys.argv[1]).iterdir():
    s3.upload_file(str(path), "photos", f"imagenet/{path.name}")
"""


def test_s3(s3: str, shards: Path, cache: Path, want: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server that speaks S3, without a flag: what is there, what is not, and without credentials."""
    subprocess.run([sys.executable, "-c", UPLOAD, str(shards)], check=True, timeout=60)
    monkeypatch.setattr(delivery, "PATIENCE", dataclasses.replace(delivery.PATIENCE, stall_s=20))
    with build("s3://photos/imagenet", cache) as loader:
        assert epoch(loader) == want[:6]
    with pytest.raises(ConfigError, match=r"s3://photos/elsewhere has no manifest.json"):
        build("s3://photos/elsewhere", cache)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match=r"s3://photos/imagenet/manifest.json cannot be read: NoCredentialsError"):
        build("s3://photos/imagenet", cache)
