"""The stage from configuration to termination message, on volumes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import layout
from finetune_trainer.config import PrepareConfig
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.fingerprint import fingerprint_model
from finetune_trainer.messages import TERMINATION_MESSAGE_LIMIT, PrepareTermination, parse_line
from finetune_trainer.prepare import stage
from finetune_trainer.prepare.dataset import read_dataset
from finetune_trainer.prepare.stage import run_prepare
from prepare.makers import CONFIG, PLAIN, RUN, Workplace, a_model, chat, write_rows

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[2]


def run(place: Workplace, **changes: Any) -> tuple[int, PrepareTermination]:
    return run_config(place, place.config(**changes))


def run_config(place: Workplace, config: PrepareConfig) -> tuple[int, PrepareTermination]:
    code = run_prepare(config, place.termination, place.mount_root)
    text = place.termination.read_text()
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT
    return code, PrepareTermination.model_validate_json(text)


def local(uri: str | None) -> Path:
    assert uri is not None
    return Path(uri.removeprefix("file://"))


def published(place: Workplace, data_digest: str, **changes: Any) -> Path:
    """A result as the trainer publishes it."""
    model_digest = fingerprint_model(place.model)
    folder = local(layout.result_uri(place.output.as_uri(), RUN, data_digest, model_digest))
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    digest = hashlib.sha256(b"adapter").hexdigest()
    manifest = {
        "schemaVersion": 1,
        "job": {"namespace": "team", "name": "job"},
        "run": {"id": "", "digest": RUN},
        "attempt": 1,
        "baseModel": {"sourceUri": "pvc://models/base", "revision": "", "digest": model_digest},
        "dataDigest": data_digest,
        "method": {"lora": {"r": 8, "loraAlpha": 16, "targetModules": ["q_proj"]}},
        "metrics": {"evalLoss": 1.5, "broken": float("inf")},
        "samples": [],
        "files": {"adapter_model.safetensors": {"sha256": digest, "bytes": 7}},
        "versions": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


# --- success ---


def test_a_good_job_leaves_its_facts_and_its_data(place: Workplace) -> None:
    """The operator plans from these numbers."""
    code, termination = run(place)
    assert (code, termination.outcome, termination.warnings) == (ExitCode.OK, "Succeeded", [])
    model, dataset = termination.model, termination.dataset
    assert model is not None
    assert dataset is not None
    assert (model.parameters, model.weight_bytes, model.architecture) == (44, 96, "LlamaForCausalLM")
    assert (dataset.format, dataset.train_rows, dataset.eval_rows) == ("messages", 18, 2)
    assert (dataset.train_tokens, dataset.eval_tokens, dataset.longest_row_tokens) == (18 * 10, 2 * 10, 10)
    assert len(local(dataset.train_uri).read_text().splitlines()) == 18
    assert len(local(dataset.eval_uri).read_text().splitlines()) == 2
    assert local(dataset.train_uri).stat().st_mode & 0o777 == 0o644


def test_a_model_on_a_volume_is_used_in_place(place: Workplace) -> None:
    """Copying gigabytes from one volume to another would gain nothing."""
    _, termination = run(place)
    assert termination.model is not None
    assert termination.model.staged_uri == place.model.as_uri()
    assert not (place.cache / "models").exists()


def test_phases_are_said_on_the_way(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is one the operator can read."""
    run(place)
    lines = [parse_line(line) for line in capsys.readouterr().out.splitlines()]
    assert [getattr(line, "phase", None) for line in lines] == ["model", "dataset", "fetch", "stage"]


def test_running_again_changes_nothing(place: Workplace) -> None:
    """A pod that is retried finds its own work."""
    first = run(place)
    files = sorted(place.cache.rglob("*"))
    assert run(place) == first
    assert sorted(place.cache.rglob("*")) == files


def test_a_separate_file_of_held_out_rows_is_used_whole(place: Workplace) -> None:
    """Nothing is taken from the training rows."""
    held_out = write_rows(place.dataset.with_name("eval.jsonl"), [chat("a new question")])
    _, termination = run(place, eval_fraction=0.0, eval_uri=held_out.as_uri())
    assert termination.dataset is not None
    assert (termination.dataset.train_rows, termination.dataset.eval_rows) == (20, 1)


