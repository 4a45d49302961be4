"""What the kernel's files say about memory, in both layouts and in none."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer.host_memory import HostMemory, take_picture

pytestmark = pytest.mark.unit

GIB = 2**30


def a_kernel(folder: Path, version: int, group: str, limit: str) -> tuple[Path, Path]:
    """Its folders for cgroups and for the process, without a kill so far."""
    root, proc = folder / "cgroup", folder / "proc"
    own = root / ("memory" if version == 1 else "") / group
    own.mkdir(parents=True)
    proc.mkdir()
    (proc / "cgroup").write_text("5:cpu,cpuacct:/other\n4:memory:/pods/a\n0::/\n" if version == 1 else "0::/pods/a\n")
    if version == 1:
        (own / "memory.limit_in_bytes").write_text(limit)
        (own / "memory.max_usage_in_bytes").write_text(f"{3 * GIB}\n")
    else:
        (own / "memory.max").write_text(limit)
        (own / "memory.peak").write_text(f"{3 * GIB}\n")
    kill(root, 0)
    return root, proc


def kill(root: Path, count: int) -> None:
    """The kernel counts its victims."""
    for own in [path.parent for path in [*root.rglob("memory.max"), *root.rglob("memory.limit_in_bytes")]]:
        if (own / "memory.max").exists():
            (own / "memory.events").write_text(f"low 0\nmax 7\noom 1\noom_kill {count}\noom_group_kill 0\n")
        else:
            (own / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n")


@pytest.mark.parametrize("group", ["pods/a", ""], ids=["whole-tree", "own-part-only"])
@pytest.mark.parametrize(
    ("version", "limit", "expected"),
    [
        pytest.param(2, f"{4 * GIB}\n", 4 * GIB, id="v2"),
        pytest.param(2, "max\n", None, id="v2-without-limit"),
        pytest.param(1, f"{4 * GIB}\n", 4 * GIB, id="v1"),
        pytest.param(1, "9223372036854771712\n", None, id="v1-without-limit"),
    ],
)
def test_kills_are_counted_from_the_start(
    tmp_path: Path, version: int, group: str, limit: str, expected: int | None
) -> None:
    """The limit and the peak are those of the container, wherever the mount begins."""
    root, proc = a_kernel(tmp_path, version, group, limit)
    kill(root, 2)
    memory = HostMemory(root, proc)

    assert (memory.limit_bytes, memory.peak_bytes, memory.has_killed) == (expected, 3 * GIB, False)
    kill(root, 3)
    assert memory.has_killed


def test_without_cgroups_nothing_is_known(tmp_path: Path) -> None:
    """And nothing fails."""
    memory = HostMemory(tmp_path / "nowhere", tmp_path / "nothing")

    assert (memory.limit_bytes, memory.peak_bytes, memory.has_killed) == (None, None, False)


def test_a_picture_of_this_process() -> None:
    """A long phase is cut, and a process without torch has no device."""
    picture = take_picture("x" * 100, 12)

    assert (len(picture.phase), picture.longest_tokens) == (64, 12)
    assert picture.host_peak_bytes is not None
    assert picture.host_peak_bytes > 2**20
    assert picture.device_total_bytes is None
