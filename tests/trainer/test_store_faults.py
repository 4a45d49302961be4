"""What breaks between a trainer and its store: every access survives it, or fails in time and says why."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.s3.server import ACCESS_KEY, SECRET_KEY, LocalS3
from faulty_proxy import Fault, FaultyProxy, faulty_proxy
from finetune_trainer.errors import ConfigError
from finetune_trainer.result import ADAPTER_FILE, find_result, publish
from finetune_trainer.store import PIECE_BYTES, CheckpointStore, Patience, Spot, Store, StoreError, sha256
from trainer.test_result import FILES, LINEAGE, a_manifest, newest

pytestmark = pytest.mark.trainer

HASTY = Patience(request=0.4, retry=1.0, total=3.0)
FAULTS = [
    Fault("status", 429),
    Fault("status", 500),
    Fault("status", 503),
    Fault("delay", seconds=0.6),
    Fault("reset-before"),
    Fault("reset-after"),
    Fault("truncate"),
]
LARGE = random.Random(1).randbytes(2 * PIECE_BYTES + 7)


@pytest.fixture
def proxy(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between the store and the server."""
    with faulty_proxy(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def save(store: CheckpointStore) -> None:
    store.save(Spot(1, 5), b"state", b"{}")
    assert store.load(Spot(1, 5)) == (b"{}", b"state")
    assert store.spots() == [Spot(1, 5)]


def save_twice_and_prune(store: CheckpointStore) -> None:
    store.save(Spot(1, 5), b"state", b"{}")
    store.save(Spot(1, 6), b"state", b"{}")
    store.prune(own_fence=1, keep=1)
    assert sorted(store.list()) == ["fence-1/step-6/manifest.json", "fence-1/step-6/state.safetensors"]


def claim(store: CheckpointStore) -> None:
    first, second = store.claim_fence(b"mine"), store.claim_fence(b"mine")
    assert 0 < first < second == store.highest_fence()
    assert second <= 4  # a lost answer costs a number, not more


def create(store: CheckpointStore) -> None:
    store.create("x", b"first")
    assert not store.create("x", b"second")
    assert store.read("x") == b"first"


def publish_a_result(store: CheckpointStore) -> None:
    assert publish(store, a_manifest(), FILES, newest).digest == sha256(FILES[ADAPTER_FILE])
    assert find_result(store, LINEAGE) is not None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("work", [save, save_twice_and_prune, claim, create, publish_a_result])
def test_every_access_survives_every_fault(
    proxy: FaultyProxy, s3_uri: str, work: Callable[[CheckpointStore], None], fault: Fault
) -> None:
    """The first request breaks, and each third one after it; what is there in the end is right."""
    proxy.inject_by(lambda number: fault if number % 3 == 1 else None)

    work(CheckpointStore(s3_uri, patience=HASTY))

    assert proxy.injected >= 1


@pytest.mark.parametrize("number", [1, 3, 5, 8, 9], ids=["begin", "piece", "complete", "look", "fetch"])
def test_a_large_state_survives_a_lost_answer_to_each_kind_of_request(
    proxy: FaultyProxy, s3_uri: str, number: int
) -> None:
    """Begin, three pieces, complete, manifest; then the pieces are read. No upload can be completed twice."""
    proxy.inject_by(lambda count: Fault("reset-after") if count == number else None)
    store = CheckpointStore(s3_uri, patience=Patience(request=10, retry=10, total=20))

    store.save(Spot(1, 1), LARGE, b"{}")

    assert store.load(Spot(1, 1)) == (b"{}", LARGE)
    assert proxy.injected == 1


def test_racing_gangs_get_different_fences_through_faults(proxy: FaultyProxy, s3_uri: str) -> None:
    """However many answers are lost, no number is given to both."""
    dice = random.Random(7)
    kinds = [Fault("status", 503), Fault("reset-before"), Fault("reset-after")]
    proxy.inject_by(lambda _: dice.choice(kinds) if dice.random() < 0.3 else None)

    def gang(name: str) -> list[int]:
        store = CheckpointStore(s3_uri, patience=Patience(request=5, retry=10, total=20))
        return [store.claim_fence(name.encode()) for _ in range(6)]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(gang, ("first", "second"))
    proxy.inject_by(None)

    assert len({*first, *second}) == 12
    store = CheckpointStore(s3_uri)
    assert {store.read(f"fence-{fence}/claim.json") for fence in first} == {b"first"}
    assert {store.read(f"fence-{fence}/claim.json") for fence in second} == {b"second"}
    assert proxy.injected > 5


@pytest.mark.parametrize("fault", [FAULTS[2], FAULTS[3], FAULTS[4]], ids=lambda fault: fault.name)
def test_a_store_that_stays_down_fails_the_save_in_time(proxy: FaultyProxy, s3_uri: str, fault: Fault) -> None:
    """The checkpoint before it stays the newest; it is not the user's fault."""
    store = CheckpointStore(s3_uri, patience=Patience(request=0.3, retry=0.5, total=1.0))
    store.save(Spot(1, 1), b"state", b"{}")
    proxy.inject_by(lambda _: fault)
    began = time.monotonic()

    with pytest.raises(StoreError, match=r"s3://finetune/.* cannot be used: .*Error performing PUT"):
        store.save(Spot(1, 2), b"state", b"{}")

    assert time.monotonic() - began < 4
    proxy.inject_by(None)
    assert store.spots() == [Spot(1, 1)]


def test_an_endpoint_where_nobody_listens_is_named(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo in the runtime's env."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9/finetune"):
        Store(s3_uri, patience=Patience(request=0.3, retry=0.5, total=0.5)).read("x")


def test_an_endpoint_without_tls_says_what_allows_it(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore alone says "builder error"."""
    monkeypatch.delenv("AWS_ALLOW_HTTP")

    with pytest.raises(StoreError, match="AWS_ALLOW_HTTP=true"):
        Store(s3_uri).read("x")


# --- credentials ---

ACCESSES: dict[str, Callable[[CheckpointStore], object]] = {
    "read": lambda store: store.read("x"),
    "write": lambda store: store.write("x", b""),
    "write-large": lambda store: store.write("x", LARGE),
    "create": lambda store: store.create("x", b""),
    "create-large": lambda store: store.create("x", LARGE),
    "delete": lambda store: store.delete("x"),
    "list": lambda store: store.list(),
    "claim": lambda store: store.claim_fence(b""),
}


@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES.keys())
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_refused_credentials_are_the_users_to_mend(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, variable: str, access: Callable[[CheckpointStore], object]
) -> None:
    """Whatever is asked first; the Secret of the other role is right and does not help."""
    monkeypatch.setenv(f"FINETUNE_CHECKPOINT_{variable}", "wrong-one")

    with pytest.raises(ConfigError) as caught:
        access(CheckpointStore(s3_uri))

    fault = caught.value.fault
    assert (fault.field, fault.value) == ("spec.checkpoint.secretRef", s3_uri)
    assert s3_uri in fault.message
    assert "403" in fault.message
    assert "FINETUNE_CHECKPOINT_AWS_ACCESS_KEY_ID" in fault.remedy
    assert SECRET_KEY not in str(fault)
    assert "wrong-one" not in str(fault)


@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES.keys())
def test_a_missing_bucket_is_the_users_to_mend(s3: LocalS3, access: Callable[[CheckpointStore], object]) -> None:
    """It must not look like an empty one, in which nothing was published yet."""
    with pytest.raises(ConfigError, match="there is no bucket no-such-bucket") as caught:
        access(CheckpointStore("s3://no-such-bucket/run"))

    assert caught.value.fault.field == "spec.checkpoint.uri"


def test_each_role_has_credentials_of_its_own(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results often go to a bucket of somebody else."""
    monkeypatch.setenv("FINETUNE_OUTPUT_AWS_ACCESS_KEY_ID", "wrong-one")
    CheckpointStore(s3_uri).write("x", b"")

    with pytest.raises(ConfigError) as caught:
        Store(s3_uri).write("x", b"")

    assert caught.value.fault.field == "spec.output.secretRef"


def test_without_a_secret_the_pods_own_credentials_are_used(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore's own chain; an empty variable is none."""
    monkeypatch.setenv("FINETUNE_CHECKPOINT_AWS_ACCESS_KEY_ID", "")
    monkeypatch.delenv("FINETUNE_CHECKPOINT_AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)

    CheckpointStore(s3_uri).write("x", b"")


def test_the_pods_session_token_does_not_mix_with_a_secret(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to other keys."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")

    CheckpointStore(s3_uri).write("x", b"")


def test_half_a_secret_names_the_key_that_is_missing(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a refusal by the store."""
    monkeypatch.delenv("FINETUNE_OUTPUT_AWS_SECRET_ACCESS_KEY")

    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY is missing"):
        Store(s3_uri)


def test_no_credentials_at_all_are_not_mistaken_for_refused_ones(
    proxy: FaultyProxy, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance's role is asked, and that service says no."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"FINETUNE_CHECKPOINT_{name}")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.url)
    proxy.inject_by(lambda _: Fault("status", 403))

    with pytest.raises(StoreError, match=r"there are no credentials for s3://finetune/.*spec\.checkpoint\.secretRef"):
        CheckpointStore(s3_uri).read("x")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        pytest.param(403, "AccessDenied", ConfigError, id="denied"),
        pytest.param(401, "Unauthorized", ConfigError, id="unauthorized"),
        pytest.param(400, "ExpiredToken", ConfigError, id="expired"),
        pytest.param(403, "RequestTimeTooSkewed", StoreError, id="the-nodes-clock"),
        pytest.param(400, "InvalidArgument", StoreError, id="not-understood"),
    ],
)
def test_only_refusals_are_the_users_fault_and_none_is_repeated(
    proxy: FaultyProxy, s3_uri: str, status: int, code: str, expected: type[Exception]
) -> None:
    """As AWS words them."""
    proxy.inject(Fault("status", status, body=f"<Error><Code>{code}</Code></Error>".encode()))

    with pytest.raises(expected, match=code):
        CheckpointStore(s3_uri, patience=HASTY).read("x")


# --- a full disk ---


def test_a_full_disk_fails_the_save_and_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    """Nothing that is half written looks complete or stays."""
    store = CheckpointStore(tmp_path.as_uri())
    store.save(Spot(1, 1), b"state", b"{}")
    before = sorted(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        with pytest.raises(StoreError, match="cannot be used"):
            store.save(Spot(1, 2), LARGE, b"{}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert store.spots() == [Spot(1, 1)]
    assert store.load(Spot(1, 1)) == (b"{}", b"state")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [p for p in before if p.is_file()]
    store.save(Spot(1, 2), b"later", b"{}")
    assert store.spots()[0] == Spot(1, 2)
