"""The plan of one attempt: pool, topology and batch arithmetic, resolved from the snapshot and the facts."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.job import Placement
from finetune_operator.api.runtime import Pool
from finetune_operator.api.status import FactsStatus, PlanStatus
from finetune_operator.core.planner.batch import Batch, resolve_batch, total_steps
from finetune_operator.core.planner.placement import choose_pool
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
    total_steps: int | None

    @property
    def world_size(self) -> int:
        """Ranks of the gang."""
        return self.placement.nodes * self.placement.gpus_per_node

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
            total_steps=self.total_steps,
        )


def plan_attempt(snapshot: Snapshot, facts: FactsStatus | None) -> Plan:
    """Resolve the plan; without facts the number of steps may be unknown.

    Raises:
        ValueError: the snapshot's pools do not hold its placement, or it has no method; acceptance has ruled that out.
    """
    spec, placement = snapshot.spec, snapshot.spec.placement[0]
    pool = choose_pool(snapshot.runtime, placement)
    if pool is None:
        raise ValueError("spec.placement[0] must fit into a pool of the snapshot")
    training = spec.training
    world_size = placement.nodes * placement.gpus_per_node
    return Plan(
        pool=pool,
        placement=placement,
        distributed=choose_strategy(spec.method_name, spec.distributed, placement, pool),
        batch=resolve_batch(training.global_batch_size, world_size, training.per_device_train_batch_size),
        total_steps=(
            total_steps(
                training.resolved_epochs, training.max_steps, facts.dataset.train_items, training.global_batch_size
            )
            if facts is not None
            else training.max_steps
        ),
    )


def model_name(snapshot: Snapshot) -> str:
    """A short name for the Model column: the last part of the path or repository."""
    model = snapshot.spec.model
    if model.persistent_volume_claim is not None:
        claim = model.persistent_volume_claim
        return (claim.path.rstrip("/") or claim.claim_name).rsplit("/", 1)[-1]
    return (model.uri or "").removeprefix("hf://").partition("@")[0]
