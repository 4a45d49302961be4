"""DeepSpeed ZeRO-2 (gradients and optimizer state are sharded) and ZeRO-3 (weights too).

What DeepSpeed must be told, because its defaults are wrong for this and say nothing:

- ``gradient_clipping`` unset means 1.0.
- ``bf16`` would turn adapters, and so their checkpoints, into bf16. It stays off: a bf16 base under fp32 adapters
  needs no help, and full fine-tuning computes under autocast.
- its communication in shared memory and its AdamW are compiled at the first use, which takes a minute and a compiler
  that images do not have: neither is needed.

The optimizer works on flat tensors that exist once per rank; Adam's state for them is lazy, so it is created here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune_trainer.config import Training
from finetune_trainer.strategies.base import (
    MOMENTS,
    HostBuffers,
    State,
    make_optimizer,
    set_learning_rate,
    state_key,
    trainable_parameters,
)
from finetune_trainer.strategies.collect import Collector
from finetune_trainer.world import World

_LARGEST_BUCKET = 500_000_000


class ZeroStrategy:
    """One engine of DeepSpeed."""

    def __init__(self, world: World, stage: Literal[2, 3], *, cpu_offload: bool) -> None:
        self.name = f"ZeRO{stage}"
        self.is_sharded = stage == 3
        self._world = world
        self._stage = stage
        self._cpu_offload = cpu_offload

    def wrap(self, model: Any, training: Training) -> Any:
        """Hand model and optimizer to DeepSpeed."""
        deepspeed = _import_deepspeed(self._world)
        self._parameters = trainable_parameters(model)
        self._shapes = [parameter.shape for parameter in self._parameters.values()]
        for parameter in self._parameters.values():
            self._world.broadcast(parameter.data)
        optimizer = make_optimizer(self._parameters, training, self._world.device)
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=self._settings(training),
            dist_init_required=False,
        )
        assert self._engine.zero_optimization_stage() == self._stage
        assert self._engine.dp_world_size == self._world.size, "DeepSpeed sees another gang"
        self._flat_states()  # before the first step, which would link only the first group's
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._buffers = HostBuffers()
        self._collector = Collector(self._world)
        return self._engine

    def backward(self, loss_share: Tensor, last: bool) -> None:
        """Accumulate; DeepSpeed averages over the ranks what the recipe has normalised already."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss_share * self._world.size, scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip and update; the limit for clipping is in the engine's settings."""
        set_learning_rate(self._zero, learning_rate)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return norm if norm >= 0 else math.nan  # -1 is how it says "not finite"

    def discard(self) -> None:
        """Nothing to do: no step follows, and gradients are no part of what is gathered."""

    def gather(self) -> State:
        """Every rank sends its part of every flat tensor; rank 0 cuts them into parameters and moments."""
        states = self._flat_states()
        for number, (flat, state) in enumerate(zip(self._flats(), states, strict=True)):
            for kind, own in (("param", flat.detach()), *((moment, state[moment]) for moment in MOMENTS)):
                rows = self._collector.gather(f"{kind} {number}", own)
                if self._world.is_main:
                    self._cut(kind, number, rows)
        if self._world.is_main:
            for name in self._parameters:
                self._buffers.keep(state_key(name, "step"), states[0]["step"].reshape(()))
        return self._buffers.state()

    def _cut(self, kind: str, number: int, rows: Tensor) -> None:
        """``rows``: one per rank, of flat tensor ``number``."""
        for name, shape, whole in self._members(number, rows):
            self._buffers.keep(state_key(name, kind), whole[: math.prod(shape)].view(shape))

    def _members(self, number: int, rows: Tensor) -> Iterator[tuple[str, torch.Size, Tensor]]:
        """Name, shape and padded elements of every parameter in a flat tensor.

        Stage 2 lays the parameters end to end and cuts the result into one part per rank; stage 3 cuts every
        parameter, and lays a rank's parts end to end.
        """
        if self._stage == 2:
            whole, at = rows.view(-1), 0
            for parameter in self._zero.bit16_groups[number]:
                yield self._names[id(parameter)], parameter.shape, whole[at:]
                at += parameter.numel()
            return
        for name, parameter in self._parameters.items():
            group, offset, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
            if group == number:
                yield name, parameter.ds_shape, rows[:, offset : offset + size].reshape(-1)  # type: ignore[attr-defined]

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Create Adam's state for the flat tensors, then fill in this rank's part of every moment."""
        any_step = state_key(next(iter(self._parameters)), "step")
        step = float(state[any_step]) if any_step in state else 0.0
        for flat in self._flat_states():
            flat["step"].fill_(step)
            for moment in MOMENTS:
                flat[moment].zero_()
        if step == 0.0:
            return
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                self._set_moment(parameter, moment, state[state_key(name, moment)])

    def _set_moment(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        if self._stage == 2:
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, whole, moment)
            return
        from deepspeed.utils import safe_set_local_optimizer_state

        # The last rank's part is padded; the call for whole tensors refuses those that do not divide.
        size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.zeros(size * self._world.size, dtype=whole.dtype)
        padded[: whole.numel()] = whole.flatten()
        own = padded.narrow(0, size * self._world.rank, size)
        safe_set_local_optimizer_state(parameter, own, moment)

    def _flats(self) -> list[Tensor]:
        """This rank's parts of the flat tensors: the fp32 parameters that the optimizer updates."""
        parts = (
            self._zero.single_partition_of_fp32_groups if self._stage == 2 else self._zero.fp32_partitioned_groups_flat
        )
        return list(parts)

    def _flat_states(self) -> list[dict[str, Tensor]]:
        """Adam's state of every flat tensor, created where it does not exist yet."""
        optimizer = self._zero.optimizer
        for flat in self._flats():
            if not optimizer.state.get(flat):
                optimizer.state[flat] = {
                    "step": torch.zeros((), device=flat.device if optimizer.defaults["fused"] else "cpu"),
                    **{moment: torch.zeros_like(flat) for moment in MOMENTS},
                }
        if self._stage == 2:
            self._zero._lazy_init_hp_params_optimizer_state()
        return [optimizer.state[flat] for flat in self._flats()]

    def _settings(self, training: Training) -> dict[str, Any]:
        on_host = {"device": "cpu", "pin_memory": self._world.device.type == "cuda"}
        # Buffers for gradients are allocated at every backward pass: the default is 2 GB, adapters need megabytes.
        bucket = min(_LARGEST_BUCKET, sum(math.prod(shape) for shape in self._shapes))
        zero: dict[str, Any] = {
            "stage": self._stage,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # On the host the second stream would be a race.
            "overlap_comm": self._world.device.type == "cuda",
        }
        if self._cpu_offload:
            zero["offload_optimizer"] = on_host
            if self._stage == 3:
                zero["offload_param"] = on_host
        return {
            "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "gradient_clipping": training.max_grad_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }


def _import_deepspeed(world: World) -> Any:
    """DeepSpeed on the process group that exists already."""
    import logging

    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # Its operators, none of which is needed, would be probed with a compiler at the first look at this table.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, dist_init_required=False)
    return deepspeed
