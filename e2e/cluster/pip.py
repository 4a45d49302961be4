"""The host's pip settings, for use inside an image build: a mirror or proxy that works outside works inside.

They are mounted, not copied, so no address and no credential ends in an image layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from configparser import ConfigParser, Error
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.shell import write_atomic

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Certificate authorities of the host; a company's proxy has its own in there."""

_PATHS = (
    "cert",
    "client-cert",
    "cache-dir",
    "require-virtualenv",
    "user",
    "target",
    "prefix",
    "break-system-packages",
)
"""Settings about the host's files and folders, which mean nothing in a build."""


def pip_configuration(work: Path, environment: Mapping[str, str]) -> list[str]:
    """Write a pip.conf for the build and return the mounts it needs."""
    settings = merged_settings(_config_files(environment), environment)
    links = settings.pop("find-links", "").split() + environment.get("FINETUNE_WHEELS", "").split()
    mounts = []
    inside = []
    for number, link in enumerate(dict.fromkeys(links)):
        if "://" in link:
            inside.append(link)
        elif Path(link).is_dir():
            mounts.append(f"{Path(link).resolve()}:/mnt/wheels-{number}:ro")
            inside.append(f"/mnt/wheels-{number}")
    if inside:
        settings["find-links"] = "\n    ".join(inside)
    if CERTIFICATES.exists():
        settings["cert"] = str(CERTIFICATES)
    text = "[global]\n" + "".join(f"{name} = {value}\n" for name, value in sorted(settings.items()))
    write_atomic(work / "pip.conf", text)
    return [*mounts, f"{work / 'pip.conf'}:/etc/pip.conf:ro"]


def _config_files(environment: Mapping[str, str]) -> list[Path]:
    """pip's own order: the later file wins."""
    home = Path(environment.get("HOME", "/root"))
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    named = environment.get("PIP_CONFIG_FILE")
    return [*files, Path(named)] if named else files


def merged_settings(files: list[Path], environment: Mapping[str, str]) -> dict[str, str]:
    """[global] and [install] of the files, then PIP_* variables; host paths left out."""
    settings: dict[str, str] = {}
    for path in files:
        parser = ConfigParser(interpolation=None)
        try:
            parser.read(path)
        except (Error, UnicodeDecodeError) as error:
            raise ClusterError(f"{path} is no valid pip configuration: {error}", "correct or remove it") from error
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for name, value in environment.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE" and value:
            settings[name[4:].lower().replace("_", "-")] = value
    return {name: value for name, value in settings.items() if name not in _PATHS}
