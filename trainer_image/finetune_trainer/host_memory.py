"""What the kernel says about the memory of this container: its limit, its peak, and whom it killed for it.

When a container has used up its memory, the kernel kills a process of it with SIGKILL, and that process says
nothing any more. Its parent learns the reason here: the container's cgroup counts such kills. Both layouts
are read, cgroup v2 and v1. Torch-free; what cannot be read is None, never an error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.messages import MemoryPicture

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc/self")
_NO_LIMIT = 1 << 60
"""cgroup v1 says "none" by a number near the end of 64 bits."""


@dataclass(frozen=True)
class _Layout:
    controller: str
    """As /proc/self/cgroup names it; nothing in cgroup v2."""
    mount: str
    events: str
    limit: str
    peak: str


_LAYOUTS = (
    _Layout("", "", "memory.events", "memory.max", "memory.peak"),
    _Layout("memory", "memory", "memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
)


class HostMemory:
    """The memory of this process's container."""

    def __init__(self, cgroup_root: Path = _CGROUP_ROOT, proc: Path = _PROC) -> None:
        """Kills are counted from now on."""
        self._layout, self._folder = _find(cgroup_root, proc)
        self._kills_before = self._kills()

    @property
    def has_killed(self) -> bool:
        """Whether the kernel killed a process of this container for its memory since this object was made."""
        return self._kills() > self._kills_before

    @property
    def limit_bytes(self) -> int | None:
        """Limit of the container; None when it has none."""
        limit = self._number(self._layout.limit)
        return None if limit is None or limit >= _NO_LIMIT else limit

    @property
    def peak_bytes(self) -> int | None:
        """What all processes of the container held at most, with the files they had in memory."""
        return self._number(self._layout.peak)

    def _kills(self) -> int:
        for line in (_read(self._folder / self._layout.events) or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdecimal():
                return int(value)
        return 0

    def _number(self, name: str) -> int | None:
        text = (_read(self._folder / name) or "").strip()
        return int(text) if text.isdecimal() else None


def take_picture(phase: str, longest_tokens: int | None) -> MemoryPicture:
    """Of this process, which ran out of memory; the device's share only where torch already uses one."""
    return MemoryPicture(
        phase=phase[:64],
        longest_tokens=longest_tokens,
        host_peak_bytes=_own_peak(_PROC),
        host_limit_bytes=HostMemory().limit_bytes,
        **_device_numbers(),
    )


def _device_numbers() -> dict[str, int]:
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return {}
        return {
            "device_allocated_bytes": torch.cuda.max_memory_allocated(),
            "device_reserved_bytes": torch.cuda.max_memory_reserved(),
            "device_total_bytes": torch.cuda.mem_get_info()[1],
        }
    except (RuntimeError, AttributeError):  # a device in disorder must not hide what happened to it
        return {}


def _own_peak(proc: Path) -> int | None:
    """Peak resident memory of this process."""
    for line in (_read(proc / "status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return None


def _find(cgroup_root: Path, proc: Path) -> tuple[_Layout, Path]:
    """The cgroup of this process; inside a container the mount often shows nothing above it."""
    for layout in _LAYOUTS:
        for path in (_own_path(proc, layout.controller), ""):
            folder = cgroup_root / layout.mount / path
            if (folder / layout.events).exists():
                return layout, folder
    return _LAYOUTS[0], cgroup_root


def _own_path(proc: Path, controller: str) -> str:
    for line in (_read(proc / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == controller or controller in controllers.split(","):
            return path.lstrip("/")
    return ""


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
