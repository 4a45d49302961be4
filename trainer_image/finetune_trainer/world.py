"""The gang as one rank sees it: who am I, which device, and the few small collectives the recipe needs.

Control traffic (flags, counts, the fence, a checkpoint to resume from) travels in host memory over gloo, on
CUDA machines too: a flag that must be read at every micro-step would otherwise stall the device each time.
Alone, every collective is the identity, so the recipe has one code path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from finetune_trainer.config import Device, PhaseLimits, Topology
from finetune_trainer.errors import NoCudaError, PeerLostError
from finetune_trainer.outcome import is_peer_lost, last_traceback_line

_BACKENDS: dict[Device, str] = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True)
class World:
    """Rank, size and device, with collectives over host memory."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0: it alone writes to stdout and to the store."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank; all ranks get the same answer."""
        return self.sum(float(flag))[0] > 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        self.sum_tensor(tensor)
        return [float(value) for value in tensor]

    def sum_tensor(self, tensor: torch.Tensor) -> None:
        """Sum in place over the ranks; on the device it travels by NCCL."""
        if self.size > 1:
            with _naming_lost_peers():
                dist.all_reduce(tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite in place with rank 0's."""
        if self.size > 1:
            with _naming_lost_peers():
                dist.broadcast(tensor, src=0)

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes on every rank; the others pass None."""
        if self.size == 1:
            return data or b""
        length = torch.tensor([len(data or b"")])
        self.broadcast(length)
        payload = torch.zeros(int(length), dtype=torch.uint8)
        if data:
            payload = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.broadcast(payload)
        return payload.numpy().tobytes()

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The equally shaped host tensors of all ranks, in the order of ranks."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _naming_lost_peers():
            dist.all_gather(parts, tensor)
        return parts

    def close(self) -> None:
        """Leave the gang; the work is done, so a peer that was quicker is no error."""
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def join_world(topology: Topology, limits: PhaseLimits, *, group_of_one: bool = False) -> World:
    """Take the place that the launcher's environment names and meet the other ranks.

    ``group_of_one``: make a process group for a single rank too, for strategies that cannot do without.

    Raises:
        NoCudaError: the topology promises a GPU that is not there.
        PeerLostError: the ranks did not meet within ``limits.rendezvous``.
    """
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = _device(topology.device, local_rank)
    if topology.world_size > 1 or group_of_one:
        with _naming_lost_peers():
            _meet(topology, rank, limits)
        # Some launchers and plugins leave every rank alone without a word: never train that way.
        assert dist.get_world_size() == topology.world_size, "the process group is smaller than the topology"
    world = World(rank=rank, local_rank=local_rank, size=topology.world_size, device=device)
    assert world.sum(1.0)[0] == topology.world_size, "a collective did not reach every rank"
    return world


def _meet(topology: Topology, rank: int, limits: PhaseLimits) -> None:
    """Rendezvous at rank 0's store, which fails with a message when a rank does not come in time."""
    store = dist.TCPStore(  # type: ignore[attr-defined]
        topology.master_address,
        topology.master_port,
        topology.world_size,
        is_master=rank == 0,
        timeout=timedelta(seconds=limits.rendezvous),
    )
    dist.init_process_group(
        _BACKENDS[topology.device],
        store=store,
        rank=rank,
        world_size=topology.world_size,
        # Above every phase limit, so that the watchdog speaks first.
        timeout=timedelta(seconds=60 + 1.5 * max(limits.model_dump().values())),
    )


def _device(kind: Device, local_rank: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoCudaError("topology.device is cuda, but torch sees no CUDA device on this node")
    if local_rank >= torch.cuda.device_count():
        raise NoCudaError(f"rank needs CUDA device {local_rank}, but this pod has {torch.cuda.device_count()}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextmanager
def _naming_lost_peers() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        if is_peer_lost(error):
            raise PeerLostError(f"a collective failed: {last_traceback_line(error)}") from error
        raise
