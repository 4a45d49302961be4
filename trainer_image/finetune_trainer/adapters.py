"""Table of adapters: how each method turns a base model into one with few trainable parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_trainer.config import LoraMethod, Method, MethodName, QloraMethod
from finetune_trainer.errors import ConfigError


def add_adapter(model: Any, method: Method) -> Any:
    """The model with fresh adapters that change nothing yet; their initial values come from torch's seed.

    Raises:
        ConfigError: the method does not fit the model's modules.
    """
    return _BUILDERS[method.name](model, getattr(method, method.name))


def _add_lora(model: Any, lora: LoraMethod) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear" if lora.target_modules == ["all-linear"] else lora.target_modules,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"spec.method.{'qlora' if isinstance(lora, QloraMethod) else 'lora'}.targetModules",
            ", ".join(lora.target_modules),
            str(error).split("\n")[0],
            'name modules that the model has, or use ["all-linear"]',
        ) from error


_BUILDERS: dict[MethodName, Callable[[Any, Any], Any]] = {"lora": _add_lora, "qlora": _add_lora}
