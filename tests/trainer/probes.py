"""What tests do inside real ranks: look at what is there, wait at a moment, or break something.

``Launch(config, folder, zygote=zygote, **in_ranks(look_inside, folder))`` lets every worker call ``look_inside`` before
it becomes a rank; what it reports lies in the folder afterwards. The trainer itself knows nothing of this.
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.zygote import PROBE_ENV

PAUSE_SECONDS = 60.0
_FOLDER = "TRAINER_TESTS_FOLDER"
_MOMENT = "TRAINER_TESTS_MOMENT"
_MEGABYTES = "TRAINER_TESTS_MEGABYTES"


def in_ranks(probe: Callable[[], None], folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a launcher whose workers call ``probe`` first."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"TRAINER_TESTS_{name.upper()}": value for name, value in settings.items()}
    return {PROBE_ENV: f"{probe.__module__}:{probe.__name__}", _FOLDER: str(folder), **named}


def reports(folder: Path) -> list[dict[str, Any]]:
    """What :func:`look_inside` saw, by rank."""
    paths = sorted(folder.glob("rank-*.json"), key=lambda path: int(path.stem.removeprefix("rank-")))
    return [json.loads(path.read_text()) for path in paths]


# --- look ----------------------------------------------------------------------------------------------------


def look_inside() -> None:
    """Report how the model lies, the norms of the gradients, and whether ``gather`` is what the libraries say."""
    from finetune_trainer.recipe import Recipe

    seen: dict[str, Any] = {"norms": [], "modes": []}
    train, measure = Recipe._train, Recipe._measure_adapter

    def train_and_look(self: Any) -> None:
        seen["modes"] = sorted({module.training for module in self.model.modules()})
        seen["four_bit_repacking"] = _repacking(self.model)
        step = self.strategy.step

        def step_and_look(*arguments: Any) -> float:
            norm: float = step(*arguments)
            seen["norms"].append(norm)
            return norm

        self.strategy.step = step_and_look
        train(self)

    def look_and_measure(self: Any) -> None:
        seen["strategy"] = self.strategy.name
        seen["parameters"] = _placement(self.hf_model)
        seen["gather_problems"] = _compare_gather(self.strategy, self.hf_model, self.world)
        (Path(os.environ[_FOLDER]) / f"rank-{self.world.rank}.json").write_text(json.dumps(seen))
        measure(self)

    setattr(Recipe, "_train", train_and_look)  # noqa: B010
    setattr(Recipe, "_measure_adapter", look_and_measure)  # noqa: B010


def _repacking(model: Any) -> list[bool]:
    flag = "support_avx512bf16_for_cpu"
    return sorted({getattr(module, flag) for module in model.modules() if hasattr(module, flag)})


def _placement(model: Any) -> dict[str, dict[str, Any]]:
    """Of every parameter: elements in all, elements on this rank, kind and dtype."""
    from torch.distributed.tensor import DTensor

    found = {}
    for name, parameter in model.named_parameters():
        whole, own = parameter.numel(), parameter.numel()
        if isinstance(parameter, DTensor):
            own = parameter.to_local().numel()
        elif hasattr(parameter, "ds_tensor"):
            whole, own = parameter.ds_numel, parameter.ds_tensor.numel()
        found[name] = {
            "whole": whole,
            "own": own,
            "kind": type(parameter).__name__,
            "dtype": str(parameter.dtype),
            "trained": parameter.requires_grad,
        }
    return found


def _compare_gather(strategy: Any, model: Any, world: Any) -> list[str]:
    """Where rank 0's state differs from what the libraries' own, slow calls return; collective."""
    import torch

    state = {name: tensor.clone() for name, tensor in strategy.gather().items()}
    official = _official_fsdp if strategy.name == "FSDP" else _official_zero if "ZeRO" in strategy.name else None
    if official is None:
        return []
    expected = official(strategy, model)
    if not world.is_main:
        return []
    problems = [f"{name} is not in both" for name in state.keys() ^ expected.keys() if not name.endswith(".step")]
    for name in state.keys() & expected.keys():
        if not torch.equal(state[name], expected[name].cpu()):
            problems.append(f"{name} differs")
    return problems


def _official_fsdp(strategy: Any, model: Any) -> dict[str, Any]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moments = strategy._optimizer.state[parameter]
            found[f"param.{name}"] = parameter.detach().full_tensor()
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"optim.{name}.{moment}"] = moments[moment].full_tensor()
    return found


def _official_zero(_strategy: Any, model: Any) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            found[f"param.{name}"] = safe_get_full_fp32_param(parameter).view(shape).clone()
            for moment in ("exp_avg", "exp_avg_sq"):
                whole = safe_get_full_optimizer_state(parameter, moment).flatten()[: math.prod(shape)]
                found[f"optim.{name}.{moment}"] = whole.view(shape).clone()
    return found


# --- wait ----------------------------------------------------------------------------------------------------


def pause() -> None:
    """Wait at the moment until the test says ``go``; at most a minute."""
    _MOMENTS[os.environ[_MOMENT]]()


def is_reached(folder: Path, ranks: int) -> bool:
    """Whether so many ranks wait."""
    return len(list(folder.glob("here-*"))) >= ranks


def go(folder: Path) -> None:
    """Release them."""
    (folder / "go").touch()


def _before(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Pause before the first call for which ``when`` is true."""
    call = getattr(owner, name)
    folder = Path(os.environ[_FOLDER])
    mark = folder / f"here-{os.environ['RANK']}"

    def wait_and_call(*arguments: Any, **named: Any) -> Any:
        if not mark.exists() and when(*arguments):
            mark.touch()
            deadline = time.monotonic() + PAUSE_SECONDS
            while not (folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        return call(*arguments, **named)

    setattr(owner, name, wait_and_call)


def _at_call(number: int) -> Callable[..., bool]:
    calls = 0

    def count(*_arguments: Any) -> bool:
        nonlocal calls
        calls += 1
        return calls == number

    return count


def _recipe() -> ModuleType:
    from finetune_trainer import recipe

    return recipe


def _while_the_manifest_is_written() -> None:
    from finetune_trainer.store import Store

    _before(Store, "write", lambda _self, path, _data: path.endswith("step-3/manifest.json"))


def _in_the_upload() -> None:
    from finetune_trainer import publish

    _before(publish, "publish", _at_call(1))


MICRO_STEPS = 16
_MOMENTS: dict[str, Callable[[], None]] = {
    "load": lambda: _before(_recipe(), "load_model", _at_call(1)),
    "baseline": lambda: _before(_recipe(), "evaluation_loss", _at_call(1)),
    "dry step": lambda: _before(_recipe(), "token_loss_sum", _at_call(1)),
    # After the dry step, two whole steps and five micro-steps.
    "accumulation": lambda: _before(_recipe(), "token_loss_sum", _at_call(1 + 2 * MICRO_STEPS + 5 + 1)),
    "save": _while_the_manifest_is_written,
    "evaluate": lambda: _before(_recipe(), "evaluation_loss", _at_call(2)),
    "publish": lambda: _before(_recipe().Recipe, "_publish", _at_call(1)),
    "upload": _in_the_upload,
}


# --- break ---------------------------------------------------------------------------------------------------


def leave_every_rank_alone() -> None:
    """As plugins do that take a CPU for a machine of its own: a process group, but of one."""
    import torch.distributed as dist

    from finetune_trainer import world

    def meet_nobody(*_arguments: Any) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    vars(world)["_meet"] = meet_nobody


def flip_a_bit() -> None:
    """Rank 1's shard of a 4-bit weight in the first layer comes out of sharding with another bit."""
    import torch

    from finetune_trainer.strategies import fsdp

    shard = fsdp.fully_shard
    is_done = os.environ["RANK"] != "1"

    def shard_and_flip(module: Any, **settings: Any) -> Any:
        nonlocal is_done
        sharded = shard(module, **settings)
        if not is_done:
            weight = next(value for name, value in module.named_parameters() if name.endswith("base_layer.weight"))
            weight.to_local().detach().view(torch.uint8).flatten()[0] ^= 1
            is_done = True
        return sharded

    vars(fsdp)["fully_shard"] = shard_and_flip


def limit_memory() -> None:
    """The kernel gives this worker no more than so many megabytes above what it has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (own,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    limit = own + int(os.environ[_MEGABYTES]) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
