"""What rank 0 says on stdout, and what is noted of it for the pod's last word."""

from __future__ import annotations

import io

import pytest

from finetune_trainer.messages import WarningLine, parse_line
from finetune_trainer.progress import Reporter

pytestmark = pytest.mark.unit


def test_a_warning_may_name_a_file_whose_name_is_no_utf_8() -> None:
    """JSON has no lone surrogates; neither the line nor the training may be lost for one."""
    out, notes = io.StringIO(), list[tuple[str, str]]()
    reporter = Reporter(out, 10, 10, 1, note=lambda *said: notes.append(said))
    reporter.spread("DDP")
    reporter.warn("checkpoint \udcff is passed over")
    line = parse_line(out.getvalue().splitlines()[-1])
    assert isinstance(line, WarningLine)
    assert line.message == "checkpoint ? is passed over"
    assert notes == [("DDP", ""), ("DDP", line.message)]


def test_only_rank_0_leaves_a_note() -> None:
    """The others share the file with it, or have none of their own."""
    notes = list[tuple[str, str]]()
    reporter = Reporter(None, 10, 10, 1, note=lambda *said: notes.append(said))
    reporter.spread("DDP")
    reporter.warn("slow")
    assert notes == []
