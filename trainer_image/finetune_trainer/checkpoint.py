"""What is saved so that another gang, of any size, continues as if nothing had happened.

One safetensors file holds the trainable parameters by their peft names, their optimizer state, the random
generators of every rank and the loss of every step so far; one JSON manifest holds the numbers and the
digests. The frozen base model is not saved: 12 bytes per *trainable* parameter is all. The learning rate and
the order of the data are pure functions of the step, so they have no state.

With the same number of ranks the generators continue where they were and every further loss is bitwise the
same; with another number they are seeded anew from (seed, step, rank), which matters only with dropout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from finetune_trainer.config import ContractModel, Digest, TrainConfig
from finetune_trainer.errors import ConfigError, DataError
from finetune_trainer.state_file import StateFile
from finetune_trainer.store import CheckpointStore, Spot, sha256
from finetune_trainer.strategies.base import State
from finetune_trainer.world import World

_RNG = "rng.torch."
_RNG_CUDA = "rng.cuda."
_LOSSES = "losses"
FORMAT_VERSION = 1


class DataPosition(ContractModel):
    """Where the sampler stands, for the reader; ``rows`` alone determines it."""

    epoch: int
    consumed: int
    """Rows of the current pass."""
    rows: int
    """Rows since the start of the run, over all ranks."""


class CheckpointManifest(ContractModel):
    """Written last, beside the state."""

    format_version: int = FORMAT_VERSION
    step: int
    """Completed optimizer steps."""
    fence: int
    attempt: int
    world_size: int
    strategy: str = ""
    """For the reader: the state is the same whatever it was."""
    run_digest: Digest
    model_digest: Digest
    data_digest: Digest
    position: DataPosition
    train_tokens: int = 0
    """Tokens seen by all ranks since the start of the run."""
    train_seconds: float = 0.0
    """Time spent in completed steps since the start of the run, over all attempts."""
    state_sha256: Digest
    state_bytes: int = Field(ge=0)


@dataclass(frozen=True)
class Totals:
    """What a run has consumed so far, over all attempts."""

    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """A step's state in host memory, complete; the tensors are valid until the next snapshot is taken."""

    step: int
    position: DataPosition
    totals: Totals
    tensors: State
    strategy: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, as one rank sees it."""

    manifest: CheckpointManifest
    state: Mapping[str, Tensor]
    """Parameters and moments, on rank 0: see :class:`SharedState`."""
    history: State
    """Random generators of all ranks and the losses, on every rank."""

    @property
    def losses(self) -> list[float]:
        """Loss of every step from 1 on."""
        return [float(loss) for loss in self.history[_LOSSES]]


class SharedState(Mapping[str, Tensor]):
    """Tensors that lie on rank 0 alone. To ask for one is a collective: all ranks ask for the same, in the same order.

    So a rank that keeps a shard never holds the whole state of a large model.
    """

    def __init__(self, world: World, own: State) -> None:
        """``own``: the tensors on rank 0, nothing elsewhere."""
        self._world = world
        self._own = own
        catalog = {name: (str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in own.items()}
        self._catalog = json.loads(world.broadcast_bytes(json.dumps(catalog).encode() if world.is_main else None))

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape = self._catalog[name]
        value = self._own[name] if self._world.is_main else torch.empty(shape, dtype=getattr(torch, dtype))
        self._world.broadcast(value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._catalog)

    def __len__(self) -> int:
        return len(self._catalog)


def own_rng(world: World) -> list[Tensor]:
    """This rank's generators: torch's on the host, and the device's."""
    states = [torch.get_rng_state()]
    if world.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(world.device))
    return states


def collect_rng(world: World, own: list[Tensor]) -> State:
    """The generators of all ranks by name; collective."""
    found: State = {}
    for prefix, state in zip((_RNG, _RNG_CUDA), own, strict=False):
        found |= {f"{prefix}{rank}": part for rank, part in enumerate(world.gather(state))}
    return found


def restore_rng(world: World, seed: int, checkpoint: Checkpoint | None) -> None:
    """Continue this rank's generators, or seed them when there is nothing that fits."""
    tensors = checkpoint.history if checkpoint and checkpoint.manifest.world_size == world.size else {}
    step = checkpoint.manifest.step if checkpoint else 0
    torch.manual_seed(_derived_seed(seed, step, world.rank))
    if f"{_RNG}{world.rank}" in tensors:
        torch.set_rng_state(tensors[f"{_RNG}{world.rank}"])
    if world.device.type == "cuda" and f"{_RNG_CUDA}{world.rank}" in tensors:
        torch.cuda.set_rng_state(tensors[f"{_RNG_CUDA}{world.rank}"], world.device)


