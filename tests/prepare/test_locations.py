"""Locations name one thing on a volume or a hub, and nothing outside of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer.errors import DataError
from finetune_trainer.prepare.locations import (
    FileLocation,
    HubLocation,
    check_inside_mount,
    parse_dataset_location,
    parse_model_location,
)

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("uri", "repository", "revision", "pinned"),
    [
        ("hf://acme/tiny", "acme/tiny", "main", False),
        ("hf://acme/tiny@v1.0", "acme/tiny", "v1.0", False),
        ("hf://acme/tiny@refs/pr/3", "acme/tiny", "refs/pr/3", False),
        (f"hf://acme/tiny@{COMMIT}", "acme/tiny", COMMIT, True),
    ],
    ids=["no-revision", "tag", "pull-request", "commit"],
)
def test_a_hub_model_is_read(uri: str, repository: str, revision: str, pinned: bool) -> None:
    """The revision is optional."""
    location = parse_model_location(uri)
    assert location == HubLocation(uri, "model", repository, revision)
    assert isinstance(location, HubLocation)
    assert location.is_pinned is pinned


@pytest.mark.parametrize(
    ("uri", "revision", "path"),
    [
        ("hf://datasets/acme/rows/data/train.jsonl", "main", "data/train.jsonl"),
        ("hf://datasets/acme/rows@v2/a.jsonl", "v2", "a.jsonl"),
        ("hf://datasets/acme/rows@refs%2Fpr%2F1/a.jsonl", "refs/pr/1", "a.jsonl"),
    ],
    ids=["folder", "tag", "encoded-slash"],
)
def test_a_hub_dataset_names_one_file(uri: str, revision: str, path: str) -> None:
    """The rest of the path is the file's."""
    assert parse_dataset_location("spec.dataset", uri) == HubLocation(uri, "dataset", "acme/rows", revision, path)


def test_a_file_is_read_with_its_encoded_characters() -> None:
    """A space in a path on the volume is not an error."""
    uri = "file:///mnt/finetune/model/my%20model"
    assert parse_model_location(uri) == FileLocation(uri, Path("/mnt/finetune/model/my model"))


BAD_MODELS = {
    "other-scheme": ("http://acme/tiny", "spec.model.uri", "scheme http"),
    "no-scheme": ("acme/tiny", "spec.model.uri", "scheme (none)"),
    "no-organisation": ("hf://tiny", "spec.model.uri", "one model repository"),
    "too-deep": ("hf://acme/tiny/file", "spec.model.uri", "one model repository"),
    "a-dataset": ("hf://datasets/acme/rows", "spec.model.uri", "names a dataset"),
    "dots": ("hf://acme/../tiny", "spec.model.uri", "one model repository"),
    "dots-in-revision": ("hf://acme/tiny@../x", "spec.model.uri", "one model repository"),
    "encoded-dots-in-revision": ("hf://acme/tiny@%2e%2e%2Fx", "spec.model.uri", "one model repository"),
    "file-dots": ("file:///mnt/../etc", "spec.model.persistentVolumeClaim.path", "without '..'"),
    "file-encoded-dots": ("file:///mnt/%2e%2e/etc", "spec.model.persistentVolumeClaim.path", "without '..'"),
    "file-host": ("file://server/mnt", "spec.model.persistentVolumeClaim.path", "absolute path"),
}


@pytest.mark.parametrize(("uri", "field", "problem"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_location_that_cannot_be_is_refused(uri: str, field: str, problem: str) -> None:
    """The fault repeats the URI."""
    with pytest.raises(DataError, match=r"must|not supported") as caught:
        parse_model_location(uri)
    assert (caught.value.fault.field, caught.value.fault.value) == (field, uri)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "hf://acme/rows/a.jsonl",
        "hf://datasets/acme/rows",
        "hf://datasets/acme/rows/",
        "hf://datasets/a/b/../c",
        "hf://datasets/a/b@%2e%2e/c",
    ],
    ids=["a-model", "no-file", "empty-file", "dots", "encoded-dots"],
)
def test_a_dataset_location_that_names_no_file_is_refused(uri: str) -> None:
    """A repository alone is ambiguous."""
    with pytest.raises(DataError, match="one file of a dataset repository"):
        parse_dataset_location("spec.dataset", uri)


def test_a_link_inside_the_volume_is_followed(tmp_path: Path) -> None:
    """Folders on shared volumes are often links to a version."""
    (tmp_path / "model" / "v1").mkdir(parents=True)
    (tmp_path / "model" / "latest").symlink_to("v1")
    check_inside_mount("spec.model", tmp_path / "model" / "latest", tmp_path)


@pytest.mark.parametrize("target", ["/etc", "../dataset"], ids=["absolute", "other-volume"])
def test_a_link_out_of_the_volume_is_refused(tmp_path: Path, target: str) -> None:
    """Whoever writes to a volume must not read the pod's files."""
    for role in ("model", "dataset"):
        (tmp_path / role).mkdir()
    link = tmp_path / "model" / "base"
    link.symlink_to(target)
    with pytest.raises(DataError, match="leads out of its volume") as caught:
        check_inside_mount("spec.model", link, tmp_path)
    assert caught.value.fault.value == str(link)


def test_a_path_that_is_not_on_a_mount_is_refused(tmp_path: Path) -> None:
    """The pod's own files are no model."""
    with pytest.raises(DataError, match="must lie below"):
        check_inside_mount("spec.model", Path("/etc"), tmp_path)
