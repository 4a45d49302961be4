"""A row of the dataset as text and as labelled tokens: what the trainer reads and what prepare counts.

Only completions count: labels are -100 on the prompt. A row is cut into segments (prompt, answer, prompt,
answer …) that are tokenized one by one, so the tokens of a prompt are those that generation will see, and no
token straddles the border. The last answer ends with EOS inside the loss, or the model never learns to stop.
Torch-free: both sides bring their own tokenizer, so what prepare counts is what the trainer cuts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

IGNORE = -100
"""Label of a token that does not count, as in transformers."""

Segment = tuple[str, bool]
"""Text, and whether the model is judged on it."""


@dataclass(frozen=True)
class Rendering:
    """What of a model's tokenizer decides how a row reads."""

    chat: Callable[[list[dict[str, Any]], bool], str]
    """The chat template: messages, and whether the beginning of an answer is added, to text."""
    bos: str
    """What plain text begins with; mostly nothing. Chat templates write their own."""
    eos_token_id: int | None


@dataclass(frozen=True)
class Tokens:
    """One row."""

    ids: list[int]
    labels: list[int]

    @property
    def label_count(self) -> int:
        """Tokens the model is judged on; the first of a row has no prediction."""
        return sum(label != IGNORE for label in self.labels[1:])

    def cut(self, max_length: int) -> Tokens:
        """The beginning."""
        return Tokens(self.ids[:max_length], self.labels[:max_length])


def split_row(row: dict[str, Any], rendering: Rendering) -> Iterator[Segment]:
    """The segments of a row: messages, a conversational prompt and completion, or plain text.

    Raises:
        ValueError: it is none of these, or the template leaves an answer out.
        Exception: whatever the author of the chat template chose to raise.
    """
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(row.get("messages"), list):
        yield from _split_messages(row["messages"], 0, rendering)
    elif isinstance(prompt, list) and isinstance(completion, list):
        yield from _split_messages(prompt + completion, len(prompt), rendering)
    elif isinstance(prompt, str) and isinstance(completion, str):
        yield rendering.bos + prompt, False
        yield completion, True
    else:
        raise ValueError(f"it must have messages, or prompt and completion: {json.dumps(row)[:80]}")


def _split_messages(messages: list[dict[str, Any]], first_judged: int, rendering: Rendering) -> Iterator[Segment]:
    """Alternate what the user sees and what the assistant wrote.

    Rendering prefixes needs no generation markers in the template. A template that rewrites earlier turns
    (some drop old reasoning) breaks the prefix property; then only the last answer is judged.
    """
    full = rendering.chat(messages, False)
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at >= first_judged]
    borders = [_borders(messages, at, rendering) for at in answers]
    if not all(full.startswith(end) and end.startswith(start) for start, end in borders):
        last = full.rfind(str(messages[answers[-1]]["content"]).strip())
        if last < 0:
            raise ValueError("the last answer is not in the text as it was written")
        yield full[:last], False
        yield full[last:], True
        return
    done = 0
    for start, end in borders:
        yield full[done : len(start)], False
        yield full[len(start) : len(end)], True
        done = len(end)
    yield full[done:], False


def _borders(messages: list[dict[str, Any]], at: int, rendering: Rendering) -> tuple[str, str]:
    before = rendering.chat(messages[:at], True) if at else ""
    return before, rendering.chat(messages[: at + 1], False)


def label_segments(segments: Sequence[Segment], parts: Sequence[Sequence[int]], eos_token_id: int | None) -> Tokens:
    """A whole row from its segments and their tokens; the last answer ends with EOS where the model has one."""
    ids: list[int] = []
    labels: list[int] = []
    last_answer = max((at for at, (_, judged) in enumerate(segments) if judged), default=-1)
    for at, ((_, judged), tokens) in enumerate(zip(segments, parts, strict=True)):
        part = list(tokens)
        if at == last_answer and eos_token_id is not None and eos_token_id not in part:
            part.append(eos_token_id)
        ids += part
        labels += part if judged else [IGNORE] * len(part)
    return Tokens(ids, labels)
