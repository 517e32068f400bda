"""What the server's OpenAPI says, tried by schemathesis: what fits is answered as described, what does not is
refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from servers import Address, serving

UNSAYABLE = load_all_checks() or CHECKS.get_one("positive_data_acceptance")  # is done below
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def server(small_demo: Any) -> Iterator[Address]:
    with serving(lambda: small_demo, window_ms=0.0, max_steps=2, max_side=64, max_n=2) as address:
        assert address.engine.wait_until_loaded(60) == "ready"
        yield address


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_answers_as_it_says(server: Address, mode: GenerationMode) -> None:
    # over 10 s: 25 bodies for each operation, of which the valid ones become images
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schema.config.generation.update(modes=[mode])
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing about it could be wrong

        @settings(
            max_examples=15 if operation.body else 2,
            deadline=None,
            derandomize=True,
            suppress_health_check=SLOW,
        )
        @given(case=operation.as_strategy(mode))
        def check(case: Any) -> None:
            answer = case.call_and_validate(timeout=60, excluded_checks=[UNSAYABLE])
            if mode is GenerationMode.POSITIVE and answer.status_code == 400:
                # sides and their multiples, which two fields go together, how many images n of each prompt make, and
                # the length of numbers in fields that are not known are beyond a schema
                told = answer.json()["error"]
                beyond = told["param"] is None and "a whole number of" in told["message"]
                assert beyond or told["param"] in ("size", "response_format", "prompts"), (told, case.body)

        check()
        tried += 1
    assert tried >= (6 if mode is GenerationMode.POSITIVE else 1)
