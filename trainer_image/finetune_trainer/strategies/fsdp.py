"""FSDP2: every rank holds a shard of every weight, and a layer is whole only while it computes.

``fully_shard`` on every decoder layer, then on the root. On several nodes either one shard per rank of the gang,
or (HSDP) shards within a node and replicas across nodes, so that weights never cross a slow network.

The gradients of adapters are few, so they are reduced once per step, as in ``ddp.py``; those of a full
fine-tuning are reduced at every micro-step, for whole they would not fit. torch divides by the number of ranks
what the recipe has normalised already, so the loss is multiplied by it.

4-bit weights are sharded as numbers of the dtype they are stored in. Where that has changed bytes (it was seen on
one kind of GPU), a model would train and be worthless: so the first layer is compared before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_trainer.config import Topology, Training
from finetune_trainer.errors import ConfigError
from finetune_trainer.strategies.base import (
    MOMENTS,
    HostBuffers,
    SelfTestError,
    State,
    clip,
    make_optimizer,
    restore_moments,
    state_key,
    trainable_parameters,
    update,
)
from finetune_trainer.strategies.collect import Collector, lay_end_to_end
from finetune_trainer.world import World


class FsdpStrategy:
    """Shards by ``fully_shard``."""

    name = "FSDP"
    is_sharded = True

    def __init__(
        self, world: World, topology: Topology, *, shard_across_nodes: bool, cpu_offload: bool, full: bool
    ) -> None:
        """``full``: every parameter is trained, not an adapter."""
        self._world = world
        self._topology = topology
        self._shard_across_nodes = shard_across_nodes
        self._cpu_offload = cpu_offload
        self._full = full

    def wrap(self, model: Any, training: Training) -> Any:
        """Shard layer by layer, the root last; then the optimizer over the shards."""
        names = list(trainable_parameters(model))
        cuda = self._world.device.type == "cuda"
        mesh = self._mesh()
        self._shards = mesh["shard"].size()
        settings: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": self._precision(training),
            "offload_policy": CPUOffloadPolicy(pin_memory=cuda) if self._cpu_offload else OffloadPolicy(),
            # Bytes cannot be sharded: QLoRA is refused with them, but a base model that comes quantised may have some.
            "ignored_params": {item for item in model.parameters() if not item.dtype.is_floating_point},
        }
        layers = list(decoder_layers(model))
        probe = _Probe(layers[0], self._world)
        for layer in layers:
            fully_shard(layer, **settings)
        fully_shard(model, **settings)
        # A silent fallback to a replica per rank is the classic failure of wrappers around this.
        assert all(isinstance(module, FSDPModule) for module in (model, *layers))
        probe.check(layers[0])
        register_fsdp_forward_method(model, "generate")
        self._model: Any = model
        wrapped = trainable_parameters(model)
        self._parameters = {name: wrapped[name] for name in names}
        self._optimizer = make_optimizer(self._parameters, training, self._world.device)
        self._buffers = HostBuffers()
        self._collector = Collector(self._world, mesh["shard"].get_group())
        # The first shard is the longest.
        self._longest = sum(_shard_sizes(parameter, self._shards)[0] for parameter in self._parameters.values())
        return model

    def backward(self, loss_share: Tensor, last: bool) -> None:
        """Accumulate; adapters' gradients meet the other ranks' at the last micro-step only."""
        self._model.set_requires_gradient_sync(last or self._full)
        (loss_share * self._world.size).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip by the norm over all shards, then update the own ones."""
        norm = float(_whole(clip(self._parameters, max_grad_norm), self._world.device))
        update(self._optimizer, norm, learning_rate)
        return norm

    def discard(self) -> None:
        """Drop accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def gather(self) -> State:
        """The shards of one kind of state in one message per rank; rank 0 puts the tensors together."""
        if not self._holds_a_copy_for_rank_0():
            return {}
        has_moments = bool(self._optimizer.state)
        for kind in ("param", *(MOMENTS if has_moments else ())):
            self._gather_kind(kind)
        if self._world.is_main and has_moments:
            for name, parameter in self._parameters.items():
                self._buffers.keep(state_key(name, "step"), self._optimizer.state[parameter]["step"])
        return self._buffers.state()

    def _gather_kind(self, kind: str) -> None:
        shards = [_local(self._state_of(parameter, kind)) for parameter in self._parameters.values()]
        rows = self._collector.gather(kind, lay_end_to_end(shards, self._longest))
        if not self._world.is_main:
            return
        at = [0] * self._shards
        for name, parameter in self._parameters.items():
            whole = self._buffers.room(state_key(name, kind), parameter.shape, rows.dtype, pinned=False).view(-1)
            filled = 0
            for shard, size in enumerate(_shard_sizes(parameter, self._shards)):
                whole[filled : filled + size] = rows[shard, at[shard] : at[shard] + size]
                at[shard] += size
                filled += size

    def _state_of(self, parameter: nn.Parameter, kind: str) -> Tensor:
        found: Tensor = parameter.detach() if kind == "param" else self._optimizer.state[parameter][kind]
        return found

    def _holds_a_copy_for_rank_0(self) -> bool:
        """Of several replicas only the first sends; the others have the same."""
        return self._world.rank < self._shards

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Every rank is given the whole state and takes its shards."""
        restore_moments(self._optimizer, self._parameters, state, _shard_like)

    def _mesh(self) -> DeviceMesh:
        kind, topology = self._world.device.type, self._topology
        if topology.nodes == 1 or self._shard_across_nodes:
            return init_device_mesh(kind, (topology.world_size,), mesh_dim_names=("shard",))
        shape = (topology.nodes, topology.processes_per_node)
        return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))

    def _precision(self, training: Training) -> MixedPrecisionPolicy:
        """Adapters stay fp32 on whatever the base is in; a model that is trained whole computes in ``precision``."""
        if self._full and training.precision == "bf16":
            return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return MixedPrecisionPolicy()


