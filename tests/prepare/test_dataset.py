"""Every line is checked; what is wrong is named with line, field, value and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_trainer.errors import DataError, PreemptedError
from finetune_trainer.messages import UserFault
from finetune_trainer.prepare.dataset import Dataset, read_dataset
from finetune_trainer.prepare.stop import Stop
from prepare.makers import chat, write_rows

pytestmark = pytest.mark.unit

GOOD = chat("Is the tide high?")


def read(file: Path) -> Dataset:
    return read_dataset("spec.dataset", file, Stop())


def fault_of(file: Path) -> UserFault:
    with pytest.raises(DataError) as caught:
        read(file)
    assert caught.value.fault.field == "spec.dataset"
    return caught.value.fault


BAD_LINES = {
    "not-json": ("{messages", "is not JSON at column 2", "{messages", 'write {"messages"'),
    "not-an-object": ("[1, 2]", "is a list, must be an object", "[1, 2]", 'write {"messages"'),
    "a-number": ("3", "is a number, must be an object", "3", 'write {"messages"'),
    "no-known-field": (
        {"text": "hello"},
        "has neither messages nor prompt and completion (found: text)",
        '{"text": "hello"}',
        'write {"messages"',
    ),
    "no-field": ({}, "(found: no field)", "{}", 'write {"messages"'),
    "completion-missing": ({"prompt": "a"}, "completion is missing", '{"prompt": "a"}', "text in completion"),
    "prompt-missing": ({"completion": "a"}, "prompt is missing", '{"completion": "a"}', "text in prompt"),
    "completion-empty": ({"prompt": "a", "completion": " "}, "completion is empty", '" "', "drop the row"),
    "prompt-not-text": (
        {"prompt": 7, "completion": "b"},
        "prompt is a number, must be a string",
        "7",
        "in quotes",
    ),
    "both-formats": (GOOD | {"prompt": "a"}, "has both messages and prompt", '{"messages"', "keep one"),
    "messages-not-a-list": (
        {"messages": "hello"},
        "messages is a string, must be a list",
        '"hello"',
        "write",
    ),
    "messages-empty": ({"messages": []}, "messages is an empty list", "[]", "write"),
    "message-not-an-object": ({"messages": ["hello"]}, "messages[0] is a string", '"hello"', "write"),
    "role-missing": ({"messages": [{"content": "a"}]}, "messages[0].role is missing", "{", "a role"),
    "role-unknown": (
        {"messages": [{"role": "bot", "content": "a"}]},
        'messages[0].role is "bot", must be one of system, user, assistant',
        '"bot"',
        "rename the role",
    ),
    "role-not-text": (
        {"messages": [{"role": ["user"], "content": "a"}]},
        "messages[0].role is",
        "[",
        "rename",
    ),
    "content-missing": (
        {"messages": [{"role": "user"}]},
        "messages[0].content is missing",
        "{",
        "text in content",
    ),
    "content-null": (
        {"messages": [{"role": "assistant", "content": None}]},
        "messages[0].content is null, must be a string",
        "null",
        "in quotes",
    ),
    "content-empty": (chat("why?", ""), "messages[1].content is empty", '""', "drop the row"),
    "last-is-user": (
        {"messages": [{"role": "user", "content": "a"}]},
        'messages[0].role is "user", the last message must be from the assistant',
        '"user"',
        "end each conversation with the answer",
    ),
    "nan": (
        '{"prompt": "a", "completion": NaN}',
        "has NaN, which is not JSON",
        '{"prompt"',
        "missing values",
    ),
    "infinity": ('{"prompt": -Infinity, "completion": "a"}', "has -Infinity", "{", "missing values"),
    "half-a-surrogate": (chat("a", "\ud83d"), "has half of a surrogate pair", '"\\ud83d"', "UTF-8"),
    "other-format": (
        {"prompt": "a", "completion": "b"},
        "has the format prompt-completion, but line 1 has messages",
        '{"prompt": "a", "completion": "b"}',
        "one format",
    ),
}


@pytest.mark.parametrize(("line", "problem", "value", "remedy"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_with_what_is_wrong_and_what_helps(
    tmp_path: Path, line: object, problem: str, value: str, remedy: str
) -> None:
    """The bad line is number 3, between good ones."""
    fault = fault_of(write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD, line, GOOD]))
    assert fault.message.startswith("line 3: ")
    assert problem in fault.message
    assert fault.value.startswith(value)
    assert remedy in fault.remedy


def test_five_bad_lines_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    """One report mends a whole file."""
    fault = fault_of(write_rows(tmp_path / "rows.jsonl", [GOOD, *["{"] * 8]))
    assert [f"line {number}:" in fault.message for number in (2, 6, 7)] == [True, True, False]
    assert fault.message.endswith("; 3 more")


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    """A termination message is 4 KiB."""
    fault = fault_of(write_rows(tmp_path / "rows.jsonl", [{"prompt": ["x" * 5000], "completion": "b"}]))
    assert len(fault.value) == 120
    assert len(fault.message) < 500


@pytest.mark.parametrize("content", [b"", b"\n\n"], ids=["no-bytes", "blank-lines"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Nothing to learn from."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert fault_of(file).message == "the file is empty"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The path on the volume is named."""
    fault = fault_of(tmp_path / "rows.jsonl")
    assert fault.value == str(tmp_path / "rows.jsonl")


def test_another_encoding_is_refused_with_the_byte(tmp_path: Path) -> None:
    """Latin-1 exports are common."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"prompt": "é", "completion": "b"}\n'.encode("latin-1"))
    assert fault_of(file).message == "line 1: is not UTF-8 at byte 13"


def test_a_blank_line_between_rows_is_refused_and_at_the_end_allowed(tmp_path: Path) -> None:
    """In the middle it hints at a broken export."""
    assert len(read(write_rows(tmp_path / "end.jsonl", [GOOD, "", ""])).rows) == 1
    assert fault_of(write_rows(tmp_path / "middle.jsonl", [GOOD, "", GOOD])).message == "line 2: is blank"


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    """Files from Windows work, with a warning for the mark."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    dataset = read(file)
    assert len(dataset.rows) == 1
    assert "byte order mark" in dataset.warnings[0]


def test_extra_fields_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """Identifiers and sources neither fail the job nor reach the digest."""
    extra = {"messages": [message | {"weight": 1} for message in GOOD["messages"]], "id": 7}
    dataset = read(write_rows(tmp_path / "rows.jsonl", [extra]))
    assert dataset.rows == read(write_rows(tmp_path / "plain.jsonl", [GOOD])).rows
    assert dataset.warnings == ["fields that training does not use were left out: id, messages[].weight"]


def test_the_same_content_gives_the_same_row_however_it_is_written(tmp_path: Path) -> None:
    """Order of keys, spacing and escapes do not count."""
    one = read(write_rows(tmp_path / "a.jsonl", ['{"prompt":"é","completion":"b"}'])).rows
    other = read(write_rows(tmp_path / "b.jsonl", ['{ "completion": "b", "prompt": "\\u00e9" }'])).rows
    assert one == other
    assert one[0].canonical == '{"completion":"b","prompt":"é"}'


def test_reading_stops_when_told_to(tmp_path: Path) -> None:
    """A long file does not delay the end of the pod."""
    stop = Stop()
    stop._requested = True
    with pytest.raises(PreemptedError):
        read_dataset("spec.dataset", write_rows(tmp_path / "rows.jsonl", [GOOD]), stop)
