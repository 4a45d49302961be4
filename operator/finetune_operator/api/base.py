"""What all API models share: camelCase on the wire, frozen, and descriptions that serve as the reference.

``kubectl explain`` shows nothing but the description, so unit, default and example are written into it by
:func:`doc`, in the same order everywhere.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """Fields the schema does not know were pruned by the API server; what is left over is ignored here too."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, protected_namespaces=()
    )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able camelCase, without unset optional fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Rule(dict[str, str]):
    """One CEL rule (``x-kubernetes-validations``) with its message."""

    def __init__(self, rule: str, message: str, *, expression: str | None = None) -> None:
        super().__init__(rule=rule, message=message)
        if expression:
            self["messageExpression"] = expression


def rules(*items: Rule) -> dict[str, Any]:
    """``json_schema_extra`` of a model or field with CEL rules."""
    return {"x-kubernetes-validations": [dict(item) for item in items]}


def doc(
    text: str,
    *,
    example: object,
    default: Any = ...,
    automatic: str = "",
    unit: str = "",
    extra: dict[str, Any] | None = None,
    **bounds: Any,
) -> Any:
    """A documented field.

    Args:
        text: what it means, one or two sentences.
        example: shown in the description; strings are shown bare.
        default: the value when omitted; left out, the field is required.
        automatic: for a default of None: what happens then, in words.
        unit: e.g. ``seconds``.
        extra: further schema keywords, e.g. ``x-kubernetes-list-type``.
        bounds: pydantic's ``ge``, ``le``, ``gt``, ``lt``, ``max_length``, ``pattern``.
    """
    parts = [text]
    if unit:
        parts.append(f"Unit: {unit}.")
    if default is ...:
        parts.append("Required.")
    elif default is None or isinstance(default, BaseModel | list | dict):
        parts.append(f"Default: {automatic or 'none'}.")
    else:
        parts.append(f"Default: {'empty' if default == '' else _show(default)}.")
    parts.append(f"Example: {_show(example)}.")
    return Field(default=default, description=" ".join(parts), json_schema_extra=extra, **bounds)


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    return str(value)
