"""What decides about a rebuild of an image, and the pip settings that a build sees."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from e2e.cluster import archive, images, slim
from e2e.cluster.errors import ClusterError
from e2e.cluster.pip import merged_settings, pip_configuration

pytestmark = pytest.mark.unit


def test_caches_are_no_input(tmp_path: Path) -> None:
    """A test run must not rebuild an image."""
    (tmp_path / "src/__pycache__").mkdir(parents=True)
    (tmp_path / "src/a.py").write_text("1")
    (tmp_path / "src/__pycache__/a.pyc").write_text("1")
    (tmp_path / "other.py").write_text("1")
    assert images.context_files(tmp_path, ["src", "absent*"]) == [tmp_path / "src/a.py"]


def test_inputs_are_what_the_dockerfile_copies() -> None:
    """No list to keep in step: other stages, flags and addresses are told apart from the context's paths."""
    dockerfile = (
        "FROM x AS build\nCOPY pyproject.toml constraints.txt ./\n"
        "COPY --chown=1:1 operator/pkg \\\n  trainer/pkg out/\n"
        'COPY ["a b", "/c"]\nCOPY --from=build /out /opt\nADD https://x.example/y /y\nRUN cp COPY x\n'
    )
    expected = ["pyproject.toml", "constraints.txt", "operator/pkg", "trainer/pkg", "a b"]
    assert images.copied_paths(dockerfile) == expected


def test_digest_follows_content_alone(tmp_path: Path) -> None:
    """A checkout elsewhere, or a new time stamp, is the same image; another byte or build argument is not."""
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
        (folder / "a").write_text("x")
    digest = images.content_digest(first, [first / "a"], ["tag"])
    assert digest == images.content_digest(second, [second / "a"], ["tag"])
    assert digest != images.content_digest(first, [first / "a"], ["tag", "ARG=1"])
    (second / "a").write_text("y")
    assert digest != images.content_digest(second, [second / "a"], ["tag"])


@pytest.mark.parametrize(
    "sources",
    [
        "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main\n",
        "Types: deb\nURIs: http://other.example/security\nSuites: bookworm-security\n\n"
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n",
    ],
    ids=["one line", "stanzas"],
)
def test_debian_mirror_is_read_from_apt(sources: str) -> None:
    """A company's mirror serves the base image too."""
    assert images.mirror_in(sources) == "http://mirror.example/debian"


def test_environment_wins_over_pip_files(tmp_path: Path) -> None:
    """As in pip itself; host paths mean nothing inside a build."""
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = http://a.example\ntimeout = 5\ncert = /host/ca.pem\n")
    environment = {"PIP_INDEX_URL": "http://b.example", "PIP_CERT": "/host/ca.pem"}
    assert merged_settings([file], environment) == {"index-url": "http://b.example", "timeout": "5"}


def test_local_wheels_are_mounted(tmp_path: Path) -> None:
    """A folder of wheels on the host is a folder in the build."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    environment = {"HOME": str(tmp_path), "FINETUNE_WHEELS": str(wheels), "PIP_FIND_LINKS": "https://w.example /absent"}
    mounts = pip_configuration(tmp_path / "work", environment)
    assert any(mount.startswith(f"{wheels}:/mnt/wheels-") and mount.endswith(":ro") for mount in mounts)
    text = (tmp_path / "work/pip.conf").read_text()
    assert "/mnt/wheels-" in text
    assert "https://w.example" in text
    assert "/absent" not in text


def test_pause_image_names_itself(tmp_path: Path) -> None:
    """The archive is one that containerd and docker can load, under the name that containerd is told."""
    path = tmp_path / "pause.tar"
    path.write_bytes(archive._pause_image(b"busybox"))
    assert archive.image_names(path) == ["localhost/pause:1"]
    with tarfile.open(path) as image:
        assert set(image.getnames()) == {"config.json", "layer.tar", "manifest.json"}


def test_layers_a_node_has_are_left_out() -> None:
    """The stream names every layer and carries only the missing ones; its manifest is the same either way."""
    streams = []
    with tarfile.open(fileobj=io.BytesIO(archive._pause_image(b"busybox"))) as source:
        described = slim.read_images(source)
        assert described is not None
        layers = set(described[0].layers)
        for present in (set[str](), layers):
            sink = io.BytesIO()
            slim.write_layout(source, described, present, sink)
            with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as target:
                streams.append(set(target.getnames()))
    assert streams[0] - streams[1] == {f"blobs/{digest.replace(':', '/')}" for digest in layers}
    assert {"oci-layout", "index.json"} <= streams[1]


def test_something_else_is_no_image(tmp_path: Path) -> None:
    """The error says how to write one."""
    path = tmp_path / "x.tar"
    path.write_text("no")
    with pytest.raises(ClusterError, match="docker-archive"):
        archive.image_names(path)


def test_unknown_image_says_how_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was never built."""
    monkeypatch.setenv("FINETUNE_OPERATOR_CACHE", str(tmp_path))
    with pytest.raises(ClusterError, match="images"):
        images.find_archive("localhost/none:1")
