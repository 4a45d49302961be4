"""Publishing, into folders and on S3.

What is there and whole stays, what is damaged is replaced, and every manifest tells the truth.
"""

from __future__ import annotations

from typing import Any

import pytest

from finetune_trainer.result import (
    ADAPTER_FILE,
    AdapterManifest,
    DamagedResultError,
    ForeignResultError,
    Lineage,
    find_result,
    publish,
)
from finetune_trainer.store import Store, sha256

RUN, DATA, MODEL = "a" * 64, "b" * 64, "c" * 64
LINEAGE = Lineage(RUN, DATA, MODEL)
FILES = {ADAPTER_FILE: b"adapter", "README.md": b"card"}


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


def a_manifest(files: dict[str, bytes] = FILES, **changes: Any) -> AdapterManifest:
    raw = {
        "job": {"namespace": "team", "name": "tiny"},
        "run": {"digest": RUN},
        "attempt": 1,
        "base_model": {"source_uri": "hf://acme/tiny", "digest": MODEL},
        "data_digest": DATA,
        "method": {"lora": {"r": 4, "lora_alpha": 8, "target_modules": ["all-linear"]}},
        "metrics": {"evalLoss": 1.5},
        "files": {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in files.items()},
        "versions": {},
    }
    return AdapterManifest.model_validate(raw | changes)


def newest() -> None:
    """No newer gang exists."""


class FencedOff(Exception):
    """A newer gang exists."""


def test_a_result_is_found_as_it_was_published(store: Store) -> None:
    """Nothing is there before, and publishing again changes nothing."""
    assert find_result(store, LINEAGE) is None
    first = publish(store, a_manifest(), FILES, newest)
    other = {ADAPTER_FILE: b"of another attempt"}
    again = publish(store, a_manifest(other), other, newest)

    assert (first.digest, first.metrics, first.uri) == (sha256(b"adapter"), {"evalLoss": 1.5}, store.uri)
    assert again.digest == first.digest
    assert store.read(ADAPTER_FILE) == b"adapter"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param(ADAPTER_FILE, b"half", id="other-content"),
        pytest.param("README.md", None, id="file-missing"),
        pytest.param("manifest.json", b"{oops", id="manifest-damaged"),
        pytest.param("manifest.json", b'{"files": {}}', id="manifest-incomplete"),
        pytest.param("manifest.json", a_manifest({"../x": b""}).to_json().encode(), id="file-outside"),
        pytest.param("manifest.json", a_manifest({"README.md": b"card"}).to_json().encode(), id="no-adapter"),
    ],
)
def test_a_damaged_result_is_refused_and_replaced(store: Store, name: str, content: bytes | None) -> None:
    """Else every attempt would end well with what prepare refuses, for ever."""
    publish(store, a_manifest(), FILES, newest)
    store.delete(name) if content is None else store.write(name, content)
    with pytest.raises(DamagedResultError):
        find_result(store, LINEAGE)
    later = {ADAPTER_FILE: b"later", "README.md": b"card"}

    publish(store, a_manifest(later), later, newest)

    found = find_result(store, LINEAGE)
    assert found is not None
    assert found.digest == sha256(b"later")


@pytest.mark.parametrize(
    "other",
    [
        {"run": {"digest": "d" * 64}},
        {"data_digest": "d" * 64},
        {"base_model": {"source_uri": "hf://acme/tiny", "digest": "d" * 64}},
    ],
    ids=["run", "data", "model"],
)
def test_the_result_of_another_lineage_is_never_replaced(store: Store, other: dict[str, Any]) -> None:
    """It is somebody else's."""
    publish(store, a_manifest(**other), FILES, newest)
    with pytest.raises(ForeignResultError):
        publish(store, a_manifest(), FILES, newest)


def test_a_manifest_of_a_later_version_can_be_read(store: Store) -> None:
    """An image that is rolled back must not train everything again."""
    publish(store, a_manifest(), FILES, newest)
    text = a_manifest().to_json().replace('"attempt"', '"invented": 1, "attempt"', 1)
    store.write("manifest.json", text.encode())

    assert find_result(store, LINEAGE) is not None


@pytest.mark.parametrize("writes", range(4))
def test_a_gang_that_was_cut_off_cannot_touch_the_result_of_the_next(store: Store, writes: int) -> None:
    """It wakes up between any two of its writes, after the newer gang has published or before it does."""
    older = {ADAPTER_FILE: b"older", "README.md": b"older card"}
    checks = 0

    def sleep_after_some_writes() -> None:
        nonlocal checks
        checks += 1
        if checks > writes:
            publish(store, a_manifest(), FILES, newest)
            raise FencedOff

    try:
        publish(store, a_manifest(older), older, sleep_after_some_writes)
    except FencedOff:
        expected = b"adapter"
    else:
        expected = b"older"

    found = find_result(store, LINEAGE)
    assert found is not None
    assert found.digest == sha256(expected)


def test_a_write_that_was_on_its_way_does_not_overwrite(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence was asked, and while the file travels the newer gang publishes."""
    older = {ADAPTER_FILE: b"older"}
    arrive = Store.create
    asleep = [True]

    def late(self: Store, path: str, data: bytes) -> bool:
        if asleep and data == b"older":
            asleep.clear()
            publish(store, a_manifest(), FILES, newest)
        return arrive(self, path, data)

    def newer_exists_after_waking_up() -> None:
        if not asleep:
            raise FencedOff

    monkeypatch.setattr(Store, "create", late)
    with pytest.raises(FencedOff):
        publish(store, a_manifest(older), older, newer_exists_after_waking_up)

    assert find_result(store, LINEAGE) is not None
    assert store.read(ADAPTER_FILE) == b"adapter"


def test_what_an_unfinished_gang_left_is_replaced(store: Store) -> None:
    """Files without a manifest are no result."""
    store.write(ADAPTER_FILE, b"left over")

    assert publish(store, a_manifest(), FILES, newest).digest == sha256(b"adapter")


def test_files_that_do_not_match_in_the_end_are_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gangs wrote at once: the one that is left sees it, because it reads what it wrote."""
    create = Store.create
    disturbed = [True]

    def disturb(self: Store, path: str, data: bytes) -> bool:
        done = create(self, path, data)
        if disturbed and path == "manifest.json":
            disturbed.clear()
            self.write(ADAPTER_FILE, b"of another gang")
        return done

    monkeypatch.setattr(Store, "create", disturb)

    assert publish(store, a_manifest(), FILES, newest).digest == sha256(b"adapter")
    assert store.read(ADAPTER_FILE) == b"adapter"
