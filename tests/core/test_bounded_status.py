"""A job that is interrupted a thousand times has a status that fits, and sums that are right."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_operator import constants
from laws import MAX_STATUS_BYTES, size_of
from makers import a_job, last_words
from world import World

pytestmark = pytest.mark.unit

ATTEMPTS = 1000
ENDS = ["evicted", "OOMKilled", "vanishes", "node", 1, 64, 69, 75, 76, 77, 78, 79, 137, 143]
CAUSES = {
    "Application",
    "ContractSkew",
    "Hang",
    "NoDevice",
    "NodeLost",
    "NotScheduled",
    "OutOfMemory",
    "Preempted",
    "Unknown",
}


def a_world() -> World:
    """Nodes with names as long as clouds make them."""
    job = a_job().with_spec(placement=[{"nodes": 2, "scheduleTimeoutSeconds": 60}, {"nodes": 3}])
    nodes = {f"ip-10-0-{number}.eu-central-1.compute.internal.{'x' * 100}": True for number in range(20)}
    job = job.with_backoff_limit(100).with_training(maxSteps=60)
    return World(job=job, nodes=nodes, is_schema_checked=False)


def turn(world: World, seconds: int) -> None:
    """Everybody does what is theirs to do; a run that failed is followed by another one."""
    world.now += timedelta(seconds=seconds)
    world.run_pass()
    world.controllers()
    world.schedule()
    world.end_well(constants.STAGE_PREPARE)
    if world.job.status.phase == "Failed":
        job = world.job.with_run(f"run-{world.job.generation}")
        world.job = replace(job, generation=job.generation + 1)
        world.resource_version += 1


def end_attempt(world: World, how: str | int, chance: random.Random) -> None:
    """One pod of the gang ends."""
    gang = world.running(constants.STAGE_TRAIN)
    if not gang:
        return
    if chance.random() < 0.7:
        world.train_on(1)
    pod = chance.choice(gang)
    message = chance.choice("aä😀\n") * chance.choice([1, 4000])
    if isinstance(how, int):
        world.ends(pod, how, last_words(how, message=message, rank=chance.randrange(4), step=chance.randrange(60)))
    elif how == "vanishes":
        world.watch()
        world.vanish(pod["metadata"]["name"])
    elif how == "OOMKilled":
        world.ends(pod, 137, reason=how)
    else:
        world.disrupt(pod, "EvictionByEvictionAPI" if how == "evicted" else "DeletionByTaintManager")
        world.nodes[pod["spec"]["nodeName"]] = how == "evicted"


def test_a_thousand_attempts_fit_into_a_status() -> None:
    """Whatever ends them, and whatever pods say; that nothing goes backwards is asserted by the world."""
    chance = random.Random(1)
    world = a_world()
    while world.job.status.totals.attempts < ATTEMPTS or world.job.status.attempts[-1].end_time is None:
        world.is_full = chance.random() < 0.1
        end_attempt(world, chance.choice(ENDS), chance)
        turn(world, chance.choice([1, 100, 400, 400, 400]))
        if sum(world.nodes.values()) < 10:
            world.nodes = dict.fromkeys(world.nodes, True)

    status = world.job.status
    assert size_of(status.to_dict()) < MAX_STATUS_BYTES
    assert status.totals.attempts == ATTEMPTS
    assert sum(status.totals.by_cause.values()) == ATTEMPTS
    assert [attempt.number for attempt in status.attempts] == list(range(ATTEMPTS - 9, ATTEMPTS + 1))
    assert set(status.totals.by_cause) == CAUSES
    assert 0 < status.totals.lost_gpu_seconds <= status.totals.gpu_seconds
