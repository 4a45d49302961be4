"""The published result: peft's own layout plus its lineage, complete when ``manifest.json`` is there.

adapter_config.json, adapter_model.safetensors   ``PeftModel.from_pretrained(base, folder)`` works
config.json, model.safetensors, tokenizer files  instead, where the whole model was trained: any loader works
README.md                                        a model card for people
training_log.jsonl                               loss and learning rate of every step, across all attempts
manifest.json                                    written last, by conditional create: what it is and came from
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_trainer.config import TrainConfig
from finetune_trainer.messages import PublishedResult, Sample
from finetune_trainer.result import (
    ADAPTER_FILE,
    MODEL_INDEX_FILE,
    AdapterManifest,
    BaseModelRef,
    PublishedFile,
    publish,
)
from finetune_trainer.schedule import learning_rate
from finetune_trainer.store import Store, sha256

_SHARD_BYTES = 2 * 1024**3


def publish_adapter(
    store: Store,
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    parameters: Mapping[str, Any],
    losses: list[float],
    metrics: dict[str, float],
    samples: list[Sample],
    check_fence: Callable[[], None],
) -> PublishedResult:
    """Render the adapter and publish it; see :func:`finetune_trainer.result.publish`.

    ``parameters`` are the trainable ones, complete, by their names in the peft model.
    """
    render = _render_model if config.method.full is not None else _render_adapter
    files = render(config, model, tokenizer, parameters)
    files["training_log.jsonl"] = training_log(config, losses).encode()
    files["README.md"] = model_card(config, metrics, samples).encode()
    manifest = AdapterManifest(
        job=config.job,
        run=config.run,
        attempt=config.attempt,
        base_model=BaseModelRef(
            source_uri=config.model.source_uri, revision=config.model.revision, digest=config.model.digest
        ),
        data_digest=config.data.digest,
        method=config.method,
        metrics=metrics,
        samples=samples,
        files={name: PublishedFile(sha256=sha256(data), bytes=len(data)) for name, data in files.items()},
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    return publish(store, manifest, files, check_fence)


def training_log(config: TrainConfig, losses: list[float]) -> str:
    """JSON lines with the loss (full precision) and the learning rate of every step, from 1 on."""
    total = len(losses)
    rows = (
        {"step": step, "loss": loss, "learningRate": learning_rate(config.training, step - 1, total)}
        for step, loss in enumerate(losses, start=1)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def model_card(config: TrainConfig, metrics: dict[str, float], samples: list[Sample]) -> str:
    """A short README in the Hub's format."""
    base, revision = hub_name(config.model.source_uri), config.model.revision
    adapter = config.method.adapter
    what = f"A {config.method.name.upper()} adapter of" if adapter else "A full fine-tuning of"
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags: [finetune-operator]",
        "---",
        "",
        f"# {config.job.name}",
        "",
        f"{what} `{base}`{f' at revision `{revision}`' if revision else ''}, trained by"
        f" FineTuneJob `{config.job.namespace}/{config.job.name}`, run `{config.run.digest[:12]}`, on data"
        f" `{config.data.digest[:12]}` ({config.data.train_rows} rows).",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {metric} | {value:.6g} |" for metric, value in metrics.items()),
        "",
        *([f"Settings of the method: `{adapter.model_dump_json(by_alias=True)}`.", ""] if adapter else []),
    ]
    for sample in samples:
        lines += [f"**Prompt:** {sample.prompt}", "", "Before:", *_quote(sample.before), "", "After:"]
        lines += [*_quote(sample.after), ""]
    return "\n".join(lines)


def hub_name(source_uri: str) -> str:
    """``org/name`` of an ``hf://`` location, else the location as it is."""
    return source_uri.removeprefix("hf://").partition("@")[0] if source_uri.startswith("hf://") else source_uri


def _quote(text: str) -> list[str]:
    return [f"> {line}" for line in text.splitlines()] or [">"]


def _render_adapter(
    config: TrainConfig, model: Any, _tokenizer: Any, parameters: Mapping[str, Any]
) -> dict[str, bytes]:
    """What ``save_pretrained`` writes, pointing at the model the user named, not at a path of this pod."""
    settings = model.peft_config["default"]
    settings.base_model_name_or_path = hub_name(config.model.source_uri)
    settings.revision = config.model.revision or None
    with tempfile.TemporaryDirectory() as draft:
        # Embeddings: peft would ask the Hub whether they changed; adapters on them are saved without that.
        model.save_pretrained(draft, state_dict=dict(parameters), save_embedding_layers=False)
        return {name: (Path(draft) / name).read_bytes() for name in ("adapter_config.json", ADAPTER_FILE)}


def _render_model(config: TrainConfig, model: Any, tokenizer: Any, parameters: Mapping[str, Any]) -> dict[str, bytes]:
    """Configuration, tokenizer and all weights in the precision they were trained in.

    Weights that the model ties to others are left out, as ``save_pretrained`` does.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save

    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    with tempfile.TemporaryDirectory() as draft:
        model.config.save_pretrained(draft)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        settings = Path(draft) / "config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"dtype": str(dtype).removeprefix("torch.")}))
        files = {path.name: path.read_bytes() for path in Path(draft).iterdir() if path.is_file()}
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in parameters.items()}
    # Object stores take at most 5 GB in one conditional request.
    plan = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size=_SHARD_BYTES
    )
    for file, names in plan.filename_to_tensors.items():
        files[file] = save({name: weights[name] for name in names}, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        files[MODEL_INDEX_FILE] = json.dumps(index, indent=2).encode()
    return files
