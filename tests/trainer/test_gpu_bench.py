"""The bench for GPUs runs where there is none, as far as that goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.tiny import Assets

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]


def test_the_gpu_bench_writes_what_happens_when_memory_runs_out(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code as on a GPU; the slow parts are left to whoever runs it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench" / "gpu"))
    import run

    page = tmp_path / "page.md"
    sizes = ["--device", "cpu", "--tiny", "--model", str(assets.model)]
    assert run.main([*sizes, "--only", "fit", "--out", str(page)]) == 0

    text = page.read_text(encoding="utf-8")
    assert "exit code 77" in text
    assert "dry step" in text
    assert "failed" not in text
