"""Makers of small real models, datasets and configurations, so that a test shows only what matters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from finetune_trainer.config import JobIdentity, PrepareConfig, RunIdentity

RUN = "a" * 64
CONFIG: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
TENSORS = {"embed": ("BF16", [10, 4]), "norm": ("F32", [4])}
_BYTES = {"BF16": 2, "F32": 4}

MESSAGES = [{"role": "user", "content": "Ahoy <you>"}, {"role": "assistant", "content": "Log: é"}]
CHATML = (
    "{% for message in messages %}\n"
    "    {%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}"
    "{% endgeneration %}\n"
    "    {%- else %}{{ bos_token }}{{ message['role'] }}: {{ message | tojson }}\n"
    "    {%- endif %}\n"
    "    {%- if loop.last %}{% break %}{% endif %}\n"
    "{% endfor %}\n"
    "{% if tools %}tools{% endif %}{{ strftime_now('%%') }}"
)
"""A template that uses much of what templates may use."""
PLAIN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
"""A template that adds two words to each message."""


def safetensors(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A whole safetensors file of zeros."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def a_model(folder: Path, *, chat_template: bool = True, config: dict[str, Any] | None = None) -> Path:
    """A model folder that passes every check; its tokenizer makes a token of each word."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "model.safetensors").write_bytes(safetensors(TENSORS))
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": PLAIN} if chat_template else {}))
    return folder


def in_shards(folder: Path) -> Path:
    """Replace the weights of a model by two shards and an index."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, (name, tensor) in enumerate(TENSORS.items(), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        (folder / shard).write_bytes(safetensors({name: tensor}))
        weight_map[name] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def chat(question: str, answer: str = "yes indeed") -> dict[str, Any]:
    """A row in the messages format."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(file: Path, rows: Iterable[object]) -> Path:
    """A JSON Lines file; strings are written as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


class Workplace:
    """The volumes of one job below a temporary mount root, and the configuration that names them."""

    def __init__(self, root: Path) -> None:
        self.mount_root = root / "mnt"
        self.model = self.mount_root / "model" / "base"
        self.dataset = self.mount_root / "dataset" / "rows.jsonl"
        self.cache = self.mount_root / "storage" / "cache"
        self.output = self.mount_root / "storage" / "output"
        self.termination = root / "termination-log"
        self.mount_root.mkdir(parents=True)

    def config(self, **changes: Any) -> PrepareConfig:
        """A job that holds out a tenth, unless changed."""
        values: dict[str, Any] = {
            "job": JobIdentity(namespace="team", name="job", uid="1"),
            "run": RunIdentity(digest=RUN),
            "model_uri": self.model.as_uri(),
            "dataset_uri": self.dataset.as_uri(),
            "eval_fraction": 0.1,
            "max_length": 64,
            "cache_uri": self.cache.as_uri(),
            "output_uri": self.output.as_uri(),
        }
        return PrepareConfig(**(values | changes))
