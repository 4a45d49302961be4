"""The operator's own settings, read from the environment once at start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_operator.errors import ConfigError


@dataclass(frozen=True)
class OperatorConfig:
    """All settings; each field names its variable."""

    namespaces: tuple[str, ...] = ()
    """``FINETUNE_OPERATOR_NAMESPACES``, comma-separated. Empty: all namespaces."""

    workers: int = 16
    """``FINETUNE_OPERATOR_WORKERS``: passes at the same time. One job never has two."""

    resync_seconds: float = 300.0
    """``FINETUNE_OPERATOR_RESYNC_SECONDS``: every job is looked at again after this time, plus up to 20 %."""

    progress_seconds: float = 30.0
    """``FINETUNE_OPERATOR_PROGRESS_SECONDS``: the log of a running attempt is read this often."""

    probe_port: int = 8080
    """``FINETUNE_OPERATOR_PROBE_PORT``: liveness at ``/healthz``."""

    metrics_port: int = 8081
    """``FINETUNE_OPERATOR_METRICS_PORT``: Prometheus metrics at ``/metrics``."""

    watch_seconds: float = 120.0
    """``FINETUNE_OPERATOR_WATCH_SECONDS``: liveness fails when a write is not shown by a watch for this long."""

    default_runtime: Path | None = None
    """``FINETUNE_OPERATOR_DEFAULT_RUNTIME``: a file with a FineTuneRuntime, created at start when absent."""

    log_level: str = "INFO"
    """``FINETUNE_OPERATOR_LOG_LEVEL``: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``."""

    log_format: str = "text"
    """``FINETUNE_OPERATOR_LOG_FORMAT``: ``text`` for a terminal, ``json`` for one JSON object per line."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> OperatorConfig:
        """Read the environment.

        Raises:
            ConfigError: a value is no number, out of bounds or none of the choices; names the variable and the value.
        """
        prefix = "FINETUNE_OPERATOR_"
        runtime = environ.get(f"{prefix}DEFAULT_RUNTIME", "")
        names = (name.strip() for name in environ.get(f"{prefix}NAMESPACES", "").split(","))
        return cls(
            namespaces=tuple(name for name in names if name),
            workers=int(_number(environ, f"{prefix}WORKERS", cls.workers, least=1)),
            resync_seconds=_number(environ, f"{prefix}RESYNC_SECONDS", cls.resync_seconds, least=1),
            progress_seconds=_number(environ, f"{prefix}PROGRESS_SECONDS", cls.progress_seconds, least=1),
            probe_port=int(_number(environ, f"{prefix}PROBE_PORT", cls.probe_port, least=1)),
            default_runtime=Path(runtime) if runtime else None,
            metrics_port=int(_number(environ, f"{prefix}METRICS_PORT", cls.metrics_port, least=1)),
            watch_seconds=_number(environ, f"{prefix}WATCH_SECONDS", cls.watch_seconds, least=1),
            log_level=_choice(environ, f"{prefix}LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
            log_format=_choice(environ, f"{prefix}LOG_FORMAT", "text", ("text", "json")),
        )


def _number(environ: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = environ.get(name, "")
    try:
        value = float(text) if text else float(default)
    except ValueError as error:
        raise ConfigError(f"{name} must be a number, is {text!r}") from error
    if value < least:
        raise ConfigError(f"{name} must be at least {least:g}, is {value:g}")
    return value


def _choice(environ: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    text = environ.get(name) or default
    for choice in choices:
        if choice.lower() == text.lower():
            return choice
    raise ConfigError(f"{name} must be one of {', '.join(choices)}, is {text!r}")
