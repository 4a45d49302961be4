"""What events leave behind is collected while it is young."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

STORY = """
import gc, json, weakref
from collections import deque

from kopf._cogs.structs.bodies import Body
from kopf._cogs.structs.patches import Patch

from finetune_operator.__main__ import calm_garbage_collector

calm_garbage_collector()
text = json.dumps({"metadata": {"name": "a"}, "spec": [{"env": [{"name": "a", "value": "b"}]} for _ in range(35)]})
alive, most, at_work = 0, 0, deque(maxlen=50)

def is_gone():
    global alive
    alive -= 1

for number in range(10_000):
    if number % 1_750 == 0:
        gc.collect()
    body = Body(json.loads(text))
    at_work.append((body, Patch(body=body)))
    weakref.finalize(body, is_gone)
    alive += 1
    most = max(most, alive)
print(most)
"""
"""Ten thousand events, of which fifty are being looked at at any time; how many there were at most.

As many as come in ten seconds where a thousand jobs begin lie between two times that old garbage is looked for.
"""


def test_of_the_events_of_a_burst_a_few_hundred_are_in_memory_at_any_time() -> None:
    """kopf's views of an object refer to each other, so that each event waits for the collector with all it shows."""
    done = subprocess.run([sys.executable, "-c", STORY], check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 500
