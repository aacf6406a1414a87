"""Bodies in the description at `/openapi.json`: they are read by hand, since one route takes JSON and forms."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue


class _Schema(GenerateJsonSchema):
    def is_instance_schema(self, schema: Any) -> JsonSchemaValue:
        return {"type": "string", "format": "binary"}  # an upload


def _body(kind: type[BaseModel], *types: str) -> dict[str, Any]:
    schema = kind.model_json_schema(schema_generator=_Schema, ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    schema = _inlined(schema, parts)
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name in types}}}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema with what it refers to in its place; none of ours refers to itself."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
        return {name: _inlined(value, parts) for name, value in schema.items()}
    return [_inlined(value, parts) for value in schema] if isinstance(schema, list) else schema


def json_of(kind: type[BaseModel]) -> dict[str, Any]:
    return _body(kind, "application/json")


def form_of(kind: type[BaseModel]) -> dict[str, Any]:
    return _body(kind, "multipart/form-data", "application/json")
