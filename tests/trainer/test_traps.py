"""Mistakes of distributed fine-tuning that end with exit code 0 and a worse model; a test for each.

The gangs below train for six steps on rows of very different length. One gang serves many tests, so it runs once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.checkpoint import CheckpointManifest
from finetune_trainer.config import TrainConfig
from finetune_trainer.model import load_model
from finetune_trainer.store import CheckpointStore
from finetune_trainer.strategies.base import trainable_parameters
from trainer.probes import in_ranks, leave_every_rank_alone, look_inside, reports
from trainer.tiny import Assets, Ending, Launch, a_config, stub_recipe, write_rows
from trainer.zygote import Zygote

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(300)]

STEPS = 6
BITING = 0.05
"""A limit below every gradient norm of these runs."""
GANGS = ("DDP 1", "DDP 2", "DDP 3", "FSDP 3", "HSDP 4", "ZeRO2 3", "ZeRO3 3")
"""Strategy and ranks; HSDP is FSDP on two nodes. Three ranks divide neither the global batch nor any tensor."""
SHARDED = [gang for gang in GANGS if not gang.startswith("DDP")]


@dataclass
class Run:
    """What a gang left behind."""

    config: TrainConfig
    ending: Ending
    ranks: list[dict[str, Any]]
    """What :func:`trainer.probes.look_inside` saw."""
    state: dict[str, torch.Tensor]
    """The last checkpoint."""
    manifest: CheckpointManifest


class Gangs:
    """Runs gangs, each once."""

    def __init__(self, assets: Assets, folder: Path, zygote: Zygote) -> None:
        self._assets, self._folder, self._zygote = assets, folder, zygote
        self._runs: dict[str, Run] = {}
        self._rows_uri = write_rows(folder / "rows.jsonl", [uneven_row(number) for number in range(10)])

    def __call__(self, gang: str, *, method: str = "lora", evaluate: bool = True, r: int = 4, **training: Any) -> Run:
        """``gang``: strategy and ranks."""
        key = f"{gang} {method} {evaluate} {r} {sorted(training.items())}"
        if key not in self._runs:
            self._runs[key] = self._run(gang, method, evaluate, r, training)
        return self._runs[key]

    def _run(self, gang: str, method: str, evaluate: bool, r: int, training: dict[str, Any]) -> Run:
        strategy, ranks = gang.split()
        folder = self._folder / str(len(self._runs))
        settings = {"max_steps": STEPS, "learning_rate": 0.005, "global_batch_size": 5, "max_grad_norm": BITING}
        raw = a_config(self._assets, folder, ranks=int(ranks), **(settings | training))
        # A large alpha makes gradients so large that a limit of 1 would bite, too.
        raw["method"] = {method: {"r": r, "loraAlpha": 32 * r, "targetModules": ["all-linear"]}}
        raw["distributed"] = {"strategy": strategy.replace("HSDP", "FSDP")}
        raw["data"]["trainUri"] = self._rows_uri
        raw["evaluation"]["prompts"] = []
        if not evaluate:
            raw["data"]["evalRows"] = 0
        if strategy == "HSDP":
            raw["topology"] |= {"nodes": 2, "processesPerNode": int(ranks) // 2}
        probe = in_ranks(look_inside, folder / "seen")
        pods = [
            Launch(raw, folder / f"pod-{pod}", zygote=self._zygote, JOB_COMPLETION_INDEX=str(pod), **probe)
            for pod in range(raw["topology"]["nodes"])
        ]
        endings = [pod.end() for pod in pods]
        assert [ending.code for ending in endings] == [0] * len(pods), endings[0].stderr[-3000:]
        store = CheckpointStore(raw["checkpoint"]["uri"])
        content = store.load(store.spots()[0])
        assert content is not None
        from safetensors.torch import load

        return Run(
            config=TrainConfig.model_validate(raw),
            ending=endings[0],
            ranks=reports(folder / "seen"),
            state=load(content[1]),
            manifest=CheckpointManifest.model_validate_json(content[0]),
        )


@pytest.fixture(scope="module")
def gangs(assets: Assets, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Gangs:
    return Gangs(assets, tmp_path_factory.mktemp("gangs"), zygote)


def uneven_row(number: int) -> dict[str, Any]:
    """From a few tokens to sixty; what is said differs as much, so that a mean of means is another number."""
    answer = "!" * 50 if number % 3 == 0 else "abcdefgh"[: 1 + number % 8]
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}


# --- 1, 3: every rank trains alone -----------------------------------------------------------------------------


def test_a_gang_smaller_than_promised_never_trains(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """Both ranks meet nobody and would each train on half of the data."""
    config = a_config(assets, tmp_path, ranks=2)
    probe = in_ranks(leave_every_rank_alone, tmp_path / "probe")
    ending = Launch(config, tmp_path, zygote=zygote, **probe).end(60)

    assert ending.code == 1
    assert "the process group is smaller than the topology" in ending.termination.message
    assert CheckpointStore(config["checkpoint"]["uri"]).list() == []
    assert not ending.output.exists()


# --- 2: nothing is sharded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gang", ["FSDP 3", "HSDP 4", "ZeRO3 3"])
def test_every_rank_holds_only_its_part_of_every_parameter(gangs: Gangs, gang: str) -> None:
    """Of trained and frozen ones; in FSDP on two nodes a node holds the whole."""
    run = gangs(gang)
    shards = {"FSDP 3": 3, "HSDP 4": 2, "ZeRO3 3": 3}[gang]

    assert len(run.ranks) == run.config.topology.world_size
    assert {seen["strategy"] for seen in run.ranks} == {gang.split()[0].replace("HSDP", "FSDP")}
    for seen in run.ranks:
        for name, parameter in seen["parameters"].items():
            assert gang.startswith("ZeRO") or parameter["kind"] == "DTensor", name
            # Rows are not divided further, so a shard may have one row more than its share.
            assert parameter["own"] <= parameter["whole"] / shards + 64, name
    for name, parameter in run.ranks[0]["parameters"].items():
        own = sum(seen["parameters"][name]["own"] for seen in run.ranks)
        replicas = run.config.topology.world_size // shards
        assert parameter["whole"] * replicas <= own < parameter["whole"] * replicas + shards, name


# --- 4: DeepSpeed clips unasked --------------------------------------------------------------------------------


@pytest.mark.parametrize("gang", ["ZeRO2 2", "ZeRO3 2"])
def test_zero_clips_only_when_asked_to(gangs: Gangs, gang: str) -> None:
    """Without a limit ZeRO equals a single rank, though the norms are above its own default, 1."""
    single, zero = gangs("DDP 1", max_grad_norm=0.0), gangs(gang, max_grad_norm=0.0)

    assert min(single.ranks[0]["norms"]) > 1
    assert zero.ending.losses == pytest.approx(single.ending.losses, abs=1e-5)
    assert zero.ranks[0]["norms"] == pytest.approx(single.ranks[0]["norms"], rel=1e-4)
    assert_same_moments(zero, single)


@pytest.mark.parametrize("gang", SHARDED)
def test_every_strategy_clips_by_the_norm_over_all_shards(gangs: Gangs, gang: str) -> None:
    """With a limit that bites at every step: losses, norms and moments of a single rank."""
    single, sharded = gangs("DDP 1"), gangs(gang)
    loose = gangs("DDP 1", max_grad_norm=0.0)
    name = next(name for name in single.state if name.endswith("exp_avg_sq"))

    assert single.state[name].norm() < loose.state[name].norm() / 100, "the limit does not bite"
    assert sharded.ending.losses == pytest.approx(single.ending.losses, abs=1e-5)
    assert sharded.ranks[0]["norms"] == pytest.approx(single.ranks[0]["norms"], rel=1e-4)
    assert_same_moments(sharded, single)


def assert_same_moments(run: Run, other: Run) -> None:
    """Adam hides the scale of gradients, its moments do not."""
    for name, value in other.state.items():
        if name.endswith(("exp_avg", "exp_avg_sq")):
            error = float((run.state[name] - value).norm() / value.norm().clamp_min(1e-12))
            assert error < 1e-2, name


# --- 5: an evaluation repacks 4-bit weights, or leaves the model in evaluation mode -----------------------------


def test_4_bit_weights_are_never_repacked_in_place(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a CPU with AVX512-BF16, which this may not be."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    raw = a_config(assets, tmp_path)
    raw["method"] = {"qlora": {"r": 4, "loraAlpha": 8, "targetModules": ["all-linear"]}}
    model = load_model(assets.model, TrainConfig.model_validate(raw), torch.device("cpu"))
    found = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]

    assert len(found) == 14
    assert not any(module.support_avx512bf16_for_cpu for module in found)
    assert all(module.training for module in model.modules())


def test_an_evaluation_leaves_no_trace_in_the_training(gangs: Gangs) -> None:
    """4-bit weights in shards, held-out rows measured before step 1 or not: the same losses to the last bit."""
    measured = gangs("FSDP 2", method="qlora")
    unmeasured = gangs("FSDP 2", method="qlora", evaluate=False)

    assert "evalLoss" in measured.ending.published("manifest.json")
    assert "evalLoss" not in unmeasured.ending.published("manifest.json")
    assert measured.ending.losses == unmeasured.ending.losses
    assert [seen["four_bit_repacking"] for seen in measured.ranks] == [[False], [False]]


@pytest.mark.parametrize("gang", GANGS)
def test_training_begins_in_training_mode(gangs: Gangs, gang: str) -> None:
    """All modules, on all ranks, after the baseline evaluation: otherwise there is no dropout."""
    assert [seen["modes"] for seen in gangs(gang).ranks] == [[True]] * gangs(gang).config.topology.world_size


# --- 6, 7, 8, 13: the checkpoint holds too much, too little, or one rank's shard --------------------------------


@pytest.mark.parametrize("gang", GANGS)
def test_a_checkpoint_holds_what_is_trained_and_nothing_else(gangs: Gangs, assets: Assets, gang: str) -> None:
    """Whole tensors under the names of the model as it is before any wrapper, and the generator of every rank."""
    run = gangs(gang)
    model = load_model(assets.model, run.config, torch.device("cpu"))
    shapes = {name: list(parameter.shape) for name, parameter in trainable_parameters(model).items()}
    ranks = run.config.topology.world_size

    expected = {f"param.{name}": shape for name, shape in shapes.items()}
    expected |= {f"optim.{name}.{kind}": shape for name, shape in shapes.items() for kind in ("exp_avg", "exp_avg_sq")}
    expected |= {f"optim.{name}.step": [] for name in shapes}
    expected |= {f"rng.torch.{rank}": list(torch.get_rng_state().shape) for rank in range(ranks)}
    expected |= {"losses": [STEPS]}
    assert {name: list(tensor.shape) for name, tensor in run.state.items()} == expected
    assert len(shapes) == 28
    assert all(".lora_" in name for name in shapes)
    assert {float(run.state[f"optim.{name}.step"]) for name in shapes} == {STEPS}
    assert (run.manifest.world_size, run.manifest.step) == (ranks, STEPS)


@pytest.mark.parametrize("gang", SHARDED)
def test_gathering_equals_the_libraries_own_slow_way(gangs: Gangs, gang: str) -> None:
    """``full_tensor`` of every shard, DeepSpeed's ``safe_get_full_*``; also where sizes do not divide."""
    run = gangs(gang)
    sizes = [parameter["whole"] for parameter in run.ranks[0]["parameters"].values() if parameter["trained"]]

    assert run.ranks[0]["gather_problems"] == []
    assert gang.startswith("HSDP") or any(size % 3 for size in sizes)
    single = gangs("DDP 1").state
    for name in (name for name in single if name.startswith("param.")):
        # Parameters near zero follow Adam's division, which knows no small errors.
        assert float((run.state[name] - single[name]).abs().max()) < 2e-3, name