def decoder_layers(model: Any) -> Iterator[nn.Module]:
    """The repeated blocks, as the model's authors declare them for device maps.

    Raises:
        ConfigError: the model declares none.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    classes = set(getattr(base, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in classes]
    if not found:
        raise ConfigError(
            "spec.distributed.strategy",
            "FSDP",
            f"{type(base).__name__} does not declare its layers (_no_split_modules), which FSDP shards one by one",
            "use DDP or ZeRO3",
        )
    yield from found


class _Probe:
    """Outputs of the 4-bit linear layers of one decoder layer, to the bit, before and after it is sharded."""

    def __init__(self, layer: nn.Module, world: World) -> None:
        self._world = world
        self._expected = {name: self._output(module) for name, module in _four_bit_layers(layer)}

    def check(self, layer: nn.Module) -> None:
        """Compare; the ranks agree on the answer.

        Raises:
            SelfTestError: one rank saw a difference.
        """
        if not self._expected:
            return
        assert isinstance(layer, FSDPModule)
        layer.unshard()
        differing = [
            name
            for name, module in _four_bit_layers(layer)
            if name not in self._expected or not torch.equal(self._output(module), self._expected[name])
        ]
        layer.reshard()
        if self._world.any(bool(differing)):
            raise SelfTestError(f"4-bit weights changed when they were sharded: {', '.join(differing) or 'on a peer'}")

    @torch.no_grad()
    def _output(self, module: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(2, module.in_features, generator=generator)
        output: Tensor = module(probe.to(self._world.device, module.compute_dtype or torch.float32))
        return output.clone()


def _four_bit_layers(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in layer.named_modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "compute_dtype"):
            yield name, module


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _shard_sizes(parameter: Tensor, shards: int) -> list[int]:
    """Elements of every shard: the first dimension is cut as ``torch.chunk`` does it."""
    rows, width = parameter.shape[0], parameter.numel() // max(parameter.shape[0], 1)
    chunk = -(-rows // shards)
    return [max(0, min(chunk, rows - shard * chunk)) * width for shard in range(shards)]


def _whole(value: Tensor, device: torch.device) -> Tensor:
    """All shards in one tensor; collectives need those that were moved to the host back on the device."""
    if not isinstance(value, DTensor):
        return value
    whole: Tensor = value.to(device).full_tensor()  # type: ignore[attr-defined]
    return whole


def _shard_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """This rank's shard of a tensor that every rank holds whole; nothing is sent."""
    assert isinstance(parameter, DTensor)
    placed = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return placed.to(parameter.device).clone()  # or the whole tensor would stay in memory behind the view
