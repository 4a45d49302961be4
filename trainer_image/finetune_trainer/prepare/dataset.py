"""Reading a JSON Lines dataset: every line is checked, and the bad ones are named before a GPU is held.

A row is ``{"messages": [{"role", "content"}, …]}`` ending with the assistant, or ``{"prompt",
"completion"}``; one file has one format. Rows are kept as canonical JSON: the same content gives the same
text, whatever the spacing, the order of keys or extra fields, so the data digest and the split depend on
content only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from finetune_trainer.errors import DataError, shorten
from finetune_trainer.prepare.stop import Stop

RowFormat = Literal["messages", "prompt-completion"]

_BOM = b"\xef\xbb\xbf"
_LINE_LIMIT = 16 * 1024 * 1024
_SHOWN_LINES = 5
_ROLES = ("system", "user", "assistant")
_ROW_KEYS = frozenset({"messages", "prompt", "completion"})
_MESSAGE_KEYS = frozenset({"role", "content"})
_WHOLE_LINE = object()
"""Stands for "show the line itself" where no single value is to blame."""
_SHAPES = 'write {"messages": [{"role": …, "content": …}, …]} or {"prompt": …, "completion": …} on each line'


@dataclass(frozen=True, slots=True)
class Row:
    """One checked row."""

    format: RowFormat
    canonical: str
    line: int = field(default=0, compare=False)
    """Number in the file, from 1; not part of what the row is."""


@dataclass
class Dataset:
    """All rows of one file, in its order."""

    format: RowFormat
    rows: list[Row]
    warnings: list[str] = field(default_factory=list)


class BadLineError(Exception):
    """One line that cannot be used: where in it, what is wrong, what would be right."""

    def __init__(self, where: str, problem: str, remedy: str, value: object = _WHOLE_LINE) -> None:
        super().__init__(f"{where} {problem}" if where else problem)
        self.where = where
        self.remedy = remedy
        self.value = value


def read_dataset(field_path: str, file: Path, stop: Stop) -> Dataset:
    """Read and check a whole file.

    Raises:
        DataError: lines are bad (the first five are named), the file is missing, empty or not UTF-8.
        PreemptedError: SIGTERM arrived.
    """
    if not file.is_file():
        raise DataError(field_path, str(file), f"{file} is not a file on the volume", "name a .jsonl file")
    reader = _Reader(field_path)
    with file.open("rb") as handle:
        for number, line in enumerate(iter(lambda: handle.readline(_LINE_LIMIT + 1), b""), start=1):
            stop.check()
            reader.feed(number, line)
    return reader.finish()


class LineFaults:
    """Collects bad lines, shows the first five and counts the others."""

    def __init__(self, field_path: str) -> None:
        self._field = field_path
        self._shown: list[str] = []
        self._count = 0
        self._value = self._remedy = ""

    def add(self, number: int, value: str, problem: str, remedy: str) -> None:
        """Remember a line; value and remedy of the first one are reported."""
        if not self._count:
            self._value, self._remedy = value, remedy
        self._count += 1
        if len(self._shown) < _SHOWN_LINES:
            self._shown.append(f"line {number}: {problem}")

    def raise_if_any(self) -> None:
        """Return if there was none.

        Raises:
            DataError: names the lines.
        """
        if not self._count:
            return
        more = [f"{self._count - len(self._shown)} more"] if self._count > len(self._shown) else []
        raise DataError(self._field, self._value, "; ".join(self._shown + more), self._remedy)


class _Reader:
    """Collects rows, bad lines and warnings of one file."""

    def __init__(self, field_path: str) -> None:
        self._field = field_path
        self._rows: list[Row] = []
        self._format: RowFormat | None = None
        self._format_line = 0
        self._faults = LineFaults(field_path)
        self._blank: list[int] = []
        self._ignored: set[str] = set()
        self._warnings: list[str] = []

    def feed(self, number: int, line: bytes) -> None:
        """Check one line; what is wrong with it is remembered, not raised."""
        if number == 1 and line.startswith(_BOM):
            line = line.removeprefix(_BOM)
            self._warnings.append("line 1 begins with a byte order mark, which was ignored")
        if not line.strip():
            self._blank.append(number)
            return
        # Blank lines at the end are harmless; one that a row follows hints at a broken export.
        for blank in self._blank:
            self._reject(blank, b"", BadLineError("", "is blank", "remove blank lines"))
        self._blank.clear()
        try:
            self._accept(number, line)
        except BadLineError as bad:
            self._reject(number, line, bad)

    def finish(self) -> Dataset:
        """The dataset, or the fault that names the bad lines."""
        self._faults.raise_if_any()
        if self._format is None:
            raise DataError(self._field, "0 rows", "the file is empty", _SHAPES)
        if self._ignored:
            names = shorten(", ".join(sorted(self._ignored)))
            self._warnings.append(f"fields that training does not use were left out: {names}")
        return Dataset(self._format, self._rows, self._warnings)

    def _accept(self, number: int, line: bytes) -> None:
        value = _parse(line)
        row = _messages_row(value) if "messages" in value else _prompt_row(value)
        if self._format is None:
            self._format, self._format_line = row.format, number
        elif row.format != self._format:
            raise BadLineError(
                "",
                f"has the format {row.format}, but line {self._format_line} has {self._format}",
                "use one format in a file",
            )
        self._ignored |= set(value) - _ROW_KEYS
        for message in value.get("messages", ()):
            self._ignored |= {f"messages[].{key}" for key in set(message) - _MESSAGE_KEYS}
        self._rows.append(replace(row, line=number))

    def _reject(self, number: int, line: bytes, bad: BadLineError) -> None:
        whole = bad.value is _WHOLE_LINE
        value = line.decode(errors="replace").strip() if whole else _show(bad.value)
        self._faults.add(number, value, str(bad), bad.remedy)


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > _LINE_LIMIT:
        raise BadLineError("", f"is longer than {_LINE_LIMIT // 2**20} MiB", "split the row, or write one row a line")
    try:
        value = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadLineError("", f"is not UTF-8 at byte {error.start + 1}", "save the file as UTF-8") from error
    except RecursionError as error:
        raise BadLineError("", "is nested too deeply", _SHAPES) from error
    except json.JSONDecodeError as error:
        raise BadLineError("", f"is not JSON at column {error.colno}: {error.msg}", _SHAPES) from error
    if not isinstance(value, dict):
        raise BadLineError("", f"is {_kind(value)}, must be an object", _SHAPES)
    return value


def _refuse_constant(name: str) -> NoReturn:
    """``json`` reads NaN and Infinity, which are not JSON and come from a missing value in a data frame."""
    raise BadLineError("", f"has {name}, which is not JSON", "drop rows with missing values before you export")


def _messages_row(value: dict[str, Any]) -> Row:
    if clash := sorted({"prompt", "completion"} & set(value)):
        raise BadLineError("", f"has both messages and {clash[0]}", "keep one of the two formats")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadLineError("messages", f"is {_kind(messages)}, must be a list of messages", _SHAPES, messages)
    kept = [_message(index, message) for index, message in enumerate(messages)]
    if kept[-1]["role"] != "assistant":
        raise BadLineError(
            f"messages[{len(kept) - 1}].role",
            f'is "{kept[-1]["role"]}", the last message must be from the assistant',
            "end each conversation with the answer to learn",
            kept[-1]["role"],
        )
    return Row("messages", _canonical({"messages": kept}))


def _message(index: int, message: Any) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise BadLineError(where, f"is {_kind(message)}, must be an object with role and content", _SHAPES, message)
    if "role" not in message:
        raise BadLineError(f"{where}.role", "is missing", f"give each message a role: {', '.join(_ROLES)}")
    role = message["role"]
    if role not in _ROLES:
        shown = shorten(_show(role), 40)
        remedy = f"rename the role to one of: {', '.join(_ROLES)}"
        raise BadLineError(f"{where}.role", f"is {shown}, must be one of {', '.join(_ROLES)}", remedy, role)
    return {"role": role, "content": _text(f"{where}.content", message, "content")}


def _prompt_row(value: dict[str, Any]) -> Row:
    if not {"prompt", "completion"} & set(value):
        found = shorten(", ".join(sorted(value)) or "no field", 80)
        raise BadLineError("", f"has neither messages nor prompt and completion (found: {found})", _SHAPES)
    prompt, completion = _text("prompt", value, "prompt"), _text("completion", value, "completion")
    return Row("prompt-completion", _canonical({"prompt": prompt, "completion": completion}))


def _text(where: str, holder: dict[str, Any], key: str) -> str:
    if key not in holder:
        raise BadLineError(where, "is missing", f"give each row a text in {key}")
    text = holder[key]
    if not isinstance(text, str):
        raise BadLineError(where, f"is {_kind(text)}, must be a string", f"write {key} as text in quotes", text)
    if not text.strip():
        raise BadLineError(where, "is empty", "fill it, or drop the row", text)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadLineError(where, "has half of a surrogate pair", "export the text as UTF-8 again", text)
    return text


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def canonical_lines(rows: list[Row]) -> Iterator[bytes]:
    """The rows as the lines of a canonical file."""
    for row in rows:
        yield row.canonical.encode() + b"\n"


def _show(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)


def _kind(value: object) -> str:
    """JSON's word for a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return f"an empty {names[type(value)].split()[-1]}" if value in ([], {}) else names[type(value)]
