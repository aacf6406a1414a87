"""Bodies and answers in the description at `/openapi.json`. Bodies are read by hand, since one route takes JSON and
forms; answers are put together off the event loop."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from openlance.serve.answers import Failed

EVENT = {
    "type": "object", "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
}  # fmt: skip
FORMS: dict[str, Any] = {"text/plain": {"type": "string"}, "text/event-stream": EVENT}  # of what is no file


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


def answers(kind: Any = None, *types: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The responses of a route: JSON of a kind of `openlance.serve.answers`, or files and streams of other types; and,
    whatever goes wrong, the error object."""
    content = {} if kind is None else {"application/json": {"schema": _schema(kind)}}
    content |= {name: {"schema": FORMS.get(name, {"type": "string", "format": "binary"})} for name in types}
    failed = {"description": "What is wrong", "content": {"application/json": {"schema": _schema(Failed)}}}
    return {status: {"description": "What was asked for", "content": content}, "4XX": failed, "5XX": failed}


def _schema(kind: Any) -> dict[str, Any]:
    schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    return _inlined(schema, parts)
