"""How an option is declared: as metadata of a pydantic field, beside its type and its default.

For example, ``seed: Annotated[int, Option("Seed of splits and samples.")] = 0``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Option:
    """What a user reads of an option: its help, and how it is written.

    ``example``: a value to show where the default is none. ``name``: on the command line and in
    lrfc.toml, with _ in the place of -, where it differs from the field's. ``commas``: several
    values stand in one text, separated by commas, where other options are repeated. ``before``:
    the option that it precedes for the user, where that is not the order of the fields, which is
    that of a manifest.
    """

    help: str
    example: str | int | bool | list[str] | None = None
    name: str | None = None
    commas: bool = False
    before: str | None = None


def option(field: FieldInfo) -> Option:
    """The declaration of a field."""
    declared = [each for each in field.metadata if isinstance(each, Option)]
    if len(declared) != 1:
        raise TypeError(f"a field is declared by one Option, not {len(declared)}: {field!r}")
    return declared[0]


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the names of their options, in the order for the user."""
    named = {option(field).name or name: field for name, field in model.model_fields.items()}
    places = {name: float(place) for place, name in enumerate(named)}
    for name, field in named.items():
        following = option(field).before
        if following is not None:
            places[name] = places[following] - 0.5
    return {name: named[name] for name in sorted(named, key=places.__getitem__)}


def renamed(model: type[BaseModel]) -> dict[str, str]:
    """Option to field, for the fields whose options have another name."""
    names = {option(field).name: name for name, field in model.model_fields.items()}
    return {name: field for name, field in names.items() if name is not None}
