"""Where the memory went when it ran out, in one short phrase."""

from __future__ import annotations

from finetune_trainer.messages import MemoryPicture

_GIB = 2**30


def describe_memory(picture: MemoryPicture) -> str:
    """E.g. ``out of memory in dry step at 4096 tokens: 78.1 of 79.3 GiB reserved``."""
    where = f" in {picture.phase}" if picture.phase else ""
    length = f" at {picture.longest_tokens} tokens" if picture.longest_tokens else ""
    amount = _device(picture) or _host(picture)
    return f"out of memory{where}{length}" + (f": {amount}" if amount else "")


def _device(picture: MemoryPicture) -> str:
    if picture.device_reserved_bytes is not None:
        return f"{_of(picture.device_reserved_bytes, picture.device_total_bytes)} reserved"
    if picture.device_allocated_bytes is not None:
        return f"{_of(picture.device_allocated_bytes, picture.device_total_bytes)} allocated"
    return ""


def _host(picture: MemoryPicture) -> str:
    if picture.host_peak_bytes is None:
        return ""
    return f"{_of(picture.host_peak_bytes, picture.host_limit_bytes)} of host memory used"


def _of(used: int, total: int | None) -> str:
    return f"{used / _GIB:.1f} GiB" if total is None else f"{used / _GIB:.1f} of {total / _GIB:.1f} GiB"
