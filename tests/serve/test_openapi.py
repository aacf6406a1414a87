"""The description at /openapi.json is true: schemathesis asks for everything in it, right and wrong, and holds every
answer against it. OPENLANCE_NIGHTLY=1 asks for more."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi import checks  # noqa: E402

MANY = 200 if os.environ.get("OPENLANCE_NIGHTLY") else 5
# Not whether wrong bodies are refused and right ones taken: "1" is taken for 1, and a size may be one that cannot be.
CHECKS = [
    schemathesis.checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.unsupported_method,
]  # fmt: skip
LITTLE = {"num_inference_steps": 1, "n": 2, "num_frames": 5, "seconds": 0.4, "max_tokens": 4, "height": 16, "width": 16}


def test_every_answer_is_as_described(pipe, serving, defects, tmp_path):
    with serving(pipe, folder=tmp_path, admin_key="key") as server, defects() as told:
        for found in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
            asked(found.ok())
        assert told == []


def asked(operation):
    """Hold answers of one operation against its description."""
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=st.one_of(modes))
    def ask(case):
        if isinstance(case.body, dict):
            for name, most in LITTLE.items():
                value = case.body.get(name)
                if isinstance(value, (int, float)) and value > most:  # not too much work
                    case.body[name] = most
            case.body.setdefault("num_inference_steps", 1)
        key = {} if operation.path == "/admin/drain" else {"Authorization": "Bearer key"}  # all others go on
        case.call_and_validate(checks=CHECKS, timeout=120, headers=key)

    ask()
