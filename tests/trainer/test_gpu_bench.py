"""The bench for GPUs runs where there is none, as far as that goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.tiny import Assets

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]


def test_the_gpu_bench_measures_a_point_and_runs_out_of_memory(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code as on a GPU: a sharded 4-bit run passes its self-test, a huge batch ends with 77."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench" / "gpu"))
    import run

    page = tmp_path / "page.md"
    sizes = ["--device", "cpu", "--tiny", "--model", str(assets.model)]
    assert run.main([*sizes, "--only", "points,fit", "--out", str(page)]) == 0

    text = page.read_text(encoding="utf-8")
    assert "self-test of sharded 4-bit weights passed" in text
    assert "exit code 77" in text
    assert "dry step" in text
    assert "failed" not in text
