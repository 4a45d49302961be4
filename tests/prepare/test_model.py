"""A folder that the trainer could not load, or that would run code, is refused with the file's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_trainer.errors import DataError
from finetune_trainer.prepare.model import check_model, needed_files
from prepare.makers import CONFIG, a_model, in_shards, safetensors

pytestmark = pytest.mark.unit


def test_a_good_model_is_measured_by_its_headers(tmp_path: Path) -> None:
    """Parameters and bytes over all tensors, dtype of most bytes."""
    check = check_model(a_model(tmp_path / "model"))
    assert check.architecture == "LlamaForCausalLM"
    assert (check.parameters, check.weight_bytes, check.dtype) == (44, 96, "bfloat16")


def test_shards_are_added_up(tmp_path: Path) -> None:
    """Big models come in several files and an index."""
    check = check_model(in_shards(a_model(tmp_path / "model")))
    assert (check.parameters, check.weight_bytes) == (44, 96)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _bytes_to_spare(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as handle:
        handle.write(b"more")


def _git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n")


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def _shard_missing(folder: Path) -> None:
    (in_shards(folder) / "model-00002-of-00002.safetensors").unlink()


def _index_missing(folder: Path) -> None:
    (in_shards(folder) / "model.safetensors.index.json").unlink()


def _shard_without_its_tensor(folder: Path) -> None:
    (in_shards(folder) / "model-00002-of-00002.safetensors").write_bytes(safetensors({"x": ("F32", [1])}))


def _shard_outside(folder: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}})
    (in_shards(folder) / "model.safetensors.index.json").write_text(index)


def _old_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


BAD_MODELS = {
    "no-config": (_remove("config.json"), "config.json", "config.json is missing", "config.json"),
    "config-not-json": (_write("config.json", "{"), "config.json", "is not JSON", "whole"),
    "config-a-list": (_write("config.json", "[]"), "config.json", "must hold a JSON object", "whole"),
    "no-model-type": (_write("config.json", "{}"), "config.json", "no model_type", "save_pretrained"),
    "no-architectures": (
        _write("config.json", '{"model_type": "llama"}'),
        "config.json",
        "no architectures",
        "save_pretrained",
    ),
    "remote-code": (
        _write("config.json", json.dumps(CONFIG | {"auto_map": {"AutoModel": "modeling.Evil"}})),
        "config.json: auto_map",
        "loads code",
        "remove auto_map",
    ),
    "remote-code-deep-down": (
        _write("config.json", json.dumps(CONFIG | {"text_config": [{"auto_map": {}}]})),
        "config.json: auto_map",
        "loads code",
        "remove auto_map",
    ),
    "remote-tokenizer-code": (
        _write("tokenizer_config.json", '{"auto_map": {}}'),
        "tokenizer_config.json: auto_map",
        "loads code",
        "remove auto_map",
    ),
    "kernel-code": (
        _write("config.json", json.dumps(CONFIG | {"_attn_implementation_internal": "evil/kernel"})),
        "config.json: _attn_implementation_internal",
        "loads code",
        "remove",
    ),
    "quantised": (
        _write("config.json", json.dumps(CONFIG | {"quantization_config": {}})),
        "config.json: quantization_config",
        "quantised already",
        "original model",
    ),
    "pickle-only": (_pickle_only, "pytorch_model.bin", "can run code", "model.save_pretrained"),
    "no-weights": (_remove("model.safetensors"), "model.safetensors", "neither", "whole"),
    "adapter": (_adapter, "adapter_model.safetensors", "holds an adapter", "merge_and_unload"),
    "cut-short": (_cut_short, "model.safetensors", "is cut short: ", "whole"),
    "bytes-to-spare": (_bytes_to_spare, "model.safetensors", "is too long: ", "whole"),
    "lfs-pointer": (_git_lfs_pointer, "model.safetensors", "no readable header", "whole"),
    "empty-weights": (_write("model.safetensors", ""), "model.safetensors", "0 bytes", "whole"),
    "shard-missing": (_shard_missing, "model-00002-of-00002.safetensors", "is missing", "whole"),
    "index-missing": (_index_missing, "model.safetensors.index.json", "is missing", "whole"),
    "shard-lacks-tensor": (
        _shard_without_its_tensor,
        "model-00002-of-00002.safetensors",
        "lacks norm",
        "whole",
    ),
    "shard-outside": (_shard_outside, "../../secret.safetensors", "is missing", "whole"),
    "no-tokenizer": (
        _remove("tokenizer.json"),
        "tokenizer.json",
        "is missing",
        "tokenizer.save_pretrained(folder)",
    ),
    "old-tokenizer": (_old_tokenizer, "tokenizer.model", "only tokenizer.model", "AutoTokenizer"),
    "tokenizer-unreadable": (_write("tokenizer.json", "{}"), "tokenizer.json", "cannot be read", "whole"),
}


@pytest.mark.parametrize(("change", "value", "problem", "remedy"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_cannot_be_used_is_refused(
    tmp_path: Path, change: Callable[[Path], None], value: str, problem: str, remedy: str
) -> None:
    """Each fault names spec.model, the file, what is wrong and what helps."""
    folder = a_model(tmp_path / "model")
    change(folder)
    with pytest.raises(DataError) as caught:
        check_model(folder)
    assert (caught.value.fault.field, caught.value.fault.value) == ("spec.model", value)
    assert problem in str(caught.value)
    assert remedy in caught.value.fault.remedy


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(DataError, match="is not a folder"):
        check_model(tmp_path / "nothing")


def test_a_weight_file_that_links_out_of_the_volume_is_refused(tmp_path: Path) -> None:
    """Also for a link that is nested in a good folder."""
    folder = a_model(tmp_path / "mnt" / "model" / "base")
    (tmp_path / "elsewhere").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of its volume"):
        check_model(folder, tmp_path / "mnt")


def test_only_what_training_needs_is_fetched() -> None:
    """Repositories carry the same weights in other formats, often many times the size."""
    names = [
        "README.md",
        "config.json",
        "consolidated.safetensors",
        "generation_config.json",
        "model.safetensors",
        "model.onnx",
        "onnx/config.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert needed_files(names) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ]
