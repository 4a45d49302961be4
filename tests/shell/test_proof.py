"""What the proof itself rests on: deaths that happen, faults that repeat, Jobs that are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit_log import AuditLog, Creations
from proof.fault_plan import FaultPlan, every_kind, kinds_of
from proof.operator_in_process import Crash, CrashPlan

pytestmark = pytest.mark.unit


def test_of_writes_at_the_same_time_the_operator_dies_after_the_one_that_is_meant() -> None:
    """Others have begun by then, and none of them comes back."""
    plan = CrashPlan(at=1, when="after")
    first, second = plan.begin("POST configmaps"), plan.begin("POST services")
    with pytest.raises(Crash):
        plan.end(first)
    with pytest.raises(Crash):
        plan.end(second)
    with pytest.raises(Crash):
        plan.begin("POST jobs")
    assert plan.crashed.is_set()
    assert plan.writes == ["POST configmaps", "POST services"]


@pytest.mark.parametrize("drops_events", [True, False])
def test_plan_meets_every_kind_of_fault_and_each_seed_always_the_same(drops_events: bool) -> None:
    """Events are lost only where that is asked for."""
    requests = [(verb, f"/api/v1/pods/{n}") for n in range(300) for verb in ("GET", "PUT")]
    watches = [("GET", f"/api/v1/pods?watch=true&n={n}") for n in range(300)]
    first, second = (FaultPlan(7, most=10**6, drops_events=drops_events) for _ in range(2))
    for plan in (first, second):
        for request in requests + watches:
            plan.choose(*request)
    assert first.met == second.met
    assert kinds_of(first.met).keys() == every_kind() - (set() if drops_events else {"watch-drop-events"})


def _creation(job: str, owner: str, code: int = 201) -> dict[str, Any]:
    meta = {"name": job, "ownerReferences": [{"uid": f"uid of {owner}", "name": owner}]}
    return {
        "verb": "create",
        "objectRef": {"resource": "jobs", "namespace": "ns", "name": job},
        "responseStatus": {"code": code},
        "requestObject": {"metadata": meta},
    }


def test_job_that_was_created_twice_for_one_owner_is_found_in_the_audit_log(tmp_path: Path) -> None:
    """Refused ones do not count, nor lines that are not whole yet; a file that was put away is read to its end."""
    log = tmp_path / "audit.log"
    lines = [_creation("a-a1", "a"), _creation("a-a1", "a", 409), _creation("b-a1", "b")]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    creations = Creations(AuditLog(log))
    assert creations.more_than_one() == []

    log.rename(tmp_path / "audit-2026.log")
    again = json.dumps(_creation("a-a1", "a"))
    log.write_text(again[:50])
    assert creations.more_than_one() == []
    log.write_text(f"{again}\n")
    assert creations.more_than_one() == [("a", "a-a1", 2)]
