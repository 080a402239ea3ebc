"""Detectors and the stream guard: what is harmful never leaves, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.detectors.lexical import LexicalDetector
from gateway.stream_guard import StreamGuard
from gateway.text_folding import fold, original_position
from tests.gateway.conftest import USE_CASE, Fleet, Running
from tests.gateway.fake_upstream import FakeUpstream

DETECTOR = LexicalDetector.packaged()
SMALL = LexicalDetector(
    {"hate": ["bad apple", "bad", "apple pie is bad"], "weapons": ["a b c", "b c d"]},
    [{"id": "key", "literal": "sk-", "run": "a-z0-9", "length": 4}],
)
#: Fragments out of which texts are made that come close to, and hit, the patterns.
_LATIN = ["bad", "ba", "d", "apple", "pie", "is", "a", "b", "c", "d", "sk-", "s", "k", "-", "1234", "ab"]
_MARKS = [".", "_", "*", "'", "x", "Bad"]
_OTHER = [" ", "  ", "\n", "\u2019", "\u200b", "\u00ad", "é", "e\u0301", "ﬁ", "½", "ＢＡＤ", "İ", "ß", "漢"]
FRAGMENTS = st.sampled_from([*_LATIN, *_MARKS, *_OTHER])
TEXTS = st.lists(FRAGMENTS, max_size=14).map("".join)


def whole(text: str, detector: LexicalDetector = SMALL) -> tuple[str, bool]:
    guard = StreamGuard((detector,))
    return guard.feed(text, final=True), guard.blocked is not None


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


@settings(max_examples=1500, deadline=None)
@given(text=TEXTS, sizes=st.lists(st.integers(0, 5), max_size=40))
@example(text="sk-12345", sizes=[1] * 8)
@example(text="a b b c d", sizes=[1] * 9)
@example(text="xbad", sizes=[1])
def test_any_cut_gives_the_verdict_of_the_whole_and_leaks_nothing(text: str, sizes: list[int]) -> None:
    released, blocked = whole(text)
    guard = StreamGuard((SMALL,))
    out = "".join(guard.feed(piece) for piece in cut(text, sizes)) + guard.feed("", final=True)
    assert (guard.blocked is not None) == blocked
    if blocked:
        # Nothing from the first blocked span on: what left is what stands before some match's begin.
        assert released.startswith(out)
    else:
        assert out == released == text


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, sizes=st.lists(st.integers(0, 5), max_size=40))
def test_an_observing_profile_lets_all_pass_but_secrets(text: str, sizes: list[int]) -> None:
    guard = StreamGuard((SMALL,), "observe")
    out = "".join(guard.feed(piece) for piece in cut(text, sizes)) + guard.feed("", final=True)
    assert guard.blocked is None or guard.blocked.category == "privacy"
    assert out == text if guard.blocked is None else text.startswith(out)


@settings(max_examples=300)
@given(st.text(max_size=30), st.integers(0, 30))
def test_folding_piece_by_piece_is_folding_the_whole(text: str, at: int) -> None:
    assert fold(text[:at]) + fold(text[at:]) == fold(text)
    assert 0 <= original_position(text, min(at, len(fold(text)))) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "He read how to make a bomb.",
        "HOW TO  MAKE A BOMB",
        "how-to-make-a-bomb",
        "how to **make** a bo\u200bmb",
        "ｈｏｗ ｔｏ ｍａｋｅ ａ ｂｏｍｂ",
        "hów tö makê a bomb",
        "you should kill yourself.",
        "token ghp_" + "a1B2" * 9,
        "-----BEGIN RSA PRIVATE KEY-----",
        "key AKIAIOSFODNN7EXAMPLE",
        "ma_live_app_" + "0" * 48,
    ],
)
def test_found(text: str) -> None:
    released, blocked = whole(text, DETECTOR)
    assert blocked
    assert text.startswith(released)
    assert len(released) < len(text)


@pytest.mark.parametrize(
    "text",
    [
        "The bomb squad knew how to make a plan.",
        "They showed how to make. A bomb was found.",
        "how to make a bombastic speech",
        "sk-learn is not scikit-learn, but risk-1234567890abcdef1234567890abcdef is a word",
        "A skill, a painless way to learn, and a white cake.",
    ],
)
def test_not_found(text: str) -> None:
    assert whole(text, DETECTOR) == (text, False)


def test_little_is_held_back() -> None:
    guard = StreamGuard((DETECTOR,))
    text = "The fox and the badger walked along the river and talked of how to make bread. " * 20
    sent = held = longest = 0
    for character in text:
        sent += 1
        held += sent - (released := len(guard.feed(character)))
        sent -= released
        longest = max(longest, sent)
    assert held / len(text) < 3
    assert longest <= len("how to make ")
    assert guard.blocked is None


UNSAFE = "Once upon a time you should kill yourself and more"


async def test_a_blocked_plain_answer(gateway: Running, fleet: Fleet) -> None:
    await gateway.serves(await fleet.route(await fleet.release(f"say:{UNSAFE}")))
    answer = await gateway.client().chat.completions.create(
        model=USE_CASE, messages=[{"role": "user", "content": "go"}]
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "content_filter"
    assert "withheld" in (choice.message.content or "")
    row = await fleet.one_row()
    assert (row["status"], row["finish_reason"]) == ("blocked", "content_filter")
    assert row["response_text"] == "Once upon a time you should [blocked: suicide_self_harm]"
    assert row["findings"][0]["category"] == "suicide_self_harm"
    assert row["cost_usd"] > 0


@pytest.mark.parametrize("kind", ["say", "chars"])
async def test_a_blocked_stream(gateway: Running, fleet: Fleet, upstream: FakeUpstream, kind: str) -> None:
    await gateway.serves(await fleet.route(await fleet.release(f"{kind}:{UNSAFE}")))
    stream = await gateway.client().chat.completions.create(
        model=USE_CASE, messages=[{"role": "user", "content": "go"}], stream=True
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "Once upon a time you should "
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    row = await fleet.one_row()
    assert (row["status"], row["usage_estimated"]) == ("blocked", True)
    assert row["response_text"] == f"{text}[blocked: suicide_self_harm]"


async def test_a_secret_is_neither_sent_nor_logged(gateway: Running, fleet: Fleet) -> None:
    secret = "sk-proj-" + "a1b2c3d4" * 5
    await gateway.serves(await fleet.route(await fleet.release(f"chars:The key is {secret}!")))
    for streamed in (False, True):
        response = await gateway.post(
            {"model": USE_CASE, "stream": streamed, "messages": [{"role": "user", "content": "go"}]}
        )
        assert "content_filter" in response.text
        assert "sk-proj" not in response.text
    rows = await fleet.rows()
    assert "sk-proj" not in str([row["response_text"] for row in rows] + [row["findings"] for row in rows])


async def test_what_is_held_at_the_end_is_sent(gateway: Running, fleet: Fleet) -> None:
    await gateway.serves(await fleet.route(await fleet.release("chars:nobody should kill")))
    stream = await gateway.client().chat.completions.create(
        model=USE_CASE, messages=[{"role": "user", "content": "go"}], stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "nobody should kill"
