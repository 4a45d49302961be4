"""The model's chat template, without transformers: every row is tried, for some refuse roles out of turn.

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

from finetune_trainer.errors import DataError
from finetune_trainer.prepare.model import FIELD as MODEL_FIELD
from finetune_trainer.prepare.model import read_json

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_renderer(folder: Path) -> Callable[[list[dict[str, Any]], bool], str]:
    """A function from messages, and whether the beginning of an answer is added, to text.

    Raises:
        DataError: there is no template, or it is not valid.
    """
    template = read_chat_template(folder)
    if template is None:
        raise DataError(
            MODEL_FIELD,
            "tokenizer_config.json: chat_template",
            "the dataset has messages, but the model has no chat template",
            "use the instruct version of the model, add chat_template.jinja to its folder, "
            "or write the dataset as prompt and completion",
        )
    try:
        compiled = _environment().from_string(template)
    except TemplateError as error:
        raise DataError(
            MODEL_FIELD,
            template,
            f"the model's chat template is not valid: {error}",
            "save the tokenizer again: tokenizer.save_pretrained(folder)",
        ) from error
    tokens = read_special_tokens(folder)
    return lambda messages, generate: compiled.render(
        messages=messages, tools=None, documents=None, add_generation_prompt=generate, **tokens
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


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The texts of the special tokens that the model has, by transformers' names."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one wins
        config = read_json(folder / name) if (folder / name).is_file() else {}
        found |= {token: config[token] for token in _SPECIAL_TOKENS if config.get(token)}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
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
