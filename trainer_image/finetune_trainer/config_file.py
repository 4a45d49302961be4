"""Reading the mounted configuration: the one place where something that does not validate is the user's fault.

What does not parse later, a manifest or a file that a worker left, is damage or a bug, never exit code 64.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from finetune_trainer.config import CONFIG_PATH, PrepareConfig, TrainConfig
from finetune_trainer.errors import ConfigError
from finetune_trainer.uri_prefixes import find_uri_fault

Config = TypeVar("Config", TrainConfig, PrepareConfig)

_SPEC_FIELDS = {
    "training": "spec.training",
    "method": "spec.method",
    "model": "spec.model",
    "data": "spec.dataset",
    "evaluation": "spec.evaluation",
    "checkpoint": "spec.checkpoint",
    "output": "spec.output",
}


def load_train_config(path: Path = CONFIG_PATH) -> TrainConfig:
    """Read and check the configuration of an attempt.

    Raises:
        ConfigError: it cannot be read; a field is missing, unknown or out of bounds; or a URI leads to where the
            runtime does not allow.
    """
    return _load(path, TrainConfig)


def load_prepare_config(path: Path = CONFIG_PATH) -> PrepareConfig:
    """Read and check the configuration of the CPU stage; raises like :func:`load_train_config`."""
    return _load(path, PrepareConfig)


def _load(path: Path, kind: type[Config]) -> Config:
    try:
        config = kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            "FINETUNE_CONFIG",
            path,
            f"{path} cannot be read: {error.strerror}",
            "mount the operator's ConfigMap there, or name another file by FINETUNE_CONFIG",
        ) from error
    except ValidationError as error:
        raise _config_error(error) from error
    if config.allowed_uri_prefixes is not None:
        for field, uri in config.uris().items():
            check_uri(field, uri, config.allowed_uri_prefixes)
    return config


def check_uri(field: str, uri: str, prefixes: list[str]) -> None:
    """Refuse what the runtime does not allow. Acceptance has done so; this holds for whatever was changed since.

    Raises:
        ConfigError: it does not begin with any of the prefixes, or may be read in two ways.
    """
    fault = find_uri_fault(uri, prefixes)
    if fault is not None:
        remedy = "use a URI that the FineTuneRuntime's allowedUriPrefixes allow, or ask its owner to add a prefix"
        raise ConfigError(field, uri, f"{uri} {fault}", remedy)


def _config_error(error: ValidationError) -> ConfigError:
    """The first field that does not validate, in the FineTuneJob's words."""
    first = error.errors(include_url=False)[0]
    return ConfigError(
        _field_path(first["loc"]),
        first.get("input", ""),
        first["msg"],
        "correct the field; if you did not set it, operator and trainer image do not fit together",
    )


def _field_path(location: tuple[int | str, ...]) -> str:
    if not location:
        return "spec"
    head, *rest = (str(part) for part in location)
    return ".".join([_SPEC_FIELDS.get(head, head), *rest])
