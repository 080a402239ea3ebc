"""The guard over whole streams: nothing blocked leaves by any surface, the rest arrives in order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.answer_guard import AnswerGuard
from gateway.detectors.lexical import LexicalDetector
from gateway.surface import Asked, Surface
from gateway.surfaces.chat import ChatSurface
from gateway.surfaces.messages import MessagesSurface
from gateway.surfaces.responses import ResponsesSurface

Json = dict[str, Any]

DETECTOR = LexicalDetector(
    {"hate": ["bad apple pie"]}, [{"id": "key", "literal": "sk-", "run": "a-z0-9", "length": 4}]
)
BLOCKED = ("bad apple pie", "sk-ab12")
ASKED = Asked("int_1", "story-teller", {"stream_options": {"include_usage": True}}, 1)
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}


def chunk(delta: Json, finish: str | None = None, **more: Any) -> Json:
    return {"id": "up", "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


def guarded(chunks: list[Json]) -> tuple[AnswerGuard, list[Json]]:
    """What leaves the guard of a stream, as the gateway leads it through."""
    guard = AnswerGuard((DETECTOR,), "default")
    passed: list[Json] = []
    for each in chunks:
        if guard.blocked is None:
            passed += guard.check_chunk(copy.deepcopy(each))
    if guard.blocked is None:
        passed += guard.flush_all(chunks[-1])
    if guard.blocked is not None:
        passed.append(guard.closing_chunk(chunks[-1]))
    return guard, passed


def deltas(chunks: list[Json]) -> list[Json]:
    return [choice["delta"] for each in guarded(chunks)[1] for choice in each["choices"] if choice["delta"]]


# -- order


def test_text_leaves_before_the_call_that_follows_it() -> None:
    rest = {"index": 0, "function": {"arguments": '{"at":"bad'}}
    said = deltas(
        [
            chunk({"content": "I look. bad"}),
            chunk({"tool_calls": [CALL]}),
            chunk({"tool_calls": [rest]}),
            chunk({"content": "done"}),
            chunk({}, "tool_calls"),
        ]
    )
    assert said == [
        {"content": "I look. "},
        {"content": "bad"},
        {"tool_calls": [CALL]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "bad"}}]},
        {"content": "done"},
    ]


def test_text_and_a_call_in_one_delta_leave_in_one_delta() -> None:
    [said, *_] = deltas([chunk({"tool_calls": [CALL], "content": "not bad"}), chunk({}, "stop")])
    assert said == {"tool_calls": [CALL], "content": "not bad"}


def test_a_signature_comes_after_all_that_it_signs() -> None:
    def thought(text: str, **more: Any) -> Json:
        return {"thinking_blocks": [{"type": "thinking", "thinking": text, **more}]}

    said = deltas(
        [
            chunk({"reasoning_content": "bad apple", **thought("bad apple")}),
            chunk(thought("", signature="s")),
            chunk({"content": "hi"}),
            chunk({}, "stop"),
        ]
    )
    texts = [delta for delta in said if any(delta.values())]
    held = {"reasoning_content": "bad apple", **thought("bad apple")}
    assert held in texts
    assert texts.index(held) < texts.index(thought("", signature="s")) < texts.index({"content": "hi"})


def test_thinking_in_blocks_is_looked_at() -> None:
    blocks = [{"type": "thinking", "thinking": "a bad apple pie", "signature": "s"}]
    payload = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x", "thinking_blocks": blocks}}]
    }
    guard = AnswerGuard((DETECTOR,), "default")
    guard.check_answer(payload)
    assert guard.blocked is not None
    assert "apple" not in str(payload)


def test_parts_of_a_content_are_looked_at_together() -> None:
    parts = [{"type": "text", "text": "a bad "}, {"type": "text", "text": "apple pie"}]
    guard = AnswerGuard((DETECTOR,), "default")
    guard.check_answer({"choices": [{"index": 0, "message": {"role": "assistant", "content": parts}}]})
    assert guard.blocked is not None


def test_logprobs_wait_for_their_tokens() -> None:
    def spoken(word: str) -> Json:
        return chunk({"content": word}, logprobs={"content": [{"token": word}], "refusal": None})

    _, passed = guarded([spoken("a "), spoken("bad "), spoken("apple "), spoken("core"), chunk({}, "stop")])
    text, tokens = "", ""
    for each in passed:
        [choice] = each["choices"]
        text += choice["delta"].get("content") or ""
        tokens += "".join(token["token"] for token in (choice.get("logprobs") or {}).get("content", ()))
        assert text.startswith(tokens)
    assert text == tokens == "a bad apple core"
    _, passed = guarded([spoken("a "), spoken("bad "), spoken("apple "), spoken("pie"), chunk({}, "stop")])
    assert "apple" not in str(passed)


# -- what leaves by the surfaces

_WORDS = [
    "bad",
    "ba",
    "d",
    "apple",
    "pie",
    "pies",
    " ",
    "  ",
    "-",
    "sk-",
    "ab12",
    "s",
    "k",
    "xy",
    "\n",
    "Ｂad",
    "é",
]
TEXTS = st.lists(st.sampled_from(_WORDS), max_size=9).map("".join)
SPANS = st.sampled_from([*BLOCKED, "", "", ""])


def chat_texts(raw: bytes) -> dict[str, str]:
    """Every text that a client puts together, by the place it is put."""
    texts: dict[str, str] = {}
    for event in events(raw):
        for choice in event.get("choices", ()):
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                texts[name] = texts.get(name, "") + (delta.get(name) or "")
            for block in delta.get("thinking_blocks", ()):
                texts["block"] = texts.get("block", "") + block["thinking"]
            for call in delta.get("tool_calls", ()):
                name = f"call {call['index']}"
                texts[name] = texts.get(name, "") + call["function"].get("arguments", "")
    return texts


def messages_texts(raw: bytes) -> dict[str, str]:
    texts: dict[str, str] = {}
    kinds: dict[int, str] = {}
    for event in events(raw):
        if event["type"] == "content_block_start":
            kinds[event["index"]] = event["content_block"]["type"]
        if event["type"] == "content_block_delta":
            delta = event["delta"]
            text = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            kind = kinds[event["index"]]
            texts[kind] = texts.get(kind, "") + text
    return texts


def responses_texts(raw: bytes) -> dict[str, str]:
    texts: dict[str, str] = {}
    for event in events(raw):
        if event["type"].endswith(".delta"):
            texts[event["type"]] = texts.get(event["type"], "") + event["delta"]
    return texts


def events(raw: bytes) -> list[Json]:
    data = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    return [orjson.loads(each) for each in data if each != b"[DONE]"]


SURFACES: list[tuple[Surface, Callable[[bytes], dict[str, str]]]] = [
    (ChatSurface(), chat_texts),
    (MessagesSurface(), messages_texts),
    (ResponsesSurface(), responses_texts),
]


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, str], list[Json]]:
    """Texts by channel, each with a blocked span or without, and chunks that say them in that order."""
    said = {name: draw(TEXTS) + draw(SPANS) + draw(TEXTS) for name in ("thinking", "content", "call")}
    chunks = [
        chunk({"reasoning_content": piece, "thinking_blocks": [{"type": "thinking", "thinking": piece}]})
        for piece in cut(draw, said["thinking"])
    ]
    if said["thinking"]:
        chunks.append(chunk({"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "s"}]}))
    chunks += [chunk({"content": piece}) for piece in cut(draw, said["content"])]
    if said["call"]:
        chunks.append(chunk({"tool_calls": [CALL]}))
    for piece in cut(draw, said["call"]):
        chunks.append(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
    return said, [*chunks, chunk({}, "stop")]


def cut(draw: st.DrawFn, text: str) -> list[str]:
    pieces = []
    while text:
        size = draw(st.integers(1, 6))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@settings(max_examples=400, deadline=None)
@given(answers())
def test_whatever_the_chunks_nothing_blocked_leaves_by_any_surface(
    answer: tuple[dict[str, str], list[Json]],
) -> None:
    said, chunks = answer
    guard, passed = guarded(chunks)
    for surface, texts_of in SURFACES:
        writer = surface.writer(ASKED)
        raw = b"".join([writer.chunk(each) for each in copy.deepcopy(passed)]) + writer.end()
        texts = texts_of(raw)
        for text in texts.values():
            # Not a byte of it: what left is what stands before the first match of its channel.
            assert any(clean(whole).startswith(text) for whole in said.values())
        if guard.blocked is None:
            assert sorted(set(filter(None, texts.values()))) == sorted(set(filter(None, said.values())))


def clean(text: str) -> str:
    """What of a text may leave: all before what is blocked, which is judged by the guard of one text."""
    guard = AnswerGuard((DETECTOR,), "default")
    [passed] = [guard.check_chunk(chunk({"content": text}))]
    passed += guard.flush_all(passed[-1]) if guard.blocked is None else []
    return "".join(choice["delta"].get("content") or "" for each in passed for choice in each["choices"])


PIECES = st.lists(
    st.tuples(st.sampled_from(["content", "call", "thinking"]), st.sampled_from(_WORDS)), max_size=25
)


@settings(max_examples=600, deadline=None)
@given(PIECES)
@example([("content", "bad apple"), ("call", "x"), ("content", " pie")])
@example(
    [("content", "bad"), ("call", "bad"), ("content", " apple"), ("call", " apple"), ("content", " pie")]
)
def test_a_text_that_goes_on_after_another_is_never_whole_if_it_is_blocked(
    pieces: list[tuple[str, str]],
) -> None:
    """Text that was interrupted has left before it was known how it goes on: its rest does not follow."""
    chunks = [chunk({"tool_calls": [CALL]})]
    for kind, text in pieces:
        call = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        deltas_by_kind: dict[str, Json] = {
            "content": {"content": text},
            "thinking": {"reasoning_content": text},
            "call": call,
        }
        chunks.append(chunk(deltas_by_kind[kind]))
    guard, passed = guarded([*chunks, chunk({}, "stop")])
    writer = ChatSurface().writer(ASKED)
    texts = chat_texts(b"".join([writer.chunk(each) for each in passed]))
    wholes = {
        name: "".join(text for kind, text in pieces if kind == other)
        for name, other in (("content", "content"), ("call 0", "call"), ("reasoning_content", "thinking"))
    }
    for name, whole in wholes.items():
        assert whole.startswith(texts.get(name, ""))
        assert clean(texts.get(name, "")) == texts.get(name, "")
        if guard.blocked is None:
            assert texts.get(name, "") == whole