def test_no_evaluation_leaves_no_file(place: Workplace) -> None:
    """The trainer skips evaluation then."""
    _, termination = run(place, eval_fraction=0.0)
    assert termination.dataset is not None
    assert termination.dataset.eval_uri is None
    assert not local(termination.dataset.train_uri).with_name("eval.jsonl").exists()


def test_prompt_and_completion_need_no_chat_template(place: Workplace, tmp_path: Path) -> None:
    """Base models can be trained."""
    base = a_model(place.mount_root / "model" / "no-template", chat_template=False)
    write_rows(place.dataset, [{"prompt": f"{number}", "completion": "b"} for number in range(4)])
    code, termination = run(place, model_uri=base.as_uri())
    assert code == ExitCode.OK
    assert termination.dataset is not None
    assert termination.dataset.format == "prompt-completion"


# --- warnings ---


def test_rows_that_will_be_cut_are_counted(place: Workplace) -> None:
    """Cut answers teach the model to stop in the middle. What the template adds counts: 9 tokens, not 5."""
    write_rows(
        place.dataset, [*(chat(f"short row {number}") for number in range(8)), chat("a"), chat("b", "word " * 20)]
    )
    _, termination = run(place, max_length=8)
    assert termination.warnings == ["9 of 10 rows are longer than maxLength (8 tokens) and will be cut"]
    assert run(place, max_length=9)[1].warnings == ["1 of 10 rows are longer than maxLength (9 tokens) and will be cut"]


def test_rows_without_an_answer_in_reach_are_counted(place: Workplace) -> None:
    """They are trained, and change nothing."""
    write_rows(place.dataset, [*(chat(f"short {number}") for number in range(9)), chat("word " * 20)])
    _, termination = run(place, max_length=8)
    assert termination.warnings[1:] == [
        "of 1 of 10 rows nothing of the answer is left within maxLength: they teach nothing"
    ]


@pytest.mark.parametrize("side", ["training", "held-out"])
def test_when_no_row_keeps_its_answer_the_limit_is_to_blame(place: Workplace, side: str) -> None:
    """The loss would be 0 and nothing learned, on a GPU and without a word."""
    long, short = [chat(f"{'word ' * 20}{number}") for number in range(2)], [chat("short")]
    write_rows(place.dataset, long if side == "training" else short)
    held_out = write_rows(place.dataset.with_name("eval.jsonl"), short if side == "training" else long)
    code, termination = run(place, eval_fraction=0.0, eval_uri=held_out.as_uri(), max_length=8)
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert (termination.fault.field, termination.fault.value) == ("spec.dataset.maxLength", "8")
    assert f"every one of the 2 {side} rows is cut before its answer begins" in termination.fault.message
    assert "the longest row has 27 tokens" in termination.fault.remedy


