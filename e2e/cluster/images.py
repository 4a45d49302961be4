"""Builds the project's images without a registry: a base from Debian packages, the rest from the Dockerfiles.

`docker-archive:` files are the currency: quicker to write than compressed OCI archives, and containerd, Docker
and kind all load them. An archive is named by the content it was made from, so a second build of the same is a
look-up.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.cluster import packages
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import cache_root
from e2e.cluster.pip import CERTIFICATES, pip_configuration
from e2e.cluster.shell import locked, run, say, step, succeeds, write_atomic
from e2e.cluster.versions import BASE_PACKAGES, DEBIAN_SUITE, IMAGE_PACKAGES

BASE_IMAGE = f"localhost/finetune-base:{DEBIAN_SUITE}"
BUILD_TIMEOUT = 3600
ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


PROJECT_IMAGES = {
    "operator": ("localhost/finetune-operator:dev", "operator/Dockerfile"),
    "trainer": ("localhost/finetune-trainer:dev", "trainer_image/Dockerfile"),
}
"""Short name -> tag, and Dockerfile below the repository, which is the build context."""

_UNWANTED = {"__pycache__", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def build_project_images(only: Sequence[str] = ()) -> dict[str, Path]:
    """Build the images named in `only` (default: operator and trainer); name -> archive."""
    unknown = set(only) - {*PROJECT_IMAGES, "base"}
    if unknown:
        raise ClusterError(f"no image {', '.join(sorted(unknown))}", f"name any of: {', '.join(PROJECT_IMAGES)}, base")
    _requirements()
    base = ensure_base_image()
    wanted = [name for name in (only or PROJECT_IMAGES) if name != "base"]
    with ThreadPoolExecutor(max(1, len(wanted))) as pool:
        recipes = [PROJECT_IMAGES[name] for name in wanted]
        futures = {tag: pool.submit(build_image, ROOT / file, ROOT, tag, {}) for tag, file in recipes}
        built = {tag: future.result() for tag, future in futures.items()}
    return built if wanted else {BASE_IMAGE: base}


def find_archive(text: str) -> Path:
    """The archive that a command-line word means: a path, or the name of an image built before."""
    path = Path(text)
    if path.is_file():
        return path.absolute()
    latest = _latest(text)
    if latest.exists():
        return Path(json.loads(latest.read_text())["archive"])
    raise ClusterError(
        f"{text!r} is neither an archive nor an image that was built here",
        "build it (python -m e2e.cluster images), or write one: buildah push IMAGE docker-archive:FILE:IMAGE",
    )


def build_image(dockerfile: Path, context: Path, tag: str, build_args: Mapping[str, str]) -> Path:
    """Build an image on the local base, from a copy of the context that holds what the Dockerfile copies."""
    if not dockerfile.is_file():
        raise ClusterError(f"{dockerfile} does not exist", f"write it, or do not build {tag}")
    _requirements()
    ensure_base_image()
    files = context_files(context, copied_paths(dockerfile.read_text()))
    arguments = {"BASE_IMAGE": BASE_IMAGE, **build_args}
    key = content_digest(context, [*files, dockerfile], [tag, *(f"{k}={v}" for k, v in sorted(arguments.items()))])
    archive = cache_root() / "images" / f"{_file_name(tag)}-{key}.tar"
    with locked(cache_root() / "locks" / f"image-{_file_name(tag)}.lock", timeout=BUILD_TIMEOUT):
        if archive.exists():
            say(f"           {tag}: nothing changed")
        else:
            with step(f"built {tag}"):
                _bud(dockerfile, _copy_context(context, files, _file_name(tag)), tag, arguments)
                _push(tag, archive)
                _forget_older(tag, archive)
        write_atomic(_latest(tag), json.dumps({"archive": str(archive)}) + "\n")
    return archive


def _bud(dockerfile: Path, context: Path, tag: str, arguments: Mapping[str, str]) -> None:
    """One `buildah bud`; its layers stay in the cache, so unchanged steps cost nothing next time."""
    work = cache_root() / "buildah" / _file_name(tag)
    mounts = [f"{CERTIFICATES}:{CERTIFICATES}:ro"] if CERTIFICATES.exists() else []
    mounts += pip_configuration(work, os.environ)
    options = [f"--volume={mount}" for mount in mounts]
    options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    log = cache_root() / "logs" / f"image-{_file_name(tag)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--isolation", "chroot", "--layers", "--pull-never", "--format", "docker"]
    command = [*_buildah(), "bud", *flags, *options, "--file", dockerfile, "--tag", tag, context]
    run(command, timeout=BUILD_TIMEOUT, log=log)


def _push(tag: str, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    part.unlink(missing_ok=True)
    run([*_buildah(), "push", *_policy(), tag, f"docker-archive:{part}:{tag}"], timeout=BUILD_TIMEOUT)
    part.replace(archive)


def _forget_older(tag: str, archive: Path) -> None:
    """Keep the two latest archives of a tag: the trainer's is 1.5 GB."""
    pattern = f"{_file_name(tag)}-*.tar"
    ours = sorted(archive.parent.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in ours[2:]:
        path.unlink(missing_ok=True)


def _buildah() -> list[str | Path]:
    """buildah with a store of its own, so that the user's images stay out of sight."""
    store = cache_root() / "buildah"
    store.mkdir(parents=True, exist_ok=True)
    return ["buildah", "--root", store / "storage", "--runroot", store / "run"]


def _policy() -> list[str | Path]:
    """containers/image insists on a signature policy even for local files; not every host has one."""
    path = cache_root() / "buildah" / "policy.json"
    write_atomic(path, json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    return ["--signature-policy", path]


def _requirements() -> None:
    packages.require_root("images")
    packages.ensure_debian_packages(IMAGE_PACKAGES)


# -- the base image --------------------------------------------------------------------------------------


def ensure_base_image() -> Path:
    """A minimal Debian with Python, made by debootstrap: the stand-in for a public base image."""
    key = hashlib.sha256(" ".join([DEBIAN_SUITE, *BASE_PACKAGES]).encode()).hexdigest()[:12]
    system = cache_root() / "images" / f"base-{key}.tar"
    with locked(cache_root() / "locks" / "base.lock", timeout=BUILD_TIMEOUT):
        if not system.exists():
            with step(f"base system ({DEBIAN_SUITE}: {', '.join(BASE_PACKAGES)})"):
                _debootstrap(system)
        if not succeeds([*map(str, _buildah()), "inspect", "--type", "image", BASE_IMAGE], timeout=60):
            with step(BASE_IMAGE):
                _import_base(system)
        archive = cache_root() / "images" / f"{_file_name(BASE_IMAGE)}-{key}.tar"
        if not archive.exists():
            _push(BASE_IMAGE, archive)
        write_atomic(_latest(BASE_IMAGE), json.dumps({"archive": str(archive)}) + "\n")
    return archive


def _debootstrap(target: Path) -> None:
    folder = cache_root() / "base.work"
    shutil.rmtree(folder, ignore_errors=True)
    log = cache_root() / "logs" / "debootstrap.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    include = f"--include={','.join(BASE_PACKAGES)}"
    mirror = [text] if (text := debian_mirror()) else []
    run(["debootstrap", "--variant=minbase", include, DEBIAN_SUITE, folder, *mirror], timeout=1800, log=log)
    for litter in (
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ):
        shutil.rmtree(folder / litter, ignore_errors=True)
    part = target.with_suffix(".part")
    run(["tar", "--create", "--numeric-owner", "--directory", folder, "--file", part, "."], timeout=300)
    part.replace(target)
    shutil.rmtree(folder)


def _import_base(system: Path) -> None:
    context = cache_root() / "buildah" / "base"
    context.mkdir(parents=True, exist_ok=True)
    link = context / "base.tar"
    link.unlink(missing_ok=True)
    os.link(system, link)
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(f'FROM scratch\nADD base.tar /\nENV PATH={PATH}\nCMD ["/bin/bash"]\n')
    run(
        [*_buildah(), "bud", "--isolation", "chroot", "--tag", BASE_IMAGE, "--file", dockerfile, context],
        timeout=900,
    )
    link.unlink()


def debian_mirror() -> str:
    """Where this Debian machine itself installs from (a company's mirror, maybe); else debootstrap's default."""
    release = Path("/etc/os-release")
    if not release.exists() or not re.search(r"^ID=debian$", release.read_text(), re.MULTILINE):
        return ""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return mirror_in("\n".join(path.read_text() for path in sources if path.is_file()))


def mirror_in(sources: str) -> str:
    """The first archive with suite DEBIAN_SUITE in apt's sources (both formats)."""
    one_line = re.search(rf"^deb\s+(?:\[[^]]*\]\s+)?(https?://\S+)\s+{DEBIAN_SUITE}\s", sources, re.MULTILINE)
    if one_line:
        return one_line[1]
    for stanza in re.split(r"\n\s*\n", sources):
        uri = re.search(r"^URIs:\s*(https?://\S+)", stanza, re.MULTILINE)
        suites = re.search(r"^Suites:\s*(.+)$", stanza, re.MULTILINE)
        if uri and suites and DEBIAN_SUITE in suites[1].split():
            return uri[1]
    return ""


# -- content ---------------------------------------------------------------------------------------------


def copied_paths(dockerfile: str) -> list[str]:
    """Paths and patterns of the context that a Dockerfile copies: what may change the image, and nothing else."""
    found: list[str] = []
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        word, _, rest = line.strip().partition(" ")
        flags = re.findall(r"--\S+", rest)
        if word.upper() not in {"COPY", "ADD"} or any(flag.startswith("--from=") for flag in flags):
            continue
        rest = re.sub(r"--\S+\s+", "", rest).strip()
        words = json.loads(rest) if rest.startswith("[") else rest.split()
        found += [source for source in words[:-1] if "://" not in source]
    return found


def context_files(context: Path, inputs: Sequence[str]) -> list[Path]:
    """The files that `inputs` name, sorted; caches and compiled files are left out."""
    found: set[Path] = set()
    for pattern in inputs:
        for path in context.glob(pattern):
            found.update(path.rglob("*") if path.is_dir() else [path])
    return sorted(path for path in found if path.is_file() and not _is_unwanted(path.relative_to(context)))


def _is_unwanted(path: Path) -> bool:
    return bool(_UNWANTED & set(path.parts)) or any(part.endswith(".egg-info") for part in path.parts)


def content_digest(context: Path, files: Sequence[Path], extra: Sequence[str]) -> str:
    """Names, modes and contents of files."""
    digest = hashlib.sha256("\n".join(extra).encode())
    for path in files:
        name = path.relative_to(context) if path.is_relative_to(context) else path.name
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name} {path.stat().st_mode & 0o111} {content}\n".encode())
    return digest.hexdigest()[:12]


def _copy_context(context: Path, files: Sequence[Path], name: str) -> Path:
    """A folder with these files alone: nothing else can get into an image, or change a layer."""
    target = cache_root() / "buildah" / "contexts" / name
    shutil.rmtree(target, ignore_errors=True)
    for path in files:
        copy = target / path.relative_to(context)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        copy.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    target.mkdir(parents=True, exist_ok=True)
    return target


def _file_name(tag: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", tag.removeprefix("localhost/"))


def _latest(tag: str) -> Path:
    return cache_root() / "images" / f"{_file_name(tag)}.latest.json"
