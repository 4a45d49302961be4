"""For all tests: a real S3 server, and the profiles of the property tests.

``HYPOTHESIS_PROFILE=thorough`` searches longer than the default, ``ci``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from e2e.s3.server import ACCESS_KEY, REGION, SECRET_KEY, LocalS3, serving

_ALLOWED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

# A shared machine makes single examples slow now and then; pytest-timeout bounds the whole.
settings.register_profile("ci", max_examples=50, deadline=None, suppress_health_check=_ALLOWED)
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=_ALLOWED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[LocalS3]:
    """A real S3 server with a bucket."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> LocalS3:
    """The server, with the environment of a pod whose job names a Secret for both roles."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", REGION)
    for role in ("CHECKPOINT", "OUTPUT"):
        monkeypatch.setenv(f"FINETUNE_{role}_AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv(f"FINETUNE_{role}_AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return s3_server


@pytest.fixture
def s3_uri(s3: LocalS3) -> str:
    """A prefix of the test's own; the space is there because users have them."""
    return s3.uri("a b", secrets.token_hex(8))


@pytest.fixture(
    params=[pytest.param("folder", marks=pytest.mark.unit), pytest.param("s3", marks=pytest.mark.trainer)],
)
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Everything that is stored must work in a folder and on S3."""
    if request.param == "folder":
        return (tmp_path / "a b" / "run").as_uri()
    return str(request.getfixturevalue("s3_uri"))