def test_a_template_that_shows_no_answer_is_refused(place: Workplace) -> None:
    """Whatever maxLength is, there would be nothing to learn."""
    (place.model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert "line 1: the model's chat template refuses it: it leaves out the answer" in termination.message


def test_rows_on_both_sides_are_counted(place: Workplace) -> None:
    """The job runs, but its evaluation loss says less."""
    held_out = write_rows(place.dataset.with_name("eval.jsonl"), [chat("is row number 3"), chat("new")])
    _, termination = run(place, eval_fraction=0.0, eval_uri=held_out.as_uri())
    assert termination.warnings == ["1 of 2 held-out rows are training rows as well: evalLoss is too low"]


# --- the user's faults ---


def test_a_bad_row_ends_with_its_line_and_remedy(place: Workplace) -> None:
    """Exit code 65 is never retried."""
    write_rows(place.dataset, [*(chat(str(number)) for number in range(16)), chat("q", ""), *["{"] * 9])
    code, termination = run(place)
    assert (code, termination.outcome, termination.cause) == (ExitCode.DATA, "Failed", "UserError")
    fault = termination.fault
    assert fault is not None
    assert fault.field == "spec.dataset"
    assert fault.message.startswith("line 17: messages[1].content is empty; line 18: is not JSON")
    assert fault.message.endswith("; 5 more")
    assert fault.remedy == "fill it, or drop the row"


def test_a_bad_row_of_the_evaluation_file_names_that_field(place: Workplace) -> None:
    """Two files, two fields."""
    held_out = write_rows(place.dataset.with_name("eval.jsonl"), ["{"])
    code, termination = run(place, eval_fraction=0.0, eval_uri=held_out.as_uri())
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert termination.fault.field == "spec.dataset.eval"


def test_the_evaluation_file_must_have_the_same_format(place: Workplace) -> None:
    """One run renders rows one way."""
    held_out = write_rows(place.dataset.with_name("eval.jsonl"), [{"prompt": "a", "completion": "b"}])
    _, termination = run(place, eval_fraction=0.0, eval_uri=held_out.as_uri())
    assert termination.fault is not None
    assert termination.fault.field == "spec.dataset.eval"
    assert "prompt-completion" in termination.fault.message


def test_both_ways_to_hold_out_are_refused(place: Workplace) -> None:
    """Guessing which one is meant would surprise."""
    code, termination = run(place, eval_uri=place.dataset.as_uri())
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert termination.fault.field == "spec.dataset.evalFraction"


def test_messages_without_a_chat_template_are_refused(place: Workplace) -> None:
    """The trainer could not render them."""
    base = a_model(place.mount_root / "model" / "no-template", chat_template=False)
    code, termination = run(place, model_uri=base.as_uri())
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert termination.fault.field == "spec.model"
    assert "instruct" in termination.fault.remedy


def test_rows_that_the_chat_template_refuses_are_named(place: Workplace) -> None:
    """Else the trainer would meet them on a GPU."""
    template = "{% if messages[0].content == 'is row number 4' %}{{ raise_exception('no fours') }}{% endif %}" + PLAIN
    (place.model / "chat_template.jinja").write_text(template)
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert termination.fault.field == "spec.dataset"
    assert termination.fault.message == "line 5: the model's chat template refuses it: no fours"


def test_held_out_rows_are_rendered_as_well(place: Workplace) -> None:
    """They are reported under their own field."""
    template = "{% if messages[0].content == 'new' %}{{ raise_exception('no') }}{% endif %}" + PLAIN
    (place.model / "chat_template.jinja").write_text(template)
    held_out = write_rows(place.dataset.with_name("eval.jsonl"), [chat("old"), chat("new")])
    _, termination = run(place, eval_fraction=0.0, eval_uri=held_out.as_uri())
    assert termination.fault is not None
    assert termination.fault.field == "spec.dataset.eval"
    assert termination.fault.message.startswith("line 2: ")


def test_a_dataset_outside_the_volume_is_refused(place: Workplace, tmp_path: Path) -> None:
    """A link on the user's volume must not show the pod's files."""
    secret = write_rows(tmp_path / "secret.jsonl", [chat("a"), chat("b")])
    place.dataset.unlink()
    place.dataset.symlink_to(secret)
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert "leads out of its volume" in termination.message


def test_a_file_that_must_not_be_read_is_the_users_to_mend(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files copied by another user are often mode 0600. (Tests may run as root, who reads all.)"""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(place.dataset))

    monkeypatch.setattr(stage, "read_dataset", refuse)
    code, termination = run(place)
    assert code == ExitCode.DATA
    assert termination.fault is not None
    assert str(place.dataset) in termination.fault.message
    assert "0644" in termination.fault.remedy


# --- not the user's faults ---


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "enlarge its claim"), (errno.EACCES, "fsGroup"), (errno.EROFS, "ReadWriteMany")],
    ids=["full", "denied", "read-only"],
)
def test_a_cache_that_cannot_be_written_names_the_path_and_what_helps(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    """Exit code 1: another attempt may find room."""

    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("finetune_trainer.prepare.staging.os.fsync", refuse)
    code, termination = run(place)
    assert (code, termination.cause, termination.fault) == (ExitCode.ERROR, "Storage", None)
    assert str(place.cache) in termination.message
    assert remedy in termination.message
    assert not list(place.cache.rglob("*.partial"))


def test_an_unexpected_error_is_reported_by_its_type(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback is in the log, its last line in the message."""
    monkeypatch.setattr(stage, "fingerprint_model", lambda _: 1 / 0)
    code, termination = run(place)
    assert (code, termination.cause) == (ExitCode.ERROR, "Application")
    assert termination.message == "ZeroDivisionError: division by zero"


def test_a_signal_ends_the_stage_as_preempted(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while the data is read; the handler of before is in force again afterwards."""
    before = signal.getsignal(signal.SIGTERM)

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return read_dataset(*arguments)

    monkeypatch.setattr(stage, "read_dataset", interrupted)
    code, termination = run(place)
    assert (code, termination.outcome, termination.cause) == (ExitCode.PREEMPTED, "Preempted", "Preempted")
    assert signal.getsignal(signal.SIGTERM) == before


# --- the result of an earlier run ---


def digest_of(place: Workplace) -> str:
    _, termination = run(place)
    assert termination.dataset is not None
    assert termination.result is None
    return termination.dataset.digest


def test_a_published_result_of_the_same_run_and_data_is_found(place: Workplace) -> None:
    """Delete and apply the same job: nothing is trained again. Numbers that JSON lacks are left out."""
    folder = published(place, digest_of(place))
    _, termination = run(place)
    assert termination.result is not None
    assert termination.result.uri == folder.as_uri()
    assert termination.result.digest == hashlib.sha256(b"adapter").hexdigest()
    assert termination.result.metrics == {"evalLoss": 1.5}


def test_new_data_finds_no_result(place: Workplace) -> None:
    """One more row is another data digest."""
    published(place, digest_of(place))
    with place.dataset.open("a") as handle:
        handle.write(json.dumps(chat("one more")) + "\n")
    assert run(place)[1].result is None


def test_another_model_in_the_same_place_finds_no_result(place: Workplace) -> None:
    """Run and data are the same, but the adapter belongs to weights that are gone."""
    published(place, digest_of(place))
    (place.model / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 1.0}))
    assert run(place)[1].result is None


@pytest.mark.parametrize(
    "changes",
    [{"files": {"adapter_model.safetensors": {"sha256": "0" * 64, "bytes": 7}}}, {"files": {}}, {"metrics": None}],
    ids=["other-content", "no-adapter", "no-metrics"],
)
def test_a_damaged_result_is_not_used(place: Workplace, changes: dict[str, Any]) -> None:
    """The run trains again and says why."""
    published(place, digest_of(place), **changes)
    _, termination = run(place)
    assert termination.outcome == "Succeeded"
    assert termination.result is None
    assert "is not used, this run trains again" in termination.warnings[0]


def test_a_result_of_another_run_with_the_same_short_name_is_ignored(place: Workplace) -> None:
    """Folders carry twelve digits of the digest, the manifest all of them."""
    published(place, digest_of(place), run={"id": "", "digest": RUN[:12] + "b" * 52})
    _, termination = run(place)
    assert (termination.result, termination.warnings) == (None, [])


# --- the command ---


def command(place: Workplace, config: str, *python: str) -> subprocess.CompletedProcess[str]:
    file = place.termination.with_name("config.json")
    file.write_text(config)
    environment = os.environ | {
        "FINETUNE_CONFIG": str(file),
        "FINETUNE_TERMINATION_LOG": str(place.termination),
        "FINETUNE_MOUNT_ROOT": str(place.mount_root),
        "PYTHONPATH": str(REPOSITORY / "trainer_image"),
    }
    arguments = python or ("-m", "finetune_trainer.prepare")
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_command_reads_and_writes_where_the_environment_says(place: Workplace) -> None:
    """As the pod runs it."""
    done = command(place, place.config().to_json())
    assert done.returncode == ExitCode.OK, done.stderr
    assert PrepareTermination.model_validate_json(place.termination.read_text()).outcome == "Succeeded"


def test_a_configuration_that_cannot_be_read_is_exit_64(place: Workplace) -> None:
    """The operator writes it, so nobody waits for the user."""
    done = command(place, '{"contractVersion": 9}')
    assert done.returncode == ExitCode.CONFIG
    assert PrepareTermination.model_validate_json(place.termination.read_text()).cause == "Config"


def test_no_heavy_library_is_imported(place: Workplace) -> None:
    """The stage must start in a second and fit a small pod; one import of torch would end that."""
    script = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('finetune_trainer.prepare', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "print(sorted({'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)))"
    )
    done = command(place, place.config().to_json(), "-c", script)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
