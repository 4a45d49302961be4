"""A tiny model, a tokenizer with a chat template, a dataset, and makers of configurations for them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer.config import TrainConfig
from finetune_trainer.fingerprint import fingerprint_model
from finetune_trainer.layout import packs_name
from finetune_trainer.messages import Line, TrainTermination, parse_line
from finetune_trainer.prepare.packing import pack_rows
from trainer.zygote import ForkedProcess, Zygote

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
ROWS = 10
EVAL_ROWS = 3
PACKED_LENGTH = 128
"""maxLength of packed data: two or three rows."""
DIGEST = "a" * 64
PYTHON_PATH = str(Path(__file__).parents[2] / "trainer_image")


def make_model(folder: Path) -> None:
    """A Llama of 0.1 M parameters with random weights, and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: at for at, symbol in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_rows(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Conversations of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus {number}?"},
                {"role": "assistant", "content": f"It is {2 * number}" + "!" * (number % 7)},
            ]
        }
        for number in range(offset, offset + count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines; returns the URI."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.as_uri()


@dataclass
class Assets:
    """What all tests share, read-only."""

    model: Path
    train_uri: str
    eval_uri: str
    packs_uri: str
    packs: int


def make_assets(folder: Path) -> Assets:
    """Model, training rows, held-out rows, and a packing of the training rows."""
    make_model(folder / "model")
    rows = make_rows(ROWS)
    train_uri = write_rows(folder / "train.jsonl", rows)
    lengths = [sum(len(str(part["content"])) + 24 for part in row["messages"]) for row in rows]  # no less than in fact
    packs = pack_rows(lengths, PACKED_LENGTH)
    text = json.dumps(packs).encode()
    packs_path = folder / packs_name(hashlib.sha256(text).hexdigest())
    packs_path.write_bytes(text)
    return Assets(
        model=folder / "model",
        train_uri=train_uri,
        eval_uri=write_rows(folder / "eval.jsonl", make_rows(EVAL_ROWS, offset=100)),
        packs_uri=packs_path.as_uri(),
        packs=len(packs),
    )


def free_port() -> int:
    """A TCP port that is free at this moment, as is the one above it (the launchers' heartbeat)."""
    while True:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with suppress(OSError, OverflowError):
                above.bind(("127.0.0.1", port + 1))
                return port


def a_config(assets: Assets, folder: Path, *, ranks: int = 1, **training: Any) -> dict[str, Any]:
    """A TrainConfig as JSON keys; ``training`` overrides its section in snake case."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "learning_rate": 0.02,
        "warmup_steps": 1,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "precision": "fp32",
        "deterministic": True,
    } | training
    per_step = settings["per_device_train_batch_size"] * ranks
    settings.setdefault("gradient_accumulation_steps", -(-settings["global_batch_size"] // per_step))
    raw = {
        "job": {"namespace": "team", "name": "tiny"},
        "run": {"digest": DIGEST},
        "attempt": 1,
        "topology": {"nodes": 1, "processes_per_node": ranks, "device": "cpu", "master_port": free_port()},
        "model": {
            "uri": assets.model.as_uri(),
            "source_uri": "hf://acme/tiny",
            "revision": "c0ffee",
            "digest": fingerprint_model(assets.model),
        },
        "data": {
            "train_uri": assets.train_uri,
            "eval_uri": assets.eval_uri,
            "train_rows": ROWS,
            "eval_rows": EVAL_ROWS,
            "digest": "b" * 64,
            "max_length": 64,
        },
        "method": {"lora": {"r": 4, "lora_alpha": 8, "target_modules": ["all-linear"]}},
        "training": settings,
        "checkpoint": {"uri": (folder / "checkpoints").as_uri(), "interval_seconds": 0},
        "output": {"uri": (folder / "output").as_uri()},
        "evaluation": {"prompts": ["What is 2 plus 2?"], "max_new_tokens": 4},
        "phase_limits": {"rendezvous": 60},
    }
    return TrainConfig.model_validate(raw).model_dump(mode="json", by_alias=True, exclude_none=True)


_STUB = """
import importlib.util, os, pathlib, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ.get("STUB_SIGTERM_AT") and "launch" in sys.orig_argv:
            os.kill(os.getpid(), signal.SIGTERM)
        if name == "finetune_trainer.recipe":
            return importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name("recipe_stub.py"))

