"""Models and datasets from a hub: the real client against a local server of the Hub's layout."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import httpx

from e2e.hub.server import LocalHub, Repository, serving
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import PrepareTermination
from finetune_trainer.prepare import hub as hub_module
from finetune_trainer.prepare.stage import run_prepare
from prepare.makers import Workplace, a_model, chat, in_shards, write_rows

pytestmark = pytest.mark.unit


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The hub's folder: a model and a dataset."""
    root = tmp_path / "hub"
    a_model(root / "acme" / "tiny")
    (root / "acme" / "tiny" / "README.md").write_text("not needed")
    write_rows(root / "datasets" / "acme" / "rows" / "data" / "train.jsonl", [chat(str(n)) for n in range(10)])
    return root


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub on the loopback device."""
    with serving(root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """Volumes with a dataset."""
    place = Workplace(tmp_path)
    write_rows(place.dataset, [chat(str(number)) for number in range(10)])
    return place


def run(place: Workplace, **changes: Any) -> tuple[int, PrepareTermination]:
    config = place.config(**({"model_uri": "hf://acme/tiny"} | changes))
    code = run_prepare(config, place.termination, place.mount_root)
    return code, PrepareTermination.model_validate_json(place.termination.read_text())


def fetched(hub: LocalHub) -> list[str]:
    """Names of the files whose content was read."""
    return [line.rpartition("/")[2] for line in hub.requests if line.startswith("GET") and "/resolve/" in line]


def test_a_model_is_staged_under_its_commit(hub: LocalHub, root: Path, place: Workplace) -> None:
    """Only what training needs, readable for all, without traces of the download."""
    commit = Repository(root / "acme" / "tiny").commit
    code, termination = run(place)
    assert code == ExitCode.OK, termination
    assert termination.model is not None
    folder = place.cache / "models" / "acme--tiny" / commit
    assert (termination.model.revision, termination.model.staged_uri) == (commit, folder.as_uri())
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    assert not list((place.cache / "partial").iterdir())


def test_a_staged_model_is_not_fetched_again(hub: LocalHub, place: Workplace) -> None:
    """A second job asks for the commit only."""
    _, first = run(place)
    hub.requests.clear()
    assert run(place) == (ExitCode.OK, first)
    assert fetched(hub) == []


def test_a_staged_commit_needs_no_hub(hub: LocalHub, root: Path, place: Workplace) -> None:
    """A pinned job runs through an outage."""
    uri = f"hf://acme/tiny@{Repository(root / 'acme' / 'tiny').commit}"
    run(place, model_uri=uri)
    hub.broken = True
    hub.requests.clear()
    assert run(place, model_uri=uri)[0] == ExitCode.OK
    assert hub.requests == []


def test_a_new_commit_is_a_new_folder(hub: LocalHub, root: Path, place: Workplace) -> None:
    """A running job's model never changes under it."""
    run(place)
    (root / "acme" / "tiny" / "generation_config.json").write_text("{}")
    run(place)
    assert len(list((place.cache / "models" / "acme--tiny").iterdir())) == 2


def test_a_revision_is_fetched(hub: LocalHub, root: Path, place: Workplace) -> None:
    """A tag, with weights in shards."""
    in_shards(a_model(root / "acme" / "tiny@v2"))
    code, termination = run(place, model_uri="hf://acme/tiny@v2")
    assert code == ExitCode.OK
    assert termination.model is not None
    assert termination.model.revision == Repository(root / "acme" / "tiny@v2").commit
    assert sum(name.startswith("model-0000") for name in fetched(hub)) == 2


def test_a_dataset_of_the_hub_is_read(hub: LocalHub, place: Workplace) -> None:
    """Its copy is gone when the checked rows are staged."""
    code, termination = run(place, dataset_uri="hf://datasets/acme/rows/data/train.jsonl")
    assert code == ExitCode.OK, termination
    assert termination.dataset is not None
    assert (termination.dataset.train_rows, termination.dataset.eval_rows) == (9, 1)
    assert not list((place.cache / "partial").iterdir())


ONLY_ACME = ["hf://acme/", "hf://datasets/acme/", "file:///"]


@pytest.mark.parametrize("pinned", [False, True], ids=["branch", "commit"])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_that_moved_out_of_what_is_allowed_is_refused(
    hub: LocalHub, root: Path, place: Workplace, kind: str, pinned: bool
) -> None:
    """The client follows the hub's redirect; without prefixes that is what people expect of a rename."""
    model, rows = root / "evil" / "tiny", root / "datasets" / "evil" / "rows"
    a_model(model)
    write_rows(rows / "data" / "train.jsonl", [chat(str(n)) for n in range(10)])
    hub.moved = {"acme/old": "evil/tiny" if kind == "model" else "evil/rows"}
    revision = f"@{Repository(model if kind == 'model' else rows).commit}" if pinned else ""
    uri = f"hf://acme/old{revision}" if kind == "model" else f"hf://datasets/acme/old{revision}/data/train.jsonl"
    assert run(place, **{f"{kind}_uri": uri})[0] == ExitCode.OK
    shutil.rmtree(place.cache)
    hub.requests.clear()

    code, termination = run(place, **{f"{kind}_uri": uri}, allowed_uri_prefixes=ONLY_ACME)

    assert code == ExitCode.CONFIG
    assert termination.fault is not None
    assert (termination.fault.field, termination.fault.value) == (f"spec.{kind}.uri", uri)
    assert "leads from acme/old on to" in termination.message
    assert fetched(hub) == []


def test_a_repository_that_moved_within_what_is_allowed_is_read(hub: LocalHub, place: Workplace) -> None:
    """A rename inside the organisation."""
    hub.moved = {"acme/old": "acme/tiny"}
    assert run(place, model_uri="hf://acme/old", allowed_uri_prefixes=ONLY_ACME)[0] == ExitCode.OK


