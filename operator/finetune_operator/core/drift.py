"""``SpecDrifted``: how the spec differs from the one that the run was accepted with.

An edit of a running job is accepted, because a refusal would block everything else that a GitOps pipeline applies with
it. The run goes on as accepted, and the condition says so, or with ``onChange: Restart`` it is run anew.
"""

from __future__ import annotations

from typing import Any

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.constants import ConditionType, Reason
from finetune_operator.core.draft import Draft, cut

LIVE_FIELDS = frozenset({"runId", "suspend", "onChange", "ttlSecondsAfterFinished"})
"""They act at once: no run keeps its own."""

_SHOWN = 5
_VALUE_LIMIT = 60


def differences(accepted: FineTuneJobSpec, spec: FineTuneJobSpec) -> list[str]:
    """``training.learningRate: 0.0002 -> 0.0001`` for every field that differs."""
    old, new = accepted.to_dict(), spec.to_dict()
    return [
        difference
        for key in sorted((old.keys() | new.keys()) - LIVE_FIELDS)
        for difference in _compare(key, old.get(key), new.get(key))
    ]


def report(draft: Draft) -> None:
    """Set the condition, once there is something that the spec can differ from."""
    snapshot, spec = draft.observed.snapshot, draft.observed.job.spec
    if snapshot is None or spec is None or draft.status.run is None:
        return
    changes = differences(snapshot.spec, spec)
    if not changes:
        draft.condition(ConditionType.SPEC_DRIFTED, False, Reason.AS_ACCEPTED)
        return
    shown = "; ".join(changes[:_SHOWN]) + (f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
    if spec.on_change == "Restart":
        draft.condition(ConditionType.SPEC_DRIFTED, True, Reason.EDITED, f"the run is given up for: {shown}")
        return
    is_news = draft.condition(
        ConditionType.SPEC_DRIFTED,
        True,
        Reason.EDITED,
        f"the run stays as it was accepted; not applied: {shown}. To apply it change spec.runId, or set spec.onChange: "
        "Restart",
    )
    if is_news:
        draft.event(Reason.EDITED, f"the spec was edited and not applied: {shown}", key=shown)


def _compare(path: str, old: Any, new: Any) -> list[str]:
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [item for key in keys for item in _compare(f"{path}.{key}", old.get(key), new.get(key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [item for number, (one, other) in pairs for item in _compare(f"{path}[{number}]", one, other)]
    return [f"{path}: {_show(old)} -> {_show(new)}"]


def _show(value: Any) -> str:
    return "unset" if value is None else cut(str(value), _VALUE_LIMIT)
