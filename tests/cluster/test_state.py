"""What the test cluster keeps on disk, and how it tells a process from a later one with the same number."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.__main__ import main, parser
from e2e.cluster.errors import ClusterError
from e2e.cluster.packages import missing_packages
from e2e.cluster.shell import locked, run, wait_for
from e2e.cluster.state import Machine, Node, Process, State, cluster_names, load, require, slots_in_use, start_time

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_OPERATOR_STATE", str(tmp_path))


def a_state() -> State:
    node = Node(1, 8, Machine("ftop-x-node-1", [Process(1, 2)]), images={"localhost/a:1": "12-34"})
    return State("x", 7, Machine("ftop-x"), gpus=8, nodes={"node-1": node}, images={"localhost/a:1": "/a.tar"})


def test_state_survives_a_round_trip() -> None:
    """What is written is what is read."""
    a_state().save()
    assert load("x") == a_state()
    assert cluster_names() == ["x"]
    assert slots_in_use() == {"x": 7}


def test_state_of_another_version_is_refused(tmp_path: Path) -> None:
    """Rather than misread."""
    state = a_state()
    state.format = 99
    state.save()
    with pytest.raises(ClusterError, match="format 99"):
        load("x")


def test_a_missing_cluster_says_how_to_start_one() -> None:
    """The remedy is a command."""
    with pytest.raises(ClusterError, match="up --name nope"):
        require("nope")


def test_a_process_is_known_by_its_start_time() -> None:
    """A number that was used again is not our process."""
    started = start_time(os.getpid())
    assert started is not None
    assert Process(os.getpid(), started).alive()
    assert not Process(os.getpid(), started + 1).alive()


def test_a_zombie_is_not_alive() -> None:
    """A child that ended but was not collected."""
    child = subprocess.Popen(["true"])
    wait_for("the end", lambda: start_time(child.pid) is None, timeout=10, every=0.01)
    child.wait(timeout=10)


def test_missing_packages_are_named_once() -> None:
    """Several files of one package are one package."""
    assert missing_packages({"sh": "dash", "/no/such/a": "pkg", "/no/such/b": "pkg"}) == ["pkg"]


def test_a_lock_waits_no_longer_than_told(tmp_path: Path) -> None:
    """Two runs at once do not build the same thing."""
    with (
        locked(tmp_path / "lock"),
        pytest.raises(ClusterError, match="another run"),
        locked(tmp_path / "lock", timeout=0),
    ):
        pass


def test_a_command_that_hangs_is_ended() -> None:
    """Every command is bounded in time."""
    with pytest.raises(ClusterError, match="no end after"):
        run(["sleep", "60"], timeout=0.1)


def test_a_failing_command_shows_its_last_words() -> None:
    """The reader should not need a second run to see why."""
    with pytest.raises(ClusterError, match="because"):
        run(["sh", "-c", "echo because >&2; exit 3"], timeout=10)


@pytest.mark.parametrize("name", ["Big", "-x", "a" * 30, "x_y"], ids=["upper case", "dash", "long", "underscore"])
def test_cluster_names_are_checked(name: str) -> None:
    """The name becomes part of device, namespace and cgroup names."""
    with pytest.raises(SystemExit):
        parser().parse_args(["up", "--name", name])


def test_without_root_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A clear message with the remedy, and nothing half up."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["up"]) == 1
    assert "sudo -E python -m e2e.cluster up" in capsys.readouterr().err
    assert cluster_names() == []


def test_left_over_cluster_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a restart of the machine the state is there and the processes are not."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    a_state().save()
    assert main(["up", "--name", "x"]) == 1
    assert "down --name x" in capsys.readouterr().err