def test_a_checkpoint_costs_12_bytes_per_trainable_parameter(gangs: Gangs) -> None:
    """From a million on, where a few kilobytes of generators, losses and names do not count."""
    run = gangs("DDP 2", r=1024, max_steps=2)
    parameters = sum(tensor.numel() for name, tensor in run.state.items() if name.startswith("param."))

    assert parameters > 1_000_000
    assert run.manifest.state_bytes <= 12.5 * parameters


# --- 9: a mean of means ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gang", GANGS[1:])
def test_the_loss_does_not_depend_on_the_number_of_ranks(gangs: Gangs, gang: str) -> None:
    """Rows differ in length, and the ranks do not divide the global batch."""
    losses, expected = gangs(gang).ending.losses, gangs("DDP 1").ending.losses

    assert losses[0] == pytest.approx(expected[0], abs=1e-6)
    assert losses == pytest.approx(expected, abs=1e-5)


# --- 11: more threads than cores -------------------------------------------------------------------------------


def test_workers_on_a_cpu_compute_with_one_thread_each(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More are ten times slower on a busy machine, and change the last digits."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = f"""
    import torch
    open({str(tmp_path)!r} + f"/threads-{{self.world.rank}}", "w").write(str(torch.get_num_threads()))
    """
    config = a_config(assets, tmp_path, ranks=2)
    ending = Launch(config, tmp_path, **stub_recipe(tmp_path / "stub", body)).end(60)

    assert ending.code == 0
    assert "OMP_NUM_THREADS" not in os.environ
    assert [(tmp_path / f"threads-{rank}").read_text() for rank in range(2)] == ["1", "1"]


# --- 12: bf16 reaches what is trained --------------------------------------------------------------------------


@pytest.mark.parametrize("gang", ["ZeRO2 2", "ZeRO3 2"])
def test_adapters_stay_fp32_on_a_bf16_base(gangs: Gangs, gang: str) -> None:
    """In the ranks and in the checkpoint; the losses are those of DDP to what bf16 allows."""
    plain, sharded = gangs("DDP 2", precision="bf16"), gangs(gang, precision="bf16")

    for seen in sharded.ranks:
        for name, parameter in seen["parameters"].items():
            assert parameter["dtype"] == ("torch.float32" if parameter["trained"] else "torch.bfloat16"), name
    kinds = {tensor.dtype for name, tensor in sharded.state.items() if name.startswith(("param.", "optim."))}
    assert kinds == {torch.float32}
    assert any(value != float(torch.tensor(value).bfloat16()) for value in some_values(sharded)), "rounded to bf16"
    assert sharded.ranks[0]["gather_problems"] == []
    differences = [abs(a - b) for a, b in zip(sharded.ending.losses, plain.ending.losses, strict=True)]
    assert max(differences) <= 1e-3
    assert math.isfinite(sum(sharded.ending.losses))


def some_values(run: Run) -> list[float]:
    """Of the first trained matrix."""
    name = next(name for name in run.state if name.startswith("param."))
    return [float(value) for value in run.state[name].flatten()[:16]]
