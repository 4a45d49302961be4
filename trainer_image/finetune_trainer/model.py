"""The base model: is it the one that was checked, in which dtype, and ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from finetune_trainer.adapters import add_adapter
from finetune_trainer.config import ModelSource, QloraMethod, TrainConfig
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


def choose_dtype(config: TrainConfig) -> tuple[torch.dtype, str]:
    """The dtype in which the base model is loaded, and why. What is trained is fp32 in every case."""
    if config.method.full is not None:
        return torch.float32, f"all of it is trained; forward and backward compute in {config.training.precision}"
    if config.training.precision == "fp32":
        return torch.float32, "precision is fp32"
    return torch.bfloat16, "precision is bf16: half the memory, and the base model is not updated"


def load_model(folder: Path, config: TrainConfig, device: torch.device) -> Any:
    """The base model, with fresh adapters where the method has some, in training mode.

    It lies in host memory, and the strategy moves it; only 4-bit weights are made where they stay, on ``device``.
    Only safetensors, no code from the model's repository, no network.
    """
    from transformers import AutoModelForCausalLM

    dtype, _ = choose_dtype(config)
    settings: dict[str, Any] = {}
    if config.method.qlora is not None:
        settings = {"quantization_config": _quantization(config, config.method.qlora), "device_map": {"": device}}
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False, **settings
    )
    for module in base.modules():
        # On CPUs with AVX512-BF16 any forward pass without gradients would repack 4-bit weights in place, which
        # shifts the losses, and corrupts weights that are sharded.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config.training.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Initial values belong to the run, not to the attempt: every attempt and rank starts from the same.
    torch.manual_seed(config.training.seed)
    model = base if config.method.full is not None else add_adapter(base, config.method)
    assert any(parameter.requires_grad for parameter in model.parameters()), "the method made nothing trainable"
    model.train()
    return model


def _quantization(config: TrainConfig, qlora: QloraMethod) -> Any:
    """FSDP shards packed weights as numbers of their storage dtype, which must be the one it computes in."""
    from transformers import BitsAndBytesConfig

    compute, _ = choose_dtype(config)
    automatic = compute if config.distributed.strategy == "FSDP" else torch.uint8
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=qlora.quant_type,
        bnb_4bit_use_double_quant=qlora.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=getattr(torch, qlora.quant_storage) if qlora.quant_storage else automatic,
    )


def _fault(source: ModelSource, message: str, remedy: str) -> DataError:
    return DataError("spec.model", source.source_uri, message, remedy)
