"""The base model: is it the one that was checked, in which dtype, and ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from finetune_trainer.adapters import add_adapter
from finetune_trainer.config import Method, ModelSource, Training
from finetune_trainer.errors import DataError
from finetune_trainer.fingerprint import fingerprint_model


def local_path(uri: str) -> Path:
    """The folder or file behind a ``file://`` URI.

    Raises:
        ValueError: the URI has another scheme; prepare stages everything that is remote.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise ValueError(f"{uri} must be a file:// URI")
    return Path(unquote(parts.path))


def verify_base(source: ModelSource) -> Path:
    """The model's folder, after comparing it with what prepare saw.

    Raises:
        DataError: it is missing, incomplete or another model.
    """
    folder = local_path(source.uri)
    try:
        digest = fingerprint_model(folder)
    except OSError as error:
        raise _fault(source, f"cannot be read: {error}", "check the volume or bucket that holds it") from error
    if digest != source.digest:
        message = f"has changed since it was checked: digest {digest[:12]}, expected {source.digest[:12]}"
        raise _fault(source, message, "restore the model, or set a new runId to train on the changed one")
    return folder


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def choose_dtype(training: Training) -> tuple[torch.dtype, str]:
    """The frozen base model's dtype, and why. Adapters and their optimizer state stay fp32 either way."""
    if training.precision == "fp32":
        return torch.float32, "precision is fp32"
    return torch.bfloat16, "precision is bf16: half the memory, and the base model is not updated"


def load_model(folder: Path, training: Training, method: Method, device: torch.device) -> Any:
    """The base model with fresh adapters on the device, in training mode.

    Only safetensors, no code from the model's repository, no network.
    """
    from transformers import AutoModelForCausalLM

    dtype, _ = choose_dtype(training)
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    ).to(device)
    if training.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Initial values belong to the run, not to the attempt: every attempt and rank starts from the same.
    torch.manual_seed(training.seed)
    model = add_adapter(base, method)
    assert any(parameter.requires_grad for parameter in model.parameters()), "the method made nothing trainable"
    model.train()
    return model


def _fault(source: ModelSource, message: str, remedy: str) -> DataError:
    return DataError("spec.model", source.source_uri, message, remedy)
