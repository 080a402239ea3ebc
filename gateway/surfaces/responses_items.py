"""The output items of a response: how each kind is written, and the events that tell how it grows.

A message and a reasoning hold parts of text, a call holds one text of its own. Which item a piece of an
answer belongs to is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.surfaces.responses_thinking import Sealer

Json = dict[str, Any]
#: Takes the type of an event and its fields.
Tell = Callable[[str, Json], None]

QUEUED = "queued"  #: not told yet; what comes is gathered
IN_PROGRESS = "in_progress"


def untold(_event: str, _fields: Json) -> None:
    """For a whole answer: nobody listens."""


@dataclass(frozen=True, slots=True)
class TextForm:
    """How one kind of text is written in items and events."""

    part: str  #: the type of the part
    field: str  #: where the part and the event that ends it hold the text
    event: str  #: begin of the names of its events
    part_event: str
    index: str  #: what events call the place of the part
    shelf: str  #: the field of the item that holds the parts


def _form(part: str, field: str = "text") -> TextForm:
    return TextForm(part, field, f"response.{part}", "response.content_part", "content_index", "content")


TEXT = _form("output_text")
REFUSAL = _form("refusal", "refusal")
REASONING = _form("reasoning_text")
SUMMARY = TextForm(
    part="summary_text",
    field="text",
    event="response.reasoning_summary_text",
    part_event="response.reasoning_summary_part",
    index="summary_index",
    shelf="summary",
)


@dataclass(frozen=True, slots=True)
class CallForm:
    """How one kind of call is written."""

    kind: str  #: as a chat has it
    item: str  #: as an item has it
    field: str  #: what the call is made with
    prefix: str
    event: str
    named: bool  #: whether the event that ends its text has the name


FUNCTION = CallForm(
    "function", "function_call", "arguments", "fc", "response.function_call_arguments", named=True
)
CUSTOM = CallForm(
    "custom", "custom_tool_call", "input", "ctc", "response.custom_tool_call_input", named=False
)


class _Part:
    """One text that grows."""

    __slots__ = ("_delta_event", "_logprobs", "_pieces", "_place", "_tell", "form")

    def __init__(self, form: TextForm, place: Json, tell: Tell) -> None:
        self.form = form
        self._place = place  # the item and the places that all events name
        self._tell = tell
        self._delta_event = f"{form.event}.delta"
        self._pieces: list[str] = []
        self._logprobs: list[Json] = []
        tell(f"{form.part_event}.added", {**place, "part": self.written()})

    def add(self, text: str, logprobs: list[Json]) -> None:
        self._pieces.append(text)
        if self.form is TEXT:
            self._logprobs += logprobs
            self._tell(self._delta_event, {**self._place, "delta": text, "logprobs": logprobs})
        else:
            self._tell(self._delta_event, {**self._place, "delta": text})

    def written(self) -> Json:
        part = {"type": self.form.part, self.form.field: "".join(self._pieces)}
        if self.form is TEXT:
            return {**part, "annotations": [], "logprobs": self._logprobs}
        return part

    def end(self) -> None:
        part = self.written()
        done = {**self._place, self.form.field: part[self.form.field]}
        if self.form is TEXT:
            done["logprobs"] = self._logprobs
        self._tell(f"{self.form.event}.done", done)
        self._tell(f"{self.form.part_event}.done", {**self._place, "part": part})


class TextItem:
    """A message or a reasoning: parts of text, one after the other."""

    def __init__(self, kind: str, item_id: str, place: int, tell: Tell) -> None:
        self.kind = kind
        self.status = QUEUED
        self._id = item_id
        self._place = place
        self._tell = tell
        self._gathered: list[tuple[TextForm, str, list[Json]]] = []
        self._parts: list[_Part] = []
        self._sealer = Sealer()
        self._seal: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it may end as soon as there is another: a text always may."""
        return True

    def begin(self) -> None:
        """Tell of the item, and of what was gathered of it so far."""
        self.status = IN_PROGRESS
        self._tell("response.output_item.added", {"output_index": self._place, "item": self.written()})
        for piece in self._gathered:
            self.add(*piece)

    def add(self, form: TextForm, text: str, logprobs: list[Json]) -> None:
        """More text. Text of another form begins a part of its own."""
        if self.status == QUEUED:
            self._gathered.append((form, text, logprobs))
            return
        parts = self._parts
        if not parts or parts[-1].form is not form:
            self._begin_part(form)
        parts[-1].add(text, logprobs)

    def _begin_part(self, form: TextForm) -> None:
        self._end_part()
        place = {"item_id": self._id, "output_index": self._place, form.index: len(self._parts)}
        self._parts.append(_Part(form, place, self._tell))

    def seal(self, blocks: Any) -> None:
        """Keep the signatures of thinking blocks, or of pieces of them."""
        self._sealer.take(blocks)

    def _end_part(self) -> None:
        if self._parts:
            self._parts[-1].end()

    def end(self, status: str) -> None:
        """Nothing more comes."""
        self.status = status
        self._end_part()
        self._seal = self._sealer.sealed()
        self._tell("response.output_item.done", {"output_index": self._place, "item": self.written()})

    def written(self) -> Json:
        """The item as it stands."""
        shelves: Json = {"content": []} if self.kind == "message" else {"summary": [], "content": []}
        for part in self._parts:
            shelves[part.form.shelf].append(part.written())
        item = {"id": self._id, "type": self.kind, "status": self.status, **shelves}
        if self.kind == "message":
            item["role"] = "assistant"
        elif self._seal is not None:
            item["encrypted_content"] = self._seal
        return item


