"""Gathers what a model says into the output items of a response, and tells every step as an event.

A whole answer is gathered as a stream of one piece, so both give the same items. Items are told one
after the other, as clients know it from OpenAI: an item ends before the next begins. Pieces of several
calls that come in turns are kept back until their call has its turn; text that comes after its item has
ended begins a new one. Knows nothing of the response around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.surfaces.responses_checks import without
from gateway.surfaces.responses_items import (
    CUSTOM,
    FUNCTION,
    IN_PROGRESS,
    QUEUED,
    REASONING,
    REFUSAL,
    SUMMARY,
    TEXT,
    CallForm,
    CallItem,
    Tell,
    TextItem,
    untold,
)

Json = dict[str, Any]
_CALL_FIELDS = frozenset({"index", "id", "type", "function", "custom"})


class Output:
    """The output items of one response."""

    def __init__(self, interaction_id: str, tell: Tell | None = None, *, summarised: bool = False) -> None:
        self._interaction_id = interaction_id
        self._tell = tell or untold
        self._thinking_form = SUMMARY if summarised else REASONING
        self._items: list[TextItem | CallItem] = []
        self._turn = 0  # the place of the item that is being told
        self._text: TextItem | None = None  # the last item, if it is a text
        self._calls: dict[int, CallItem] = {}
        self._nameless: list[CallItem] = []  # calls whose name has not come yet

    def take(self, message: Json, logprobs: list[Json]) -> None:
        """A message, or the next piece of one."""
        thought = message.get("reasoning_content") or message.get("reasoning")
        if thought and isinstance(thought, str):
            self._think(thought)
        if blocks := message.get("thinking_blocks"):
            self._text_item("reasoning").seal(blocks)
        content = message.get("content")
        if isinstance(content, str):
            if content or logprobs:
                self._text_item("message").add(TEXT, content, logprobs)
        elif content:
            self._take_parts(content)
        refusal = message.get("refusal")
        if refusal and isinstance(refusal, str):
            self._text_item("message").add(REFUSAL, refusal, [])
        if calls := message.get("tool_calls"):
            self._take_calls(calls)

    def end(self, *, complete: bool) -> list[Json]:
        """Nothing more comes: end all items, and give them. What a limit cut off is the last one."""
        for call in self._nameless:
            self._queue_call(call)
        for place in range(self._turn, len(self._items)):
            item = self._items[place]
            if item.status == QUEUED:
                item.begin()
            item.end("completed" if complete or place + 1 < len(self._items) else "incomplete")
        return [item.written() for item in self._items]

    def cut(self) -> list[Json]:
        """What was told of an answer that broke in the middle. No events: there is nothing more to tell."""
        told = self._items[: self._turn + 1]
        if told:
            told[-1].status = "incomplete"
        return [item.written() for item in told]

    # -- turns

    def _queue(self, item: TextItem | CallItem) -> None:
        self._text = item if isinstance(item, TextItem) else None
        self._items.append(item)
        self._advance()

    def _advance(self) -> None:
        """Tell as far as it goes: the next item has to wait until the one before it is whole."""
        while True:
            item = self._items[self._turn]
            if item.status == QUEUED:
                item.begin()
            if self._turn + 1 == len(self._items) or not item.is_whole:
                return
            item.end("completed")
            self._turn += 1

    # -- texts

    def _think(self, text: str) -> None:
        self._text_item("reasoning").add(self._thinking_form, text, [])

    def _text_item(self, kind: str) -> TextItem:
        item = self._text
        if item is not None and item.kind == kind:
            return item
        place = len(self._items)
        item = TextItem(kind, self._id("msg" if kind == "message" else "rs", place), place, self._tell)
        self._queue(item)
        return item

    def _take_parts(self, content: Any) -> None:
        """A content in parts, as some providers write it beside their thinking."""
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict):
                continue
            for thought in _thoughts(part.get("thinking")):
                self._think(thought)
            for form in (TEXT, REFUSAL):
                text = part.get(form.field)
                if text and isinstance(text, str):
                    self._text_item("message").add(form, text, [])

    # -- calls

    def _take_calls(self, calls: Any) -> None:
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                self._take_call(call, place)

    def _take_call(self, piece: Json, place: int) -> None:
        form = CUSTOM if isinstance(piece.get("custom"), dict) else FUNCTION
        holder = piece.get(form.kind)
        holder = holder if isinstance(holder, dict) else {}
        name, text = _string(holder, "name"), _string(holder, form.field)
        index = piece.get("index")
        call = self._call(index if isinstance(index, int) else place, form, _string(piece, "id"), name)
        if len(piece) > 2:  # an index and a text are nothing to keep
            call.extra.update(without(piece, _CALL_FIELDS))
        if name and not call.name:
            call.name = name
            self._nameless.remove(call)
            self._queue_call(call)
        if text:
            call.add(text)
            if call.status == IN_PROGRESS and self._turn + 1 < len(self._items):
                self._advance()

    def _call(self, index: int, form: CallForm, call_id: str, name: str) -> CallItem:
        call = self._calls.get(index)
        # Some providers give all calls of an answer the same index.
        if call is None or (name and call.name and call_id and call_id != call.call_id):
            self._calls[index] = call = CallItem(form, call_id, self._tell)
            self._nameless.append(call)
        call.call_id = call.call_id or call_id
        return call

    def _queue_call(self, call: CallItem) -> None:
        place = len(self._items)
        call.call_id = call.call_id or self._id("call", place)
        call.put(self._id(call.form.prefix, place), place)
        self._queue(call)

    def _id(self, prefix: str, place: int) -> str:
        return f"{prefix}_{self._interaction_id}_{place}"


def _string(source: Json, name: str) -> str:
    value = source.get(name)
    return value if isinstance(value, str) else ""


def _thoughts(thinking: Any) -> Iterator[str]:
    """The texts of a part of thinking: a string, or parts of text again."""
    parts = thinking if isinstance(thinking, list) else [{"text": thinking}]
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else None
        if text and isinstance(text, str):
            yield text


def logprobs_of(choice: Json) -> list[Json]:
    """The log probabilities of a choice's text, with every field that a response must have."""
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list):
        return []
    return [{**_token(token), "top_logprobs": _tops(token)} for token in tokens if _is_token(token)]


def _tops(token: Json) -> list[Json]:
    tops = token.get("top_logprobs")
    return [_token(top) for top in tops if _is_token(top)] if isinstance(tops, list) else []


def _is_token(token: Any) -> bool:
    return (
        isinstance(token, dict)
        and isinstance(token.get("token"), str)
        and type(token.get("logprob")) in (int, float)
    )


def _token(token: Json) -> Json:
    raw = token.get("bytes")
    whole = isinstance(raw, list) and all(type(byte) is int for byte in raw)
    return {"token": token["token"], "logprob": token["logprob"], "bytes": raw if whole else []}
