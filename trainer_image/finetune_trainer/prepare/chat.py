"""The model's chat template, tried on every row: some refuse a system message, or roles out of turn.

The trainer renders with transformers, which is too heavy to import here; what a template may use (the
sandbox, a few functions and the special tokens) is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune_trainer.prepare.dataset import LineFaults, Row
from finetune_trainer.prepare.errors import UserFaultError, shorten
from finetune_trainer.prepare.model import FIELD as MODEL_FIELD
from finetune_trainer.prepare.model import read_json
from finetune_trainer.prepare.stop import Stop

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def check_messages_render(field: str, folder: Path, rows: list[Row], stop: Stop) -> None:
    """Render every row with the template of the model in ``folder``.

    Raises:
        UserFaultError: the model has no usable template, or it refuses rows (the first five are named).
        StopRequestedError: SIGTERM arrived.
    """
    render = load_renderer(folder)
    faults = LineFaults(field)
    for row in rows:
        stop.check()
        try:
            render(json.loads(row.canonical)["messages"])
        except Exception as error:  # a template raises whatever its author chose
            faults.add(
                row.line,
                row.canonical,
                f"the model's chat template refuses it: {shorten(str(error), 200)}",
                "change the roles of the row as the model wants them, or use another model",
            )
    faults.raise_if_any()


def load_renderer(folder: Path) -> Callable[[list[dict[str, str]]], str]:
    """A function from messages to text.

    Raises:
        UserFaultError: there is no template, or it is not valid.
    """
    template = read_chat_template(folder)
    if template is None:
        raise UserFaultError(
            MODEL_FIELD,
            "tokenizer_config.json: chat_template",
            "the dataset has messages, but the model has no chat template",
            "use the instruct version of the model, add chat_template.jinja to its folder, "
            "or write the dataset as prompt and completion",
        )
    try:
        compiled = _environment().from_string(template)
    except TemplateError as error:
        raise UserFaultError(
            MODEL_FIELD,
            template,
            f"the model's chat template is not valid: {error}",
            "save the tokenizer again: tokenizer.save_pretrained(folder)",
        ) from error
    tokens = _special_tokens(folder)
    return lambda messages: compiled.render(
        messages=messages, tools=None, documents=None, add_generation_prompt=False, **tokens
    )


def read_chat_template(folder: Path) -> str | None:
    """The template where transformers looks for it: in its own file, then in the tokenizer's settings."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (found := read_json(folder / name).get("chat_template")):
            return _default_of(found)
    return None


def _default_of(found: Any) -> str | None:
    """Some models have several templates, by name."""
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(folder: Path) -> dict[str, str]:
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    tokens = {name: config.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    """Unlike jinja's own, this does not escape for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise TemplateError(message)


class _GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's part for masks; for text it has no meaning."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the body, drop the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