class CallItem:
    """A call of a tool. Its place is known as soon as its name is."""

    def __init__(self, form: CallForm, call_id: str, tell: Tell) -> None:
        self.form = form
        self.call_id = call_id
        self.name = ""
        self.extra: Json = {}
        self.status = QUEUED
        self._tell = tell
        self._pieces: list[str] = []
        self._place: Json = {}

    def put(self, item_id: str, place: int) -> None:
        """Give the call its place."""
        self._place = {"item_id": item_id, "output_index": place}

    @property
    def is_whole(self) -> bool:
        """Whether it may end as soon as there is another: nothing can follow a closed JSON object.

        Of a custom call nobody can tell before the end.
        """
        if self.form is not FUNCTION or not self._pieces or not self._pieces[-1].endswith("}"):
            return False
        try:
            return isinstance(orjson.loads("".join(self._pieces)), dict)
        except orjson.JSONDecodeError:
            return False

    def begin(self) -> None:
        """Tell of the item, and of what was gathered of it so far."""
        gathered, self._pieces = self._pieces, []
        self.status = IN_PROGRESS
        self._tell("response.output_item.added", self._with_item())
        for text in gathered:
            self.add(text)

    def add(self, text: str) -> None:
        """More of what the call is made with. After its end only white space can come, and is left out."""
        if self.status == IN_PROGRESS:
            self._tell(f"{self.form.event}.delta", {**self._place, "delta": text})
        elif self.status != QUEUED:
            return
        self._pieces.append(text)

    def end(self, status: str) -> None:
        """Nothing more comes."""
        self.status = status
        done = {**self._place, self.form.field: "".join(self._pieces)}
        if self.form.named:
            done["name"] = self.name
        self._tell(f"{self.form.event}.done", done)
        self._tell("response.output_item.done", self._with_item())

    def _with_item(self) -> Json:
        return {"output_index": self._place["output_index"], "item": self.written()}

    def written(self) -> Json:
        """The item as it stands."""
        return {
            **self.extra,
            "id": self._place["item_id"],
            "type": self.form.item,
            "status": self.status,
            "call_id": self.call_id,
            "name": self.name,
            self.form.field: "".join(self._pieces),
        }
