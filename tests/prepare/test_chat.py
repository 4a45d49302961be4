"""Templates are found and rendered as transformers does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_trainer.errors import DataError
from finetune_trainer.prepare.chat import load_renderer, read_chat_template
from prepare.makers import CHATML, MESSAGES, a_model

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "X"),
        ("chat_template.json", '{"chat_template": "X"}'),
        ("tokenizer_config.json", '{"chat_template": "X"}'),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "tools", "template": "Y"}, {"name": "default", "template": "X"}]}',
        ),
    ],
    ids=["jinja-file", "json-file", "tokenizer-config", "several-templates"],
)
def test_a_template_is_found_where_models_keep_it(tmp_path: Path, name: str, content: str) -> None:
    """transformers has moved it more than once."""
    folder = a_model(tmp_path / "model", chat_template=False)
    assert read_chat_template(folder) is None
    (folder / name).write_text(content)
    assert read_chat_template(folder) == "X"


def test_what_templates_use_works(tmp_path: Path) -> None:
    """Loop controls, generation marks, JSON without HTML escapes, special tokens in both notations, dates."""
    folder = a_model(tmp_path / "model")
    config = {"chat_template": CHATML, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    expected = '<s>user: {"role": "user", "content": "Ahoy <you>"}Log: é</s>%'
    assert load_renderer(folder)(MESSAGES, False) == expected


def test_a_template_that_is_not_valid_is_the_models_fault(tmp_path: Path) -> None:
    """No row is to blame."""
    folder = a_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(DataError, match="is not valid") as caught:
        load_renderer(folder)
    assert caught.value.fault.field == "spec.model"


def test_a_template_cannot_reach_out_of_the_sandbox(tmp_path: Path) -> None:
    """It is text from the internet."""
    folder = a_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__base__.__subclasses__() }}")
    with pytest.raises(Exception, match="unsafe"):
        load_renderer(folder)(MESSAGES, False)
