"""The result of an earlier run, when results are published on S3."""

from __future__ import annotations

import pytest

from e2e.s3.server import LocalS3
from finetune_trainer import layout
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import PrepareTermination
from finetune_trainer.prepare.stage import run_prepare
from finetune_trainer.result import ADAPTER_FILE, AdapterManifest, publish
from finetune_trainer.store import Store, sha256
from prepare.makers import RUN, Workplace

pytestmark = pytest.mark.trainer


def run(place: Workplace, output_uri: str) -> tuple[int, PrepareTermination]:
    code = run_prepare(place.config(output_uri=output_uri), place.termination, place.mount_root)
    return code, PrepareTermination.model_validate_json(place.termination.read_text())


def test_a_published_result_is_found(place: Workplace, s3_uri: str) -> None:
    """Nothing there is no error, and afterwards nothing is trained again."""
    code, before = run(place, s3_uri)
    assert (code, before.result, before.warnings) == (ExitCode.OK, None, [])
    assert before.model is not None
    assert before.dataset is not None
    uri = layout.result_uri(s3_uri, RUN, before.dataset.digest, before.model.digest)
    files = {ADAPTER_FILE: b"adapter"}
    manifest = AdapterManifest.model_validate(
        {
            "job": {"namespace": "team", "name": "job"},
            "run": {"digest": RUN},
            "attempt": 1,
            "base_model": {"source_uri": "pvc://models/base", "digest": before.model.digest},
            "data_digest": before.dataset.digest,
            "method": {"lora": {"r": 4, "lora_alpha": 8, "target_modules": ["all-linear"]}},
            "metrics": {"evalLoss": 1.5},
            "files": {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in files.items()},
            "versions": {},
        }
    )
    publish(Store(uri), manifest, files, lambda: None)

    code, after = run(place, s3_uri)

    assert code == ExitCode.OK
    assert after.result is not None
    assert (after.result.uri, after.result.digest) == (uri, sha256(b"adapter"))


def test_refused_credentials_are_found_before_a_gpu_is_held(
    place: Workplace, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the whole training would be done before the adapter cannot be published."""
    monkeypatch.setenv("FINETUNE_OUTPUT_AWS_SECRET_ACCESS_KEY", "wrong")
    code, termination = run(place, s3_uri)
    assert code == ExitCode.CONFIG
    assert termination.cause == "UserError"
    assert termination.fault is not None
    assert termination.fault.field == "spec.output.secretRef"


def test_a_missing_bucket_is_found_before_a_gpu_is_held(place: Workplace, s3: LocalS3) -> None:
    """It is not taken for one without results."""
    code, termination = run(place, "s3://no-such-bucket/output")
    assert code == ExitCode.CONFIG
    assert termination.fault is not None
    assert termination.fault.field == "spec.output.uri"
