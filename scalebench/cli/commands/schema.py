"""The command `schema`: the JSON Schema of a study file, for editors that complete and check TOML, and of outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import AfterValidator

from scalebench.families import FAMILIES
from scalebench.laws import LAWS
from scalebench.study import Section, sampling, study_class
from scalebench.study.sections import parts_of
from scalebench.workloads import WORKLOADS

NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
RANGES = [
    {"type": "object", "properties": {kind: NUMBERS, "points": {"type": "integer", "minimum": 2}}, "required": [kind],
     "additionalProperties": False}
    for kind in ("geom", "log2")
]  # fmt: skip
SAMPLED = {"anyOf": [{"type": "array", "minItems": 2}, *RANGES, *(
    {"type": "object", "properties": {kind: NUMBERS}, "required": [kind], "additionalProperties": False}
    for kind in sampling.RANGES
)]}  # fmt: skip
OWN_FAMILY = {"type": "string", "pattern": r"\.py$"}
NOT_AXES = ("zip", "exclude", "best_over")


def study_schema() -> dict[str, Any]:
    """Return the JSON Schema of study files: every table and field, what it allows, its default."""
    study = study_class(WORKLOADS)
    schema = study.model_json_schema(by_alias=True)
    sections = {section.__name__: section for section in _sections(study)}
    for name, definition in [("Study", schema), *schema["$defs"].items()]:
        if name in sections:
            _complete(definition, sections[name])
    model = schema["$defs"]["ModelSection"]["properties"]
    model["family"]["enum"] = None  # replaced below, where it stands for a value of an axis
    model["family"] = _axis({"anyOf": [{"enum": sorted(FAMILIES)}, OWN_FAMILY]}, model["family"])
    _let_sample(schema["$defs"])
    schema["$defs"]["FitSection"]["properties"]["law"]["enum"] = sorted(LAWS)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "scalebench study"} | schema


def _let_sample(definitions: dict[str, Any]) -> None:
    """Let the fields in the tables of [sample] be ranges."""
    tables = definitions["Sample"]["properties"]
    for name, table in tables.items():
        section = definitions.get(table.get("$ref", "").rpartition("/")[2])
        if section is not None:
            others = False if section["additionalProperties"] is False else SAMPLED
            fields = dict.fromkeys(section["properties"], SAMPLED)
            tables[name] = {"type": "object", "properties": fields, "additionalProperties": others}


def _sections(kind: type[Section]) -> list[type[Section]]:
    """Return a section and those of its fields."""
    inner = [
        part
        for field in kind.model_fields.values()
        for part in parts_of(field.annotation)
        if isinstance(part, type) and issubclass(part, Section)
    ]
    return [kind, *(section for part in inner for section in _sections(part))]


def _complete(definition: dict[str, Any], section: type[Section]) -> None:
    """Let axes be a value, a list or a range, and name the values that a field allows."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        places = [*field.metadata, *parts_of(field.annotation)]
        allowed = next((names for part in places if (names := _allowed(part))), None)
        own = definition["properties"][key]
        arrays = [part for part in own.get("anyOf", [own]) if part.get("type") == "array"]
        if key in NOT_AXES or not arrays:
            if allowed:
                own["enum"] = list(allowed)
            continue
        value = dict(arrays[0]["items"]) | ({"enum": list(allowed)} if allowed else {})
        definition["properties"][key] = _axis(value, own)
    if section.model_config.get("extra") == "allow":
        definition["additionalProperties"] = _axis({"type": ["boolean", "integer", "number", "string"]}, {})


def _allowed(part: Any) -> tuple[str, ...] | None:
    return getattr(part.func, "allowed", None) if isinstance(part, AfterValidator) else None


def _axis(value: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an axis of such values; title, description and default are the field's own."""
    described = {key: own[key] for key in ("title", "description", "default") if own.get(key) is not None}
    if isinstance(described.get("default"), list | tuple) and len(described["default"]) == 1:
        described["default"] = described["default"][0]
    return described | {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}, *RANGES]}


def show_schema(command: str | None = None) -> int:
    """Print the schema of study files, or of what ``--json`` of a command prints. Raises ``InputError``."""
    if command is None:
        schema = study_schema()
    else:
        from scalebench.cli.documents import output_schema  # with pandas

        schema = output_schema(command)
    print(json.dumps(schema, indent=1))
    return 0
