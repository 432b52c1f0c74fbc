"""A pydantic base whose unknown keys are errors that name the key and its nearest neighbour.

Recipes are written by hand; a misspelt key that is silently ignored costs a training run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


def unknown_key(key: str, known: Iterable[str], owner: str) -> str:
    """The sentence that reports an unknown key, with the nearest known one or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
    return f"unknown key {key!r} in {owner}; {hint}"


def explain(error: ValidationError) -> str:
    """A validation error as one line: dotted key and what is wrong with it, several parted by semicolons."""
    messages = []
    for item in error.errors():
        place = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        messages.append(f"{place}: {message}" if place else message)
    return "; ".join(messages)


class Strict(BaseModel):
    """Frozen, every key known; a subclass may accept and drop some through `ignores`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def ignores(cls, key: str) -> bool:
        """Whether an unknown key is accepted and dropped; none is, unless a subclass says so."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = set(cls.model_fields) | {field.alias for field in cls.model_fields.values() if field.alias}
        for key in values:
            if key not in known and not cls.ignores(str(key)):
                raise ValueError(unknown_key(str(key), known, cls.__name__))
        return {key: value for key, value in values.items() if key in known}
