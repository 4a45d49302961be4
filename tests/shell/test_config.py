"""A setting that cannot work names its variable, its value and what it must be."""

from __future__ import annotations

import pytest

from finetune_operator.config import OperatorConfig
from finetune_operator.errors import ConfigError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("LOG_FORMAT", "xml", "must be one of text, json, is 'xml'"),
        ("LOG_LEVEL", "LOUD", "must be one of DEBUG, INFO, WARNING, ERROR, is 'LOUD'"),
        ("METRICS_PORT", "http", "must be a number, is 'http'"),
        ("WATCH_SECONDS", "0", "must be at least 1, is 0"),
    ],
)
def test_bad_settings_are_named(name: str, text: str, words: str) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError, match=f"^FINETUNE_OPERATOR_{name} {words}$"):
        OperatorConfig.from_env({f"FINETUNE_OPERATOR_{name}": text})


def test_words_are_read_in_any_case() -> None:
    """As people write them."""
    config = OperatorConfig.from_env({"FINETUNE_OPERATOR_LOG_LEVEL": "debug", "FINETUNE_OPERATOR_LOG_FORMAT": "JSON"})
    assert (config.log_level, config.log_format) == ("DEBUG", "json")
