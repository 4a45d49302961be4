"""What cannot work is refused before the model is loaded, and nothing in the store is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.compatibility import Combination, find_conflict
from finetune_trainer.store import CheckpointStore
from trainer.tiny import Assets, Ending, Launch, a_config
from trainer.zygote import Zygote

Change = Callable[[dict[str, Any]], object]

LORA = Combination(method="lora", strategy="DDP")
OPTIM, STRATEGY, OFFLOAD = "spec.training.optim", "spec.distributed.strategy", "spec.distributed.cpuOffload"
STORAGE, PRECISION = "spec.method.qlora.quantStorage", "spec.training.precision"
FULL, NODES = "spec.method.full", "spec.placement[0].nodes"


def qlora(**settings: Any) -> Combination:
    return Combination(method="qlora", **settings)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("chosen", "field", "other", "way_out"),
    [
        pytest.param(
            Combination(method="lora", strategy="FSDP", optim="adamw_8bit"),
            OPTIM,
            f"{STRATEGY} FSDP",
            "omit spec.training.optim",
            id="8-bit-optimizer-sharded",
        ),
        pytest.param(
            Combination(method="lora", strategy="ZeRO3", optim="paged_adamw_32bit"),
            OPTIM,
            f"{STRATEGY} ZeRO3",
            "omit spec.training.optim",
            id="paged-optimizer-sharded",
        ),
        pytest.param(
            Combination(method="lora", strategy="DDP", optim="paged_adamw_8bit"),
            OPTIM,
            STRATEGY,
            "omit spec.training.optim",
            id="8-bit-optimizer-replicated",
        ),
        pytest.param(
            Combination(method="lora", strategy="DDP", optim="lion"),
            OPTIM,
            "must be one of: adamw_torch, adamw_torch_fused",
            "omit spec.training.optim",
            id="unknown-optimizer",
        ),
        pytest.param(
            Combination(method="full", strategy="FSDP", optim="adamw_8bit"),
            OPTIM,
            f"{STRATEGY} FSDP",
            "cpuOffload",
            id="8-bit-optimizer-full",
        ),
        *(
            pytest.param(
                qlora(strategy="FSDP", precision=precision, quant_storage=storage),
                STORAGE,
                f"{PRECISION} {precision}",
                f"set it to {fitting}",
                id=f"{storage}-under-{precision}",
            )
            for precision, fitting in (("bf16", "bfloat16"), ("fp32", "float32"))
            for storage in ("uint8", "float16", "bfloat16", "float32")
            if storage != fitting
        ),
        pytest.param(
            Combination(method="lora", strategy="DDP", cpu_offload=True),
            OFFLOAD,
            f"{STRATEGY} DDP",
            "FSDP, ZeRO2 or ZeRO3",
            id="offload-replicated",
        ),
        pytest.param(
            Combination(method="full", strategy="FSDP", nodes=2),
            FULL,
            f"{NODES} 2",
            "set spec.placement[0].nodes to 1",
            id="full-on-two-nodes",
        ),
    ],
)
def test_a_conflict_names_both_fields_and_the_way_out(
    chosen: Combination, field: str, other: str, way_out: str
) -> None:
    """A user mends it without reading the documentation."""
    conflict = find_conflict(chosen)

    assert conflict is not None
    assert conflict.field == field
    assert field in conflict.message
    assert other in conflict.message
    assert way_out in conflict.remedy


@pytest.mark.unit
@pytest.mark.parametrize(
    "chosen",
    [
        *(Combination(method=method, strategy="DDP", nodes=4) for method in ("lora", "qlora")),
        *(
            Combination(method=method, strategy=strategy, cpu_offload=True, optim="adamw_torch_fused")
            for method in ("lora", "qlora", "full")
            for strategy in ("FSDP", "ZeRO2", "ZeRO3")
        ),
        *(qlora(strategy=strategy, quant_storage="uint8") for strategy in ("DDP", "ZeRO2", "ZeRO3")),
        qlora(strategy="FSDP", precision="bf16", quant_storage="bfloat16"),
        qlora(strategy="FSDP", precision="fp32", quant_storage="float32"),
        qlora(strategy="FSDP", quant_storage=None, nodes=2),
    ],
    ids=str,
)
def test_what_works_is_let_through(chosen: Combination) -> None:
    """A refusal too many is a defect, too."""
    assert find_conflict(chosen) is None


@pytest.mark.trainer
@pytest.mark.parametrize(
    ("change", "field", "other"),
    [
        pytest.param(
            lambda config: (
                config["distributed"].update(strategy="FSDP") or config["training"].update(optim="adamw_8bit")
            ),
            OPTIM,
            STRATEGY,
            id="8-bit-optimizer",
        ),
        pytest.param(
            lambda config: (
                config["distributed"].update(strategy="FSDP")
                or config.update(method={"qlora": config["method"]["lora"] | {"quantStorage": "uint8"}})
            ),
            STORAGE,
            PRECISION,
            id="storage-of-4-bit-weights",
        ),
    ],
)
def test_a_pod_refuses_before_it_loads_the_model(
    assets: Assets, tmp_path: Path, zygote: Zygote, change: Change, field: str, other: str
) -> None:
    """Exit code 64 at once: no worker starts, no fence is claimed."""
    config = a_config(assets, tmp_path, ranks=2)
    change(config)
    ending = Launch(config, tmp_path, zygote=zygote).end(60)
    fault = ending.termination.fault

    assert (ending.code, ending.termination.cause) == (64, "UserError")
    assert fault is not None
    assert fault.field == field
    assert other in fault.message
    assert fault.remedy
    assert (ending.lines, CheckpointStore(config["checkpoint"]["uri"]).list()) == ([], [])
    assert "base model" not in ending.stderr
    (line,) = ending.stderr.splitlines()
    assert field in line
    assert fault.remedy in line


@pytest.fixture(scope="module")
def begun(assets: Assets, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> dict[str, Any]:
    """A run that has checkpoints, but no result."""
    folder = tmp_path_factory.mktemp("begun")
    config = a_config(assets, folder, max_steps=2)
    assert Launch(config, folder, zygote=zygote).end(60).code == 0
    shutil.rmtree(folder / "output")
    return config


@pytest.mark.trainer
def test_a_checkpoint_of_another_base_model_is_never_used(
    begun: dict[str, Any], tmp_path: Path, zygote: Zygote
) -> None:
    """The user decides, knowing both digests; to start anew would throw the training away."""
    ending, digest = resume_with(begun, tmp_path, zygote, {"modelDigest": "d" * 64})

    assert (ending.code, ending.termination.cause) == (65, "UserError")
    assert_both_named(ending, "d" * 64, digest)
    assert ending.termination.fault is not None
    assert ending.termination.fault.field == "spec.model"
    assert "runId" in ending.termination.fault.remedy


@pytest.mark.trainer
def test_a_checkpoint_of_a_newer_trainer_is_never_passed_over(
    begun: dict[str, Any], tmp_path: Path, zygote: Zygote
) -> None:
    """Whatever else such a manifest holds."""
    change = {"formatVersion": 2, "modelDigest": "e" * 64, "novelty": [1]}
    ending, digest = resume_with(begun, tmp_path, zygote, change)

    assert (ending.code, ending.termination.cause) == (64, "UserError")
    assert_both_named(ending, "e" * 64, digest)
    assert "format 2" in ending.termination.message
    assert ending.termination.fault is not None
    assert "newer" in ending.termination.fault.remedy


def resume_with(begun: dict[str, Any], folder: Path, zygote: Zygote, change: dict[str, Any]) -> tuple[Ending, str]:
    """Resume a copy of the run whose newest manifest was changed; nothing of the copy may be gone afterwards."""
    source = Path(begun["checkpoint"]["uri"].removeprefix("file://"))
    shutil.copytree(source, folder / "checkpoints")
    store = CheckpointStore((folder / "checkpoints").as_uri())
    path = f"{store.spots()[0].path}/manifest.json"
    store.write(path, json.dumps(json.loads(store.read(path) or b"") | change).encode())
    before = {name: store.read(name) for name in store.list()}
    config = begun | {"attempt": 2, "checkpoint": begun["checkpoint"] | {"uri": store.uri}}
    ending = Launch(config, folder, zygote=zygote).end(60)

    after = {name: store.read(name) for name in store.list()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"fence-2/claim.json"}
    assert "base model in" not in ending.stderr
    assert not (ending.output / "manifest.json").exists()
    return ending, begun["model"]["digest"]


def assert_both_named(ending: Ending, found: str, present: str) -> None:
    assert found in ending.termination.message
    assert present in ending.termination.message
