"""The README's job on the real model: trained, evaluated, published, found again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from e2e.jobs import Jobs
from e2e.kubectl import Json, condition, is_true
from e2e.stack import ROOT, Stack

pytestmark = pytest.mark.e2e

QUICKSTART = ROOT / "examples" / "quickstart.yaml"
BASE_MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def finished(stack: Stack) -> Json:
    """The quickstart, applied as the README says and run to its end."""
    stack.kubectl.run("apply", "-f", str(QUICKSTART))
    return Jobs(stack).wait_for_end("quickstart", seconds=400)


def test_the_quickstart_is_short(stack: Stack) -> None:
    """At most 18 lines in all."""
    assert len(QUICKSTART.read_text().splitlines()) <= 18


@pytest.mark.timeout(500)
def test_the_quickstart_completes_with_a_better_model(finished: Json) -> None:
    """Complete, one attempt on two nodes, and the evaluation loss fell."""
    assert is_true(finished, "Complete"), finished["status"]["message"]
    metrics = finished["status"]["result"]["metrics"]
    assert metrics["evalLoss"] < metrics["baseEvalLoss"]
    assert finished["status"]["plan"]["nodes"] == 2
    assert finished["status"]["totals"]["attempts"] == 1


@pytest.mark.timeout(300)
def test_plain_peft_loads_the_adapter_and_it_beats_the_base(stack: Stack, finished: Json) -> None:
    """Measured here with transformers and peft alone, on the held-out rows that prepare staged."""
    folder = Jobs(stack).output(finished)
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = _staged_eval_rows(stack, manifest["dataDigest"])

    base, adapted = _losses(stack.models / BASE_MODEL, folder, rows[:8])

    assert adapted < base
    assert math.isfinite(adapted)


def test_the_answers_before_and_after_are_published(stack: Stack, finished: Json) -> None:
    """The dataset teaches two lines, Log and Heading; the base model does not write them, the adapter does."""
    manifest = json.loads((Jobs(stack).output(finished) / "manifest.json").read_text())
    prompts = yaml.safe_load(QUICKSTART.read_text())["spec"]["evaluation"]["prompts"]

    assert [sample["prompt"] for sample in manifest["samples"]] == prompts
    for sample in manifest["samples"]:
        assert not sample["before"].startswith("Log:")
        assert sample["after"].startswith("Log:")


@pytest.mark.timeout(300)
def test_delete_and_apply_of_a_finished_job_finds_its_result(stack: Stack, finished: Json) -> None:
    """ResultFound, and no training pod."""
    digest = finished["status"]["result"]["digest"]
    stack.kubectl.delete("ftj", "quickstart", wait=True)
    stack.kubectl.run("apply", "-f", str(QUICKSTART))

    job = Jobs(stack).wait_for_end("quickstart", seconds=120)

    assert condition(job, "Complete")["reason"] == "ResultFound"
    assert job["status"]["result"]["digest"] == digest
    assert stack.kubectl.find("job", "quickstart-a1") is None
    stack.kubectl.delete("ftj", "quickstart")


def _staged_eval_rows(stack: Stack, data_digest: str) -> list[Json]:
    path = stack.storage / "cache" / "data" / data_digest / "eval.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _losses(base_folder: Path, adapter: Path, rows: list[Json]) -> tuple[float, float]:
    """Mean loss of the whole conversations under the base model and under base plus adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, adapter)

    @torch.no_grad()
    def mean_loss() -> float:
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        inputs = [tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"] for text in texts]
        return sum(float(adapted(input_ids=ids, labels=ids).loss) for ids in inputs) / len(inputs)

    after = mean_loss()
    with adapted.disable_adapter():
        before = mean_loss()
    return before, after