sys.meta_path.insert(0, Finder)
"""
_STUB_RECIPE = """
import ctypes, os, re, time
from types import SimpleNamespace

class Recipe:
    def __init__(self, config, stop, watchdog, handoff, out):
        self.config, self.stop, self.watchdog, self.handoff = config, stop, watchdog, handoff
        self.world = SimpleNamespace(rank=int(os.environ["RANK"]), close=lambda: None)
        self.step, self.checkpoint = 0, None

    def run(self):
"""


def stub_recipe(folder: Path, body: str) -> dict[str, str]:
    """Environment of a launcher whose workers run ``body`` as ``Recipe.run``: without torch, so in a moment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_STUB, encoding="utf-8")
    (folder / "recipe_stub.py").write_text(_STUB_RECIPE + textwrap.indent(textwrap.dedent(body), " " * 8))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{PYTHON_PATH}"}


@dataclass
class Ending:
    """How a launcher ended, with everything that it said."""

    code: int
    lines: list[Line]
    termination: TrainTermination
    stderr: str
    output: Path
    stray: list[str] = field(default_factory=list)
    """Lines on stdout that are not ours."""

    def published(self, name: str) -> str:
        """A published file's text."""
        return (self.output / name).read_text(encoding="utf-8")

    @property
    def losses(self) -> list[float]:
        """Loss of every step of the run, as published."""
        return [json.loads(line)["loss"] for line in self.published("training_log.jsonl").splitlines()]


class Launch:
    """One pod: a real launcher with real workers; ``stub_recipe`` replaces what these do."""

    def __init__(
        self,
        config: dict[str, Any] | str,
        folder: Path,
        *,
        zygote: Zygote | None = None,
        wrap: Sequence[str] = (),
        **env: str,
    ) -> None:
        """With a zygote the launcher is forked from it, which is quick.

        Without one, ``wrap`` is a command that prepares something and then becomes the one that follows it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._config = config if isinstance(config, dict) else {}
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text, encoding="utf-8")
        out, err = folder / "stdout", folder / "stderr"
        out.write_bytes(b"")
        err.write_bytes(b"")
        environment = (
            os.environ
            | {
                "PYTHONPATH": PYTHON_PATH,
                "FINETUNE_CONFIG": str(folder / "config.json"),
                "FINETUNE_TERMINATION_LOG": str(folder / "termination"),
            }
            | env
        )
        self.process: subprocess.Popen[bytes] | ForkedProcess
        if zygote is not None:
            self.process = zygote.launch(dict(environment), out, err)
            return
        with out.open("w") as stdout, err.open("w") as stderr:
            self.process = subprocess.Popen(
                [*wrap, sys.executable, "-m", "finetune_trainer", "launch"],
                stdout=stdout,
                stderr=stderr,
                env=environment,
            )

    @property
    def stderr(self) -> str:
        """The log so far."""
        return (self._folder / "stderr").read_text(encoding="utf-8")

    def workers(self) -> list[int]:
        """Process ids of the workers that are alive."""
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """Until something has happened; fails when the launcher ends first."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, (self._folder / "stderr").read_text()[-3000:]
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.02)

    def kill(self, pid: int) -> None:
        """As the kernel does when memory runs out."""
        assert pid in self.workers()
        os.kill(pid, signal.SIGKILL)

    def terminate(self) -> None:
        """As the kubelet does."""
        self.process.send_signal(signal.SIGTERM)

    def end(self, seconds: float = 240) -> Ending:
        """Wait for the end and read everything."""
        code = self.process.wait(seconds)
        out = (self._folder / "stdout").read_text(encoding="utf-8").splitlines()
        parsed = [(line, parse_line(line)) for line in out]
        raw = (self._folder / "termination").read_text(encoding="utf-8")
        assert len(raw.encode()) <= 4096
        uri = self._config.get("output", {}).get("uri", "file:///nowhere")
        return Ending(
            code=code,
            lines=[line for _, line in parsed if line is not None],
            stray=[text for text, line in parsed if line is None],
            termination=TrainTermination.model_validate_json(raw),
            stderr=(self._folder / "stderr").read_text(encoding="utf-8"),
            output=Path(uri.removeprefix("file://")),
        )
