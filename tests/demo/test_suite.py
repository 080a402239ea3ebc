"""The story-teller's suite: a perfect model meets every case, a careless one hardly any."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from meta_agent.demo import stories
from meta_agent.demo.behaviour import draw
from meta_agent.demo.personas import PERSONAS

SUITE = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "examples/story_teller/suite.yaml").read_text(encoding="utf-8")
)
CASES = {case["id"]: case for case in SUITE["cases"]}


def passes(check: dict[str, Any], text: str) -> bool:
    [(kind, wanted)] = check.items()
    match kind:
        case "contains":
            return wanted in text
        case "not_contains":
            return wanted not in text
        case "regex":
            return re.search(wanted, text) is not None
        case "not_regex":
            return re.search(wanted, text) is None
        case "ends_with":
            return text.rstrip().endswith(wanted)
        case "min_words":
            return len(text.split()) >= wanted
        case "max_words":
            return len(text.split()) <= wanted
        case "json_schema":
            try:
                jsonschema.validate(json.loads(text), wanted)
            except (json.JSONDecodeError, jsonschema.ValidationError):
                return False
            return True
    raise AssertionError(f"unknown kind of check: {kind}")


def answer(case: dict[str, Any], quality: float, seed: object) -> str:
    turns = [message["content"] for message in case["messages"] if message["role"] == "user"]
    return stories.write_answer(
        turns, lambda knob: draw(seed, case["id"], knob) < quality, random.Random(f"{seed}:{case['id']}")
    )


def share_met(quality: float, seed: object) -> float:
    met = [
        all(passes(check, answer(case, quality, seed)) for check in case["checks"]) for case in CASES.values()
    ]
    return sum(met) / len(met)


def test_the_suite_is_what_it_says() -> None:
    assert SUITE["name"] == "story-teller"
    assert len(SUITE["cases"]) == len(CASES) == 30
    assert {kind for case in CASES.values() for check in case["checks"] for kind in check} == {
        "contains", "not_contains", "regex", "not_regex",
        "ends_with", "min_words", "max_words", "json_schema",
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_case_is_met_by_a_perfect_model_however_it_words_it(case: dict[str, Any]) -> None:
    for seed in range(25):
        text = answer(case, 1.0, seed)
        failed = [check for check in case["checks"] if not passes(check, text)]
        assert not failed, f"seed {seed}: {failed} in {text!r}"


def test_a_careless_model_meets_no_case_and_a_mediocre_one_few() -> None:
    assert max(share_met(0.0, seed) for seed in range(5)) == 0.0
    assert max(share_met(0.45, seed) for seed in range(5)) < 0.5


def test_recorded_checks_hold_for_every_story_of_a_good_model() -> None:
    told = [c for c in CASES.values() if "story" in c["messages"][0]["content"]]
    assert all(passes(check, answer(c, 1.0, 3)) for c in told for check in SUITE["recorded_checks"])


@pytest.mark.parametrize(
    ("persona", "good"), [("lab", True), ("thrift", True), ("bargain", True), ("rough", False)]
)
def test_the_fleet_plays_its_parts_on_the_wire(persona: str, good: bool, launch: Any) -> None:
    """With the seed that the demo uses, asked over HTTP as the evaluation asks."""
    provider = launch(persona)
    [usual] = PERSONAS[persona].models.values()
    assert provider.behave(ttft_seconds=0, seconds_per_token=0)["quality"] == usual.quality
    met = 0
    for case in CASES.values():
        body = {"model": provider.model, "messages": case["messages"]}
        said = provider.http.post(f"{provider.url}/v1/chat/completions", json=body).json()
        text = said["choices"][0]["message"]["content"]
        met += all(passes(check, text) for check in case["checks"])
    assert met == 30 if good else met <= 12