def test_pickle_weights_are_refused_before_anything_is_fetched(hub: LocalHub, root: Path, place: Workplace) -> None:
    """The list of names is enough."""
    tiny = root / "acme" / "tiny"
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert (termination.fault.field, termination.fault.value) == ("spec.model", "pytorch_model.bin")
    assert fetched(hub) == []


def test_remote_code_is_refused_before_the_weights_are_fetched(hub: LocalHub, root: Path, place: Workplace) -> None:
    """And what was fetched for the check is removed."""
    (root / "acme" / "tiny" / "config.json").write_text('{"auto_map": {}}')
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert "auto_map" in termination.message
    assert "model.safetensors" not in fetched(hub)
    assert not [path for path in place.cache.rglob("*") if path.is_file()]


def test_a_bad_dataset_is_found_before_the_model_is_fetched(hub: LocalHub, place: Workplace) -> None:
    """Line 1 is cheaper than gigabytes."""
    write_rows(place.dataset, ["{"])
    assert run(place)[0] == ExitCode.DATA
    assert fetched(hub) == []


def test_rows_that_the_template_refuses_are_found_before_the_weights_are_fetched(
    hub: LocalHub, root: Path, place: Workplace
) -> None:
    """The template is a small file."""
    (root / "acme" / "tiny" / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert "line 1: the model's chat template refuses it: never" in termination.message
    assert "model.safetensors" not in fetched(hub)


FAULTS = {
    "no-repository": ("hf://acme/nothing", "the hub has no model acme/nothing, or it is private", "spelling"),
    "no-revision": ("hf://acme/tiny@v9", "model acme/tiny has no revision v9", "a branch, a tag"),
}


@pytest.mark.parametrize(("uri", "message", "remedy"), FAULTS.values(), ids=FAULTS.keys())
def test_what_does_not_exist_is_the_users_to_mend(
    hub: LocalHub, place: Workplace, uri: str, message: str, remedy: str
) -> None:
    """Exit code 65, with the URI as the user wrote it."""
    code, termination = run(place, model_uri=uri)
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert (termination.fault.field, termination.fault.value) == ("spec.model.uri", uri)
    assert termination.fault.message == message
    assert remedy in termination.fault.remedy


def test_a_missing_file_of_a_dataset_is_named(hub: LocalHub, place: Workplace) -> None:
    """Its repository exists."""
    code, termination = run(place, dataset_uri="hf://datasets/acme/rows/test.jsonl")
    assert code == ExitCode.DATA
    assert termination.message == "dataset acme/rows has no file test.jsonl at main"


def test_a_gated_model_needs_a_token(
    hub: LocalHub, root: Path, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one it is the user's fault, with one it works."""
    (root / "acme" / "tiny" / ".gated").write_text("secret-token")
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert termination.message == "model acme/tiny is gated"
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    code, termination = run(place)
    assert code == ExitCode.OK
    assert "secret-token" not in place.termination.read_text()


def test_an_outage_is_nobodys_fault(hub: LocalHub, place: Workplace) -> None:
    """Exit code 1: the operator tries again."""
    hub.broken = True
    code, termination = run(place)
    assert (code, termination.cause, termination.fault) == (ExitCode.ERROR, "Unreachable", None)
    assert f"the hub at {hub.url} did not answer: " in termination.message


def test_a_closed_port_is_nobodys_fault(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """No route, no name, no listener: the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        code, termination = run(place)
    assert (code, termination.cause) == (ExitCode.ERROR, "Unreachable")
    assert url in termination.message


def test_an_interrupted_fetch_continues_where_it_was(
    hub: LocalHub, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage comes when only the weights are missing; the files before them are not read twice."""

    def fails_at_weights(repository: str, name: str, **options: Any) -> str:
        if name == "model.safetensors":
            raise httpx.ConnectError("connection reset")
        return str(hf_hub_download(repository, name, **options))

    monkeypatch.setattr(hub_module, "hf_hub_download", fails_at_weights)
    code, termination = run(place)
    assert (code, termination.cause) == (ExitCode.ERROR, "Unreachable")
    monkeypatch.setattr(hub_module, "hf_hub_download", hf_hub_download)
    hub.requests.clear()
    assert run(place)[0] == ExitCode.OK
    assert fetched(hub) == ["model.safetensors"]


def test_two_jobs_stage_the_same_model_at_once(
    hub: LocalHub, tmp_path: Path, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is second finds the folder there and drops its own."""
    meet = threading.Barrier(2, timeout=60)

    def together(folder: Path) -> None:
        hub_module.forget_download_state(folder)
        meet.wait()

    monkeypatch.setattr("finetune_trainer.prepare.stage.forget_download_state", together)
    # Signals can be handled in the main thread only, which the second job does not have.
    monkeypatch.setattr("finetune_trainer.prepare.stop.signal.signal", lambda *_: None)
    other = place.config(model_uri="hf://acme/tiny").model_copy(
        update={"job": place.config().job.model_copy(update={"uid": "2"})}
    )
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_prepare(other, tmp_path / "other-log", place.mount_root)))
    thread.start()
    codes.append(run(place)[0])
    thread.join()
    assert codes == [ExitCode.OK, ExitCode.OK]
    assert len(list((place.cache / "models" / "acme--tiny").iterdir())) == 1


def test_the_hub_runs_as_a_command(root: Path, place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods of a test cluster reach it as a process of its own; its first line is the URL."""
    command = [sys.executable, "-m", "e2e.hub", str(root)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            monkeypatch.setenv("HF_ENDPOINT", process.stdout.readline().strip())
            assert run(place)[0] == ExitCode.OK
        finally:
            process.terminate()
