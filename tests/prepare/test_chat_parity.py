"""Prepare renders as the trainer does: our small renderer against transformers on the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_trainer.prepare.chat import load_renderer
from prepare.makers import CHATML, MESSAGES, a_model

pytestmark = pytest.mark.trainer


def test_the_text_is_the_one_that_transformers_renders(tmp_path: Path) -> None:
    """Else prepare would pass rows that the trainer refuses."""
    from transformers import PreTrainedTokenizerFast

    folder = a_model(tmp_path / "model")
    config = {"chat_template": CHATML, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert load_renderer(folder)(MESSAGES, False) == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
