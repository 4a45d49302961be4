"""The fine-tuning methods of a FineTuneJob, with the names of the libraries that implement them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from finetune_operator.api.base import ApiModel, doc
from finetune_trainer.config import MethodName

METHODS: tuple[MethodName, ...] = tuple(sorted(get_args(MethodName)))

ModuleName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]


class Lora(ApiModel):
    """Low-rank adaptation, with the names of peft's LoraConfig."""

    r: int = doc("Rank of the update matrices.", default=16, example=16, ge=1, le=1024)
    lora_alpha: float | None = doc(
        "Scale of the update: it is multiplied by loraAlpha / r.",
        default=None,
        automatic="2 x r",
        example=32,
        gt=0,
        le=65536,
    )
    lora_dropout: float = doc(
        "Dropout probability in front of the update matrices.", default=0.0, example=0.05, ge=0, lt=1
    )
    target_modules: list[ModuleName] = doc(
        "Names of the modules to adapt, or all-linear for every linear layer but the output head.",
        default=["all-linear"],
        automatic="[all-linear]",
        example=["q_proj", "v_proj"],
        min_length=1,
        max_length=64,
    )

    @property
    def resolved_alpha(self) -> float:
        """``loraAlpha``, or its default."""
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.r


class Qlora(Lora):
    """Low-rank adaptation of a base model in 4 bits, with the names of transformers' BitsAndBytesConfig."""

    quant_type: Literal["nf4", "fp4"] = doc("Number format of the 4-bit weights.", default="nf4", example="nf4")
    double_quant: bool = doc(
        "Quantise the constants of the quantisation as well: 4.1 instead of 4.5 bits per parameter.",
        default=True,
        example=True,
    )
    quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] | None = doc(
        "Number format in which the packed weights lie in memory; it changes no result.",
        default=None,
        automatic="the precision with FSDP, which shards no other; else uint8",
        example="bfloat16",
    )


class Full(ApiModel):
    """Every parameter of the model is trained; there is nothing to set."""


class Method(ApiModel):
    """How the model is fine-tuned: exactly one method."""

    lora: Lora | None = doc("Low-rank adaptation (LoRA).", default=None, example={"r": 16})
    qlora: Qlora | None = doc(
        "LoRA on a base model whose weights are held in 4 bits (QLoRA).", default=None, example={"r": 16}
    )
    full: Full | None = doc(
        "Every parameter is trained, on one node. It needs about 16 bytes of memory per parameter, and mostly a "
        "learningRate of 1.0e-5 to 5.0e-5.",
        default=None,
        example={},
    )

    @property
    def chosen(self) -> list[MethodName]:
        """The methods that are set; the CRD lets exactly one through."""
        return [name for name in METHODS if getattr(self, name) is not None]

    @property
    def adapter(self) -> Lora | None:
        """Settings of the low-rank matrices; None when every parameter is trained."""
        return self.lora or self.qlora
