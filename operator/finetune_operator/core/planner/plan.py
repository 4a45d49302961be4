"""The plan of one attempt: pool, topology and batch arithmetic, resolved from the snapshot and the facts."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.job import Placement
from finetune_operator.api.runtime import Pool
from finetune_operator.api.status import FactsStatus, PlanStatus
from finetune_operator.core.planner.batch import Batch, resolve_batch, total_steps
from finetune_operator.core.planner.placement import Candidate, candidates
from finetune_operator.core.planner.relief import relieve
from finetune_operator.core.planner.strategy import choose_strategy
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.config import Distributed


@dataclass(frozen=True)
class Plan:
    """Where an attempt runs, how the model is spread and how its batches are cut."""

    pool: Pool
    placement: Placement
    distributed: Distributed
    batch: Batch
    gradient_checkpointing: bool
    global_batch_size: int
    total_steps: int | None

    @property
    def world_size(self) -> int:
        """Ranks of the gang."""
        return self.placement.nodes * self.placement.gpus_per_node

    @property
    def candidate(self) -> Candidate:
        """Where it goes."""
        return Candidate(self.placement, self.pool)

    @property
    def can_be_safer(self) -> bool:
        """Whether less memory would do; see ``relief.py``."""
        return self.batch.per_device > 1 or not self.gradient_checkpointing

    @property
    def strategy(self) -> str:
        """How the model is spread, for people: one rank that offloads nothing has nothing to spread."""
        is_single = self.world_size == 1 and not self.distributed.cpu_offload
        return "single" if is_single else self.distributed.strategy

    def describe(self) -> str:
        """For ``status.attempts[].placement``."""
        return f"{self.pool.name} {self.placement.nodes}x{self.placement.gpus_per_node}"

    def to_status(self, snapshot: Snapshot) -> PlanStatus:
        """For ``status.plan``."""
        return PlanStatus(
            model=model_name(snapshot),
            method=snapshot.spec.method_name,
            strategy=self.strategy,
            pool=self.pool.name,
            nodes=self.placement.nodes,
            gpus_per_node=self.placement.gpus_per_node,
            per_device_train_batch_size=self.batch.per_device,
            gradient_accumulation_steps=self.batch.accumulation_steps,
            global_batch_size=self.global_batch_size,
            gradient_checkpointing=self.gradient_checkpointing,
            total_steps=self.total_steps,
        )


def plan_attempt(snapshot: Snapshot, facts: FactsStatus | None, *, candidate: int = 0, replans: int = 0) -> Plan:
    """Resolve the plan; without facts the number of steps may be unknown.

    Args:
        snapshot: what the run was accepted with.
        facts: what prepare found.
        candidate: number of the placement; beyond the last it starts again with the first.
        replans: how often the run has run out of memory and its plan was made safer.

    Raises:
        ValueError: the snapshot's pools do not hold its placement, or it has no method; acceptance has ruled that out.
    """
    spec, training = snapshot.spec, snapshot.spec.training
    chosen = _choose(snapshot, candidate)
    world_size = chosen.placement.nodes * chosen.placement.gpus_per_node
    batch, gradient_checkpointing = relieve(
        resolve_batch(training.global_batch_size, world_size, training.per_device_train_batch_size),
        training.gradient_checkpointing,
        times=replans,
        global_batch_size=training.global_batch_size,
        world_size=world_size,
    )
    return Plan(
        pool=chosen.pool,
        placement=chosen.placement,
        distributed=choose_strategy(spec.method_name, spec.distributed, chosen.placement, chosen.pool),
        batch=batch,
        gradient_checkpointing=gradient_checkpointing,
        global_batch_size=training.global_batch_size,
        total_steps=(
            total_steps(
                training.resolved_epochs, training.max_steps, facts.dataset.train_items, training.global_batch_size
            )
            if facts is not None
            else training.max_steps
        ),
    )


def _choose(snapshot: Snapshot, candidate: int) -> Candidate:
    found = candidates(snapshot.runtime, snapshot.spec.placement)
    if not found:
        raise ValueError("spec.placement must fit into a pool of the snapshot")
    return found[candidate % len(found)]


def model_name(snapshot: Snapshot) -> str:
    """A short name for the Model column: the last part of the path or repository."""
    model = snapshot.spec.model
    if model.persistent_volume_claim is not None:
        claim = model.persistent_volume_claim
        return (claim.path.rstrip("/") or claim.claim_name).rsplit("/", 1)[-1]
    return (model.uri or "").removeprefix("hf://").partition("@")[0]
