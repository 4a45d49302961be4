"""The layout of the repository: no shadowing of the standard library, no framework behind the decisions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def _python(code: str) -> str:
    path = f"import sys; sys.path[:0] = [{str(ROOT / 'operator')!r}, {str(ROOT / 'trainer_image')!r}]; "
    done = subprocess.run([sys.executable, "-c", path + code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("folder", ["operator", "trainer_image"])
def test_folders_of_packages_are_no_packages(folder: str) -> None:
    """``operator/__init__.py`` would hide the standard library's module of that name."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_have_no_packages_and_no_operator() -> None:
    """``tests/operator`` would break pytest in every import mode."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    assert not (ROOT / "tests" / "operator").exists()
    assert list(ROOT.glob("operator.py")) == []


def test_standard_library_works_from_the_root() -> None:
    """``collections`` imports ``operator``; Python started with -c looks into the current folder first."""
    done = subprocess.run(
        [sys.executable, "-c", "import collections, operator; print(operator.itemgetter(0)('x'))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "x"), done.stderr


def test_decisions_load_no_framework() -> None:
    """A pass can be replayed anywhere; import-linter proves it for the sources, this for what they load."""
    loaded = _python(
        "import finetune_operator.core.reconcile, finetune_operator.builders.attempt, finetune_operator.api.crd; "
        "print(*sorted({'kopf', 'kubernetes', 'aiohttp', 'asyncio', 'torch'} & set(sys.modules)))"
    )
    assert loaded == ""


@pytest.mark.parametrize("module", ["config", "compatibility", "messages", "exit_codes", "layout"])
def test_contract_loads_no_torch(module: str) -> None:
    """The operator imports it."""
    loaded = _python(
        f"import finetune_trainer.{module}; "
        "print(*sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    assert loaded == ""


def test_the_trainer_imports_only_what_it_declares() -> None:
    """What comes along with a dependency today may be gone in its next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["trainer"]
    declared = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}

    imported = {name for file in (ROOT / "trainer_image").rglob("*.py") for name in _imports(file)}

    assert imported - declared - sys.stdlib_module_names == {"finetune_trainer"}


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
