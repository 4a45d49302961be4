"""Is this folder a base model that the trainer can load, and how big is it?

Weights must be safetensors: a pickle file runs code when it is opened, and scanners for that have been
bypassed again and again. Code from the model's repository is not run for the same reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from finetune_trainer.errors import DataError
from finetune_trainer.prepare.locations import check_inside_mount
from finetune_trainer.prepare.safetensors_header import BadSafetensorsError, Tensor, read_header

FIELD = "spec.model"

WEIGHT_SUFFIX = ".safetensors"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SMALL_FILES = (
    "config*.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "_attn_implementation_internal"})
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_COMPLETE_COPY = "copy or download the model again, whole"


@dataclass(frozen=True)
class ModelCheck:
    """What the headers and the configuration say."""

    architecture: str
    parameters: int
    weight_bytes: int
    dtype: str


def needed_files(names: Iterable[str]) -> list[str]:
    """The files of a model folder that training needs, weights last; nothing else is fetched.

    Raises:
        DataError: configuration, tokenizer or safetensors weights are not among them.
    """
    top = sorted(name for name in names if "/" not in name)
    if "config.json" not in top:
        raise DataError(FIELD, "config.json", "config.json is missing", "name the folder that holds config.json")
    weights = _weight_files(top)
    if "tokenizer.json" not in top:
        raise _no_fast_tokenizer(top)
    return [name for name in top if _matches(name, _SMALL_FILES)] + weights


def check_model(folder: Path, mount_root: Path | None = None) -> ModelCheck:
    """Read configuration, tokenizer and every weight header of a model folder.

    With a mount root, symbolic links may not lead out of the volume.

    Raises:
        DataError: the trainer could not load it, or loading would run code from the folder.
    """
    if not folder.is_dir():
        raise DataError(FIELD, str(folder), f"{folder} is not a folder on the volume", "name the model's folder")
    names = needed_files(path.name for path in folder.iterdir())
    if mount_root is not None:
        for name in names:
            check_inside_mount(FIELD, folder / name, mount_root)
    architecture = check_configuration(folder)
    tensors = _read_weights(folder, names)
    return ModelCheck(
        architecture=architecture,
        parameters=sum(tensor.parameters for tensor in tensors),
        weight_bytes=sum(tensor.size for tensor in tensors),
        dtype=_dtype(tensors),
    )


def check_configuration(folder: Path) -> str:
    """Check all but the weights, so that a hub's model is refused before its gigabytes are fetched.

    Returns:
        The architecture's name.

    Raises:
        DataError: configuration or tokenizer cannot be used, or would run code.
    """
    _refuse_code(folder)
    load_tokenizer(folder)
    return _architecture(read_json(folder / "config.json"))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer, without transformers.

    Raises:
        DataError: ``tokenizer.json`` cannot be read.
    """
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise DataError(FIELD, "tokenizer.json", f"tokenizer.json cannot be read: {error}", _COMPLETE_COPY) from error


def _weight_files(names: list[str]) -> list[str]:
    """transformers' own order: one file first, then an index with shards."""
    if WEIGHTS in names:
        return [WEIGHTS]
    shards = [name for name in names if fnmatchcase(name, _SHARDS)]
    if INDEX in names:
        return [INDEX, *shards]
    if shards:
        raise DataError(FIELD, INDEX, f"the weights are in shards but {INDEX} is missing", _COMPLETE_COPY)
    for name in names:
        if _matches(name, _PICKLES):
            raise DataError(
                FIELD,
                name,
                f"{name} is a pickle file, which can run code when it is opened; the weights must be safetensors",
                "convert them once where you trust them: model.save_pretrained(folder) writes model.safetensors",
            )
    if "adapter_model.safetensors" in names:
        raise DataError(
            FIELD,
            "adapter_model.safetensors",
            "the folder holds an adapter; spec.model must name a base model",
            "merge the adapter with merge_and_unload() and save the model, or name its base model",
        )
    raise DataError(FIELD, WEIGHTS, f"neither {WEIGHTS} nor {INDEX} is there", _COMPLETE_COPY)


def _no_fast_tokenizer(names: list[str]) -> DataError:
    if "tokenizer.model" in names:
        return DataError(
            FIELD,
            "tokenizer.model",
            "the folder has only tokenizer.model; tokenizer.json is needed to count tokens",
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json",
        )
    return DataError(
        FIELD,
        "tokenizer.json",
        "tokenizer.json is missing",
        "save the tokenizer beside the model: tokenizer.save_pretrained(folder)",
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of the model's folder.

    Raises:
        DataError: it is something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(FIELD, file.name, f"{file.name} is not JSON: {error}", _COMPLETE_COPY) from error
    if not isinstance(value, dict):
        raise DataError(FIELD, file.name, f"{file.name} must hold a JSON object", _COMPLETE_COPY)
    return value


def _refuse_code(folder: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        for key in _keys(read_json(folder / name)):
            if key in _CODE_KEYS:
                raise DataError(
                    FIELD,
                    f"{name}: {key}",
                    f"{name} has {key}, which loads code from the model's folder",
                    f"use a model that transformers supports by itself; if yours is one, remove {key}",
                )


def _keys(value: Any) -> Iterator[str]:
    """Every key at any depth."""
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _architecture(config: dict[str, Any]) -> str:
    for key in ("model_type", "architectures"):
        if not config.get(key):
            raise DataError(FIELD, "config.json", f"config.json has no {key}", "use the config.json of save_pretrained")
    if "quantization_config" in config:
        raise DataError(
            FIELD,
            "config.json: quantization_config",
            "the weights are quantised already",
            "name the original model in bfloat16, float16 or float32",
        )
    architectures = config["architectures"]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise DataError(
            FIELD,
            f"architectures: {architectures!r}",
            "architectures in config.json must be a list of names",
            "use the config.json of save_pretrained",
        )
    return architectures[0]


def _read_weights(folder: Path, names: list[str]) -> list[Tensor]:
    if INDEX in names:
        return _read_shards(folder)
    return _read_file(folder, WEIGHTS)


def _read_shards(folder: Path) -> list[Tensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(FIELD, INDEX, f"{INDEX} has no weight_map", _COMPLETE_COPY)
    tensors: list[Tensor] = []
    for shard in sorted({str(name) for name in weight_map.values()}):
        found = _read_file(folder, shard)
        tensors += found
        wanted = {tensor for tensor, file in weight_map.items() if file == shard}
        if missing := wanted - {tensor.name for tensor in found}:
            raise DataError(FIELD, shard, f"{shard} lacks {min(missing)}, which {INDEX} says it holds", _COMPLETE_COPY)
    return tensors


def _read_file(folder: Path, name: str) -> list[Tensor]:
    if "/" in name or not (folder / name).is_file():
        raise DataError(FIELD, name, f"{name} is named by {INDEX} but is missing", _COMPLETE_COPY)
    try:
        tensors = read_header(folder / name)
    except BadSafetensorsError as error:
        raise DataError(FIELD, name, f"{name} {error}", _COMPLETE_COPY) from error
    if not tensors:
        raise DataError(FIELD, name, f"{name} holds no tensor", _COMPLETE_COPY)
    return tensors


def _dtype(tensors: list[Tensor]) -> str:
    """The type of most bytes, in torch's spelling."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size
    most = sizes.most_common(1)[0][0]
    return _DTYPES.get(most, most.lower())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
