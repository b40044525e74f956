from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import DataError
from pipeline.profiler.disk import cached_fraction, disk_under, read_speed

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 8:17 / {data} rw - xfs /dev/sdb1 rw
31 22 0:40 / {data}/far\\040away rw - nfs4 server:/export rw
32 22 0:41 / {data}/hidden rw - tmpfs none rw
33 22 8:1 / {data}/hidden rw - ext4 /dev/sda1 rw
"""


def system(root: Path, data: Path) -> Path:
    """sdb is a disk that seeks, with a partition; sda is none."""
    for disk, number, partition, rotational in (("sdb", "8:17", "sdb1", 1), ("sda", "8:1", "sda1", 0)):
        device = root / "sys/devices/pci" / disk
        (device / "queue").mkdir(parents=True)
        (device / "queue/rotational").write_text(f"{rotational}\n")
        (device / partition).mkdir()
        (root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
        (root / "sys/dev/block" / number).symlink_to(f"../../devices/pci/{disk}/{partition}")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(MOUNTS.format(data=data))
    return root


@pytest.mark.parametrize(
    ("place", "file_system", "device", "rotational"),
    [
        ("shards", "xfs", "/dev/sdb1", True),
        ("far away/shards", "nfs4", "server:/export", None),
        ("far awayland", "xfs", "/dev/sdb1", True),
        ("hidden", "ext4", "/dev/sda1", False),
        ("..", "ext4", "/dev/vda", None),
    ],
)
def test_a_folder_lies_on_what_is_mounted_last_and_nearest(
    tmp_path: Path, place: str, file_system: str, device: str, rotational: bool | None
) -> None:
    data = Path(os.path.realpath(tmp_path)) / "data"
    disk = disk_under(data / place, system(tmp_path / "root", data))
    assert (disk.file_system, disk.device, disk.rotational) == (file_system, device, rotational)


def test_what_the_system_does_not_tell_is_none(tmp_path: Path) -> None:
    assert disk_under(tmp_path, tmp_path).file_system is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("what? - \n\n")
    assert disk_under(tmp_path, tmp_path).mount_point is None


def test_this_machine_says_what_this_folder_lies_on(tmp_path: Path) -> None:
    disk = disk_under(tmp_path)
    assert disk.mount_point is not None
    assert os.stat(tmp_path).st_dev == os.stat(disk.mount_point).st_dev


def test_what_was_just_written_is_in_memory_until_it_is_put_out(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        assert cached_fraction([path]) == 1
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if disk_under(tmp_path).file_system != "tmpfs":
        assert cached_fraction([path]) == 0
    assert cached_fraction([]) is None
    assert cached_fraction([tmp_path / "gone"]) is None


@pytest.mark.parametrize(("threads", "in_order"), [(1, True), (4, False)])
def test_files_are_read_once_and_not_from_memory(tmp_path: Path, threads: int, in_order: bool) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(os.urandom((1 << 20) + 17))
    speed = read_speed(paths, seconds=60, threads=threads, in_order=in_order)
    assert speed.mb_per_s > 0
    assert speed.how.startswith("24 pieces of 128 kB")
    if disk_under(tmp_path).file_system in ("ext4", "xfs", "btrfs"):
        assert speed.cold, speed.how


def test_memory_is_not_taken_for_a_cold_disk() -> None:
    """A file in shared memory cannot be put out of it."""
    fd = os.memfd_create("disk")
    try:
        os.write(fd, bytes(1 << 20))
        speed = read_speed([Path(f"/proc/self/fd/{fd}")], seconds=1)
    finally:
        os.close(fd)
    assert not speed.cold
    assert "WARM" in speed.how


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone cannot be read: No such file"):
        read_speed([tmp_path / "gone"])
    (tmp_path / "small").write_bytes(b"x")
    with pytest.raises(DataError, match="too little"):
        read_speed([tmp_path / "small"])
    with pytest.raises(DataError, match="is no file"):
        read_speed([tmp_path])
