"""What log lines look like, and which job and attempt they speak of.

The job is set once, where its pass begins, and every line that is logged on the way carries it, in tasks that the pass
starts as well: a task inherits the context it is created in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from finetune_operator.shell.object_key import ObjectKey

_fields: ContextVar[dict[str, str | int] | None] = ContextVar("fields of log lines", default=None)

_KOPF_FIELDS = ("k8s_skip", "k8s_ref", "settings")
"""What kopf attaches to its records for itself."""
_QUIET = ("kopf", "aiohttp.access")
"""They tell every event and every probe."""


@contextmanager
def about_job(key: ObjectKey) -> Iterator[None]:
    """Lines of this block speak of this job."""
    token = _fields.set({"job": f"{key.namespace}/{key.name}"})
    try:
        yield
    finally:
        _fields.reset(token)


def about_attempt(number: int) -> None:
    """From here to the end of the block they speak of this attempt; 0: there is none yet."""
    fields = _fields.get()
    if fields is not None and number:
        _fields.set({**fields, "attempt": number})


def set_up_logging(level: str, format_: str) -> None:
    """Everything goes to standard error: one JSON object per line for log stores, or text for a terminal."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_fields)
    handler.setFormatter(json_formatter() if format_ == "json" else text_formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def json_formatter() -> logging.Formatter:
    """``time``, ``level``, ``logger``, ``message``, and ``job`` and ``attempt`` where they are known."""
    return JsonFormatter(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger"},
        reserved_attrs=[*RESERVED_ATTRS, *_KOPF_FIELDS],
        timestamp="time",
    )


def text_formatter() -> logging.Formatter:
    """The job only: a terminal is narrow."""
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s %(job)s: %(message)s", defaults={"job": "-"})


def _add_fields(record: logging.LogRecord) -> bool:
    record.__dict__.update(_fields.get() or {})
    return True