def losses_tensor(losses: list[float]) -> State:
    """The history in the form in which a checkpoint holds it."""
    return {_LOSSES: torch.tensor(losses, dtype=torch.float64)}


def encode(
    snapshot: Snapshot, config: TrainConfig, fence: int, file: StateFile | None = None
) -> tuple[memoryview, bytes]:
    """(state, manifest) as they are stored; the state lies in ``file``'s buffer."""
    state = (file or StateFile()).lay_out(snapshot.tensors)
    manifest = CheckpointManifest(
        step=snapshot.step,
        fence=fence,
        attempt=config.attempt,
        world_size=config.topology.world_size,
        strategy=snapshot.strategy,
        run_digest=config.run.digest,
        model_digest=config.model.digest,
        data_digest=config.data.digest,
        position=snapshot.position,
        train_tokens=snapshot.totals.tokens,
        train_seconds=snapshot.totals.seconds,
        state_sha256=sha256(state),
        state_bytes=len(state),
    )
    return state, manifest.to_json().encode()


def share(world: World, manifest: bytes, state: bytes) -> Checkpoint | None:
    """What rank 0 read, on every rank; None when it read nothing. Collective; without checks."""
    from safetensors.torch import load, save

    manifest = world.broadcast_bytes(manifest if world.is_main else None)
    if not manifest:
        return None
    tensors = load(state) if world.is_main else {}
    history = {name: value for name, value in tensors.items() if name == _LOSSES or name.startswith((_RNG, _RNG_CUDA))}
    return Checkpoint(
        manifest=CheckpointManifest.model_validate_json(manifest),
        state=SharedState(world, {name: value for name, value in tensors.items() if name not in history}),
        history=load(world.broadcast_bytes(save(history) if world.is_main else None)),
    )


def find_newest_good(
    store: CheckpointStore, config: TrainConfig
) -> Iterator[tuple[Spot, tuple[bytes, bytes] | None, str]]:
    """Candidates, best first: (place, content if it verifies, why not otherwise). Stop at the first good."""
    for spot in store.spots():
        content = store.load(spot)
        problem = "a file is missing" if content is None else find_problem(*content, config)
        yield spot, None if problem else content, problem


def find_problem(manifest_text: bytes, state: bytes, config: TrainConfig) -> str:
    """Why this checkpoint is passed over; empty when it can be used.

    Raises:
        ConfigError: a newer trainer wrote it; to start anew beside it would throw away what it holds.
        DataError: it was trained on another base model than the one that is there now.
    """
    _refuse_newer_format(manifest_text, config)
    try:
        manifest = CheckpointManifest.model_validate_json(manifest_text)
    except ValidationError:
        return "the manifest is damaged"
    if manifest.run_digest != config.run.digest or manifest.data_digest != config.data.digest:
        return "it belongs to another run or dataset"
    if manifest.model_digest != config.model.digest:
        raise DataError(
            "spec.model",
            config.model.source_uri,
            f"the checkpoint of step {manifest.step} was trained on the base model {manifest.model_digest}, but the "
            f"model that is there now is {config.model.digest}",
            "restore the model, or set a new spec.runId to train on the changed one",
        )
    if manifest.state_bytes != len(state) or manifest.state_sha256 != sha256(state):
        return "the state is damaged"
    return ""


def _refuse_newer_format(manifest_text: bytes, config: TrainConfig) -> None:
    try:
        found = json.loads(manifest_text)
        version, digest = int(found["formatVersion"]), str(found.get("modelDigest", "unknown"))
    except (ValueError, TypeError, KeyError):
        return  # damaged, which is for the caller to say
    if version > FORMAT_VERSION:
        raise ConfigError(
            "FineTuneRuntime spec.image",
            f"format {version}",
            f"the newest checkpoint has format {version}, this trainer reads up to {FORMAT_VERSION}; it was trained on "
            f"the base model {digest}, this attempt has {config.model.digest}",
            "use the trainer image that wrote it or a newer one, or set a new spec.runId to start anew",
        )


def _derived_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


__all__ = [
    "Checkpoint",
    "CheckpointManifest",
    "DataPosition",
    "SharedState",
    "Snapshot",
    "Totals",
    "collect_rng",
    "encode",
    "find_newest_good",
    "find_problem",
    "losses_tensor",
    "own_rng",
    "restore_rng",
    "share",
]
