"""A simulated provider is a real process: the official client talks to it, and its vices are real."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from meta_agent.demo.personas import PERSONAS

Launch = Callable[..., Any]
WISH = "Tell a story about a shy fox named Juniper. Include the word 'kite' and finish with 'The end.'"


def ask(provider: Any, text: str = WISH, **more: Any) -> Any:
    with provider.client() as client:
        return client.chat.completions.create(
            model=provider.model, messages=[{"role": "user", "content": text}], **more
        )


def stream_text(provider: Any, text: str = WISH, **more: Any) -> tuple[str, list[Any]]:
    with provider.client() as client:
        stream = client.chat.completions.create(
            model=provider.model, messages=[{"role": "user", "content": text}], stream=True, **more
        )
        chunks = list(stream)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


def raw(provider: Any, body: bytes | dict[str, Any]) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return provider.http.post(f"{provider.url}/v1/chat/completions", content=content)


def test_plain_answer_meets_the_wish_and_counts_tokens(bargain: Any) -> None:
    answer = ask(bargain)
    text = answer.choices[0].message.content
    assert "Juniper" in text
    assert "kite" in text
    assert text.endswith("The end.")
    assert 60 <= len(text.split()) <= 150
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 60


def test_stream_says_the_same_as_plain_and_reports_usage_when_asked(bargain: Any) -> None:
    plain = ask(bargain)
    text, chunks = stream_text(bargain, stream_options={"include_usage": True})
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert len(chunks) > 10


def test_stream_without_usage_ends_with_the_finish(bargain: Any) -> None:
    _, chunks = stream_text(bargain)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_token_limit_cuts_the_answer(bargain: Any) -> None:
    answer = ask(bargain, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_models_are_listed_with_prices_and_follow_the_behaviour(bargain: Any) -> None:
    bargain.behave(prompt_usd="0.0000009", context_length=100)
    with bargain.client() as client:
        [model] = client.models.list().data
    assert model.id == "budget-nano"
    assert model.owned_by == "bargain"
    assert model.model_extra == {
        "context_length": 100,
        "pricing": {"prompt": "0.0000009", "completion": "0.00000075"},
    }
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        ask(bargain, "word " * 200)


def test_key_is_checked_when_one_is_set(launch: Launch) -> None:
    lab = launch("lab", "--api-key", "secret")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"), lab.client("wrong") as client:
        client.models.list()
    with lab.client("secret") as client:
        assert [model.id for model in client.models.list()] == ["atlas-large"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{not json", "could not parse"),
        (b"[]", "must be a JSON object"),
        (b'{"messages": []}', "model parameter"),
        (b'{"model": "budget-nano"}', "non-empty array"),
        (b'{"model": "budget-nano", "messages": ["hi"]}', "object with a role"),
        (b'{"model": "budget-nano", "messages": [{"role": "user"}], "metadata": 3}', "must be objects"),
    ],
)
def test_bad_requests_get_openai_shaped_errors(bargain: Any, body: bytes, says: str) -> None:
    answer = raw(bargain, body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


def test_unknown_model_and_unknown_path_are_not_found(bargain: Any) -> None:
    answer = raw(bargain, {"model": "nobody", "messages": [{"role": "user", "content": "hi"}]})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert bargain.http.get(f"{bargain.url}/v2/nothing").status_code == 404


@pytest.mark.parametrize(
    "traits",
    [{"eror_rate": 1}, {"error_rate": 1.5}, {"error_rate": "much"}, {"down": 1}, {"prompt_usd": "dear"}],
)
def test_nonsense_behaviour_is_refused_and_changes_nothing(bargain: Any, traits: dict[str, Any]) -> None:
    where = f"{bargain.url}/_sim/behaviour/budget-nano"
    before = bargain.http.get(where).json()
    assert bargain.http.patch(where, json=traits).status_code == 400
    assert bargain.http.get(where).json() == before


def test_quality_depends_on_the_prompt_only_and_changes_live(bargain: Any) -> None:
    assert ask(bargain).choices[0].message.content == ask(bargain).choices[0].message.content
    bargain.behave(quality=0.0)
    text = ask(bargain).choices[0].message.content
    assert "Juniper" not in text
    assert "kite" not in text
    assert not text.endswith("The end.")


def test_half_the_requests_fail_at_error_rate_one_half_and_asking_again_may_help(bargain: Any) -> None:
    bargain.behave(error_rate=0.5)
    before = bargain.stats()
    body = {"model": "budget-nano", "messages": [{"role": "user", "content": WISH}]}
    statuses = [raw(bargain, body).status_code for _ in range(60)]
    assert set(statuses) == {200, 500, 503}
    assert 15 <= statuses.count(200) <= 45
    after = bargain.stats()
    assert after["error"] - before["error"] == 60 - statuses.count(200)
    assert after["answered"] - before["answered"] == statuses.count(200)


def test_rate_limit_says_when_to_come_back(bargain: Any) -> None:
    bargain.behave(rate_limit_rate=1.0)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(bargain)
    assert caught.value.response.headers["retry-after"] == "1"


def test_unsafe_answers_are_unsafe(bargain: Any) -> None:
    bargain.behave(unsafe_rate=1.0)
    text = ask(bargain).choices[0].message.content
    assert "kill yourself" in text or "how to build a bomb" in text
    assert text.endswith("The end.")


def test_half_a_stream_is_cut_without_an_end(bargain: Any) -> None:
    bargain.behave(half_stream_rate=1.0)
    body = {"model": "budget-nano", "stream": True, "messages": [{"role": "user", "content": WISH}]}
    with bargain.http.stream("POST", f"{bargain.url}/v1/chat/completions", json=body) as answer:
        pieces: list[bytes] = []
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(answer.iter_raw())
    seen = b"".join(pieces)
    assert b'"content"' in seen
    assert b"[DONE]" not in seen
    assert ask(bargain).choices[0].finish_reason == "stop"  # plain answers are not cut


def test_invalid_json_is_invalid(bargain: Any) -> None:
    bargain.behave(invalid_json_rate=1.0)
    answer = raw(bargain, {"model": "budget-nano", "messages": [{"role": "user", "content": WISH}]})
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    with pytest.raises(json.JSONDecodeError):
        stream_text(bargain)


def test_hanging_never_answers_and_survives_the_caller_leaving(bargain: Any) -> None:
    bargain.behave(hang_rate=1.0)
    with pytest.raises(openai.APITimeoutError), bargain.client(timeout=0.3) as client:
        client.chat.completions.create(model="budget-nano", messages=[{"role": "user", "content": WISH}])
    bargain.behave(hang_rate=0.0)
    assert ask(bargain).choices


def test_down_closes_the_connection(bargain: Any) -> None:
    bargain.behave(down=True)
    with pytest.raises(openai.APIConnectionError):
        ask(bargain)
    with pytest.raises(openai.APIConnectionError), bargain.client() as client:
        client.models.list()
    bargain.behave(down=False)
    assert ask(bargain).choices


def test_time_is_taken_as_told(bargain: Any) -> None:
    bargain.behave(ttft_seconds=0.2)
    answer = raw(bargain, {"model": "budget-nano", "messages": [{"role": "user", "content": WISH}]})
    assert answer.elapsed.total_seconds() >= 0.15


def test_same_seed_plays_the_same_and_another_seed_another_story(launch: Launch, bargain: Any) -> None:
    same, other = launch("bargain"), launch("bargain", "--seed", "8")
    said = ask(bargain).choices[0].message.content
    assert ask(same).choices[0].message.content == said
    assert ask(other).choices[0].message.content != said


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_used_port_is_said_in_one_line(used_port: int) -> None:
    command = [sys.executable, "-m", "meta_agent.demo.provider", "--persona", "lab", "--port", str(used_port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert ended.returncode == 1
    assert (
        ended.stderr.strip()
        == f"provider lab: cannot listen on 127.0.0.1:{used_port}: Address already in use"
    )


def test_prices_fall_from_persona_to_persona() -> None:
    order = ["lab", "thrift", "bargain", "rough"]
    prices = [float(b.completion_usd) for name in order for b in PERSONAS[name].models.values()]
    assert prices == sorted(prices, reverse=True)
    assert prices[1] / prices[0] == pytest.approx(0.2)
