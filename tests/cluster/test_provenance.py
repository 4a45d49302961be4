"""A measurement says which commit it was made on, and never a wrong one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from provenance import UNKNOWN, current_commit, made_on

pytestmark = pytest.mark.unit


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit."""
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=First"]):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / "proof.json").write_text("{}")
        (tmp_path / "code.py").write_text("")
        git(tmp_path, *words)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    """Seven characters at least."""
    assert git(checkout, "rev-parse", "HEAD").startswith(current_commit(checkout))
    assert len(current_commit(checkout)) >= 7


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_what_is_not_committed_is_marked(checkout: Path, name: str) -> None:
    """A file that git does not know runs, too."""
    clean = current_commit(checkout)
    (checkout / name).write_text("pass")
    assert current_commit(checkout) == f"{clean}+"


def test_records_of_measurements_are_no_change(checkout: Path) -> None:
    """The first measurement would mark the second."""
    clean = current_commit(checkout)
    (checkout / "docs" / "proof.json").write_text('{"cases": []}')
    assert current_commit(checkout) == clean


def test_a_download_without_history_is_unknown(tmp_path: Path) -> None:
    """Also where git itself is missing."""
    assert current_commit(tmp_path) == UNKNOWN
    assert current_commit(tmp_path / "nowhere") == UNKNOWN


def test_rows_of_several_commits_are_counted() -> None:
    """And those that were written before commits were."""
    old, new = {"commit": "1234567+"}, {"commit": "831c0f2"}
    assert made_on(new, new) == "on 831c0f2"
    assert made_on(new, new, old, {}) == "2 on 831c0f2, 1 on 1234567+, 1 on a commit that was not recorded"
