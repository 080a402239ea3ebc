"""Sources: the real price map as a file, a provider's process, and catalogues that misbehave."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from pipelines.context import ProviderAccess
from pipelines.discovery.price_fill import fill, index_price_map
from pipelines.discovery.source import Listing, SourceError, read_price
from pipelines.discovery.sources.openai_compatible import OpenAiCompatible, read_models
from pipelines.discovery.sources.price_map import PriceMap, price_map_path, read_price_map
from storage.vocabulary import Lifecycle

ROOT = Path(__file__).resolve().parents[3]
NOW = datetime(2026, 11, 23, tzinfo=UTC)


async def test_the_real_price_map_lists_thousands_of_chat_models_with_exact_prices():
    path = price_map_path()
    assert path is not None
    listings = await PriceMap(path).fetch()
    assert len(listings) > 2000
    assert len({each.external_id for each in listings}) == len(listings)
    by_name = {each.external_id: each for each in listings}
    assert "sample_spec" not in by_name
    known = by_name["gpt-4o"]
    assert (known.provider, known.model, known.reachable) == ("openai", "gpt-4o", False)
    assert (known.price_input, known.price_output) == (Decimal("0.0000025"), Decimal("0.00001"))
    assert known.context_tokens == 128000
    assert {"vision", "function_calling", "streaming"} <= set(known.capabilities)
    lives = Counter(each.lifecycle for each in listings)
    assert lives[Lifecycle.RETIRED] > 50
    assert lives[Lifecycle.DEPRECATED] > 50
    assert all(each.price_input is None or each.price_input > 0 for each in listings)
    assert sum(each.price_input is None for each in listings) > 50  # free and missing are unknown


def test_reading_the_price_map_imports_no_litellm():
    code = (
        "import sys, datetime\n"
        "from pipelines.discovery.sources.price_map import price_map_path, read_price_map\n"
        "read_price_map(price_map_path(), datetime.datetime.now(datetime.UTC))\n"
        "assert 'litellm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "not JSON"), ("[]", "not an object of models"), (None, "cannot be read")]
)
def test_a_broken_price_map_is_an_error_with_a_sentence(tmp_path, content, words):
    path = tmp_path / "map.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SourceError, match=words):
        read_price_map(path, NOW)


@pytest.fixture
def lab_url():
    command = [sys.executable, "-m", "meta_agent.demo.provider", "--persona", "lab", "--port", "0"]
    process = subprocess.Popen([*command, "--api-key", "key"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    yield process.stdout.readline().split()[3]
    process.terminate()
    process.wait(timeout=5)
    process.stdout.close()


async def test_a_provider_process_lists_its_models_with_prices(lab_url):
    access = ProviderAccess(name="lab", kind="openai_compatible", base_url=lab_url, api_key="key")
    [listing] = await OpenAiCompatible(access).fetch()
    assert (listing.provider, listing.model, listing.reachable) == ("lab", "atlas-large", True)
    assert (listing.price_input, listing.price_output) == (Decimal("0.000003"), Decimal("0.000015"))
    assert listing.context_tokens == 200_000
    wrong = ProviderAccess(name="lab", kind="openai_compatible", base_url=lab_url, api_key="other")
    with pytest.raises(SourceError, match="check its api_key"):
        await OpenAiCompatible(wrong).fetch()


async def test_a_rate_limited_catalogue_is_asked_again_as_late_as_it_says(launch_server, said):
    answers = [said(429, headers={"retry-after": "1"}), said.json({"data": [{"id": "m"}]})]
    server = await launch_server(lambda _: answers.pop(0))
    started = time.monotonic()
    [listing] = await OpenAiCompatible(server.access()).fetch()
    assert listing.model == "m"
    assert time.monotonic() - started >= 1.0
    assert server.asked[0].headers["authorization"] == "Bearer secret"
    assert server.asked[0].path == "/v1/models"


@pytest.mark.parametrize(
    ("answer", "words", "asked"),
    [
        ({"status": 429, "headers": {"retry-after": "3600"}}, "asks to wait 3600 seconds", 1),
        ({"status": 503, "headers": {"retry-after": "0"}}, "HTTP 503, 3 times in a row", 3),
        ({"hang_up": True}, "cannot be reached .* 3 times in a row", 3),
        ({"body": b"{broken"}, "not JSON", 1),
        ({"body": b"[" * 200_000}, "not JSON", 1),
        ({"body": b"[]"}, "without a list named 'data'", 1),
        ({"body": b'{"data": [{"name": "x"}, 3]}'}, "none of them has an id", 1),
        ({"status": 500}, "HTTP 500", 1),
    ],
)
async def test_a_misbehaving_catalogue_is_an_error_with_a_sentence(launch_server, said, answer, words, asked):
    server = await launch_server(lambda _: said(**answer))
    with pytest.raises(SourceError, match=words):
        await OpenAiCompatible(server.access()).fetch()
    assert len(server.asked) == asked


async def test_a_hanging_catalogue_is_given_up(launch_server, said):
    server = await launch_server(lambda _: said(hang=30))
    with pytest.raises(SourceError, match=r"within 0\.3 seconds"):
        await OpenAiCompatible(server.access(), timeout_seconds=0.3).fetch()


def test_what_openrouter_openai_and_vllm_add_is_read():
    body = b"""{"data": [
      {"id": "a/b", "pricing": {"prompt": "0.0000004", "completion": "-1"}, "context_length": 8192,
       "top_provider": {"max_completion_tokens": 512}, "supported_parameters": ["tools", "reasoning", 7],
       "architecture": {"input_modalities": ["text", "image"]}, "expiration_date": "2027-05-01"},
      {"id": "served", "max_model_len": 4096, "shutdown_date": "2026-01-01"},
      {"id": "odd", "context_length": true, "pricing": [], "top_provider": 3, "expiration_date": "soon"},
      {"id": "new\\nline"}, {"id": " padded"}, {"id": ""}, {"id": "x\\u0000y"},
      {"id": "kept", "description": "nul \\u0000 and \\ud800"}
    ]}"""
    found = {each.model: each for each in read_models("p", body, NOW)}
    assert set(found) == {"a/b", "served", "odd", "kept"}
    full = found["a/b"]
    assert (full.price_input, full.price_output) == (Decimal("0.0000004"), None)
    assert (full.context_tokens, full.output_tokens) == (8192, 512)
    assert full.capabilities == ("function_calling", "reasoning", "streaming", "vision")
    assert full.lifecycle is Lifecycle.DEPRECATED
    assert (found["served"].context_tokens, found["served"].lifecycle) == (4096, Lifecycle.RETIRED)
    assert (found["odd"].context_tokens, found["odd"].retires_at) == (None, None)
    assert found["kept"].payload == {}  # what the database could not take is not kept


@pytest.mark.parametrize(
    ("value", "price"),
    [("1e-6", Decimal("0.000001")), (3e-6, Decimal("0.000003")), (0, None), ("0", None), ("NaN", None),
     ("inf", None), (True, None), (None, None), ("1e-30", None), ("25", None), ([], None)],
)  # fmt: skip
def test_prices(value, price):
    assert read_price(value) == price


def test_the_price_map_fills_what_a_provider_leaves_out_by_exact_name_only():
    path = price_map_path()
    assert path is not None
    known = index_price_map("openai", read_price_map(path, NOW))
    bare = Listing(external_id="gpt-4o", provider="openai", model="gpt-4o", reachable=True)
    filled = fill(bare, known, NOW)
    assert filled.price_input == Decimal("0.0000025")
    assert filled.context_tokens == 128000
    assert "vision" in filled.capabilities
    assert filled.payload["filled"]["as"] == "gpt-4o"
    assert filled.reachable
    near = Listing(external_id="gpt-4o-x", provider="openai", model="gpt-4o-x", reachable=True)
    assert fill(near, known, NOW) == near
    own = Listing(
        external_id="gpt-4o", provider="o", model="gpt-4o", reachable=True, price_input=Decimal("0.1")
    )
    assert fill(own, known, NOW).price_input == Decimal("0.1")
    assert index_price_map("vllm", read_price_map(path, NOW)) == {}
