"""The layout of a checkpoint's state, written by hand and read by the library."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from finetune_trainer.state_file import StateFile

pytestmark = pytest.mark.unit

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of any dtype and shape, scalars and empty ones among them."""
    names = draw(
        st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=5).filter(
            lambda all: "__metadata__" not in all
        )
    )
    return {
        name: torch.randint(0, 200, draw(st.lists(st.integers(0, 4), max_size=3))).to(draw(st.sampled_from(DTYPES)))
        for name in names
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(states(), min_size=1, max_size=3))
def test_the_library_reads_what_was_laid_out(history: list[dict[str, torch.Tensor]]) -> None:
    """Also when the buffer was used before for a larger or a smaller state."""
    file = StateFile()
    for state in history:
        read = load(bytes(file.lay_out(state)))

        assert read.keys() == state.keys()
        for name, tensor in state.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)
