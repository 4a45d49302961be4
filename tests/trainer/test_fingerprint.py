"""The digest of a base model's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer.fingerprint import fingerprint_model

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}" * 700_000)
    (tmp_path / "model.safetensors").write_bytes(b"h" * 3_000_000)
    return tmp_path


def test_the_digest_is_stable_and_hexadecimal(folder: Path) -> None:
    """Two readings agree, and the value fits the contract's pattern."""
    digest = fingerprint_model(folder)

    assert digest == fingerprint_model(folder)
    assert len(digest) == 64


def test_files_that_transformers_does_not_read_do_not_count(folder: Path) -> None:
    """A README or a subfolder does not make it another model."""
    before = fingerprint_model(folder)
    (folder / "README.md").write_text("hello")
    (folder / ".cache").mkdir()

    assert fingerprint_model(folder) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("model.safetensors", lambda old: b"H" + old[1:], id="safetensors-header"),
        pytest.param("model.safetensors", lambda old: old[:-1], id="truncated-weights"),
        pytest.param("config.json", lambda old: old.replace(b"llama", b"gemma"), id="config"),
        pytest.param("tokenizer.json", lambda old: old[:-1] + b"]", id="end-of-a-large-tokenizer"),
    ],
)
def test_what_matters_changes_the_digest(folder: Path, name: str, change) -> None:  # type: ignore[no-untyped-def]
    """Headers, sizes, the configuration and the whole tokenizer count."""
    before = fingerprint_model(folder)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))

    assert fingerprint_model(folder) != before


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(folder: Path, missing: str) -> None:
    """There is no digest of something that cannot be loaded."""
    (folder / missing).unlink()

    with pytest.raises(FileNotFoundError, match=missing.split(".")[-1]):
        fingerprint_model(folder)
