"""Reads the messages of a Messages request: content blocks become messages and parts.

What chat completions have no place for is refused by its place and its name. Marks for the cache stay
on the parts. Thinking follows litellm's convention: ``thinking_blocks`` and ``reasoning_content``.
Knows no other field of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import orjson

from gateway.errors import ApiError

Block = dict[str, Any]
Part = dict[str, Any]
Message = dict[str, Any]
Readers = Mapping[str, Callable[[Block, str], list[Part]]]


def invalid(where: str, words: str) -> ApiError:
    """A value that is none."""
    return ApiError(400, f"'{where}' must be {words}.", code="invalid_type", param=where)


def unsupported(where: str, what: str, way_out: str) -> ApiError:
    """Something that cannot be asked of a chat completion."""
    return ApiError(400, f"'{where}' {what}. {way_out}", code="unsupported_content", param=where)


def text_in(holder: Block, key: str, where: str) -> str:
    """A string that must be there."""
    value = holder.get(key)
    if not isinstance(value, str):
        raise invalid(f"{where}.{key}", "a string")
    return value


# -- messages


def read_system(content: Any) -> list[Message]:
    """The message that holds the system prompt, if there is one."""
    return [] if content is None or content in ("", []) else _system(content, "system")


def read_messages(messages: Any) -> list[Message]:
    """The conversation."""
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "a list with at least one message")
    read = (_message(message, f"messages[{place}]") for place, message in enumerate(messages))
    return list(chain.from_iterable(read))


def _message(message: Any, where: str) -> list[Message]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(where, "an object with a 'role' of user or assistant")
    return _ROLES[role](message.get("content"), f"{where}.content")


def _system(content: Any, where: str) -> list[Message]:
    return [{"role": "system", "content": _simplest(_parts(content, where, _TEXTS))}]


def _user(content: Any, where: str) -> list[Message]:
    """Results of tools come first: they answer the calls of the message before."""
    messages: list[Message] = []
    said: list[Part] = []
    for block, at in _blocks(content, where):
        if block["type"] == "tool_result":
            result, attached = _tool_result(block, at)
            messages.append(result)
            said += attached
        else:
            said += _parts_of(block, at, _SHOWN)
    if said or not messages:
        messages.append({"role": "user", "content": _simplest(said)})
    return messages


def _tool_result(block: Block, where: str) -> tuple[Message, list[Part]]:
    """The tool's message, and what such a message cannot hold: that opens the user's message after it."""
    call = text_in(block, "tool_use_id", where)
    content = block.get("content")
    parts = _parts("" if content is None else content, f"{where}.content", _SHOWN)
    texts = [part for part in parts if part["type"] == "text"]
    attached = [part for part in parts if part["type"] != "text"]
    if attached:
        texts = texts or [_text("(attached to the next message)")]
        attached.insert(0, _text(f"Attached to the result of tool call {call}:"))
    if block.get("is_error") is True:
        # A tool's message has no place for this but its text.
        first = texts[0] if texts else _text("")
        texts[:1] = [{**first, "text": f"Error: {first['text']}"}]
    return {"role": "tool", "tool_call_id": call, "content": _simplest(_cached(texts, block))}, attached


def _assistant(content: Any, where: str) -> list[Message]:
    texts: list[Part] = []
    thoughts: list[Block] = []
    calls: list[Block] = []
    for block, at in _blocks(content, where):
        if block["type"] == "tool_use":
            calls.append(_tool_call(block, at))
        elif block["type"] in _THOUGHTS:
            text_in(block, _THOUGHTS[block["type"]], at)
            thoughts.append(block)
        else:
            texts += _parts_of(block, at, _TEXTS)
    message: Message = {"role": "assistant", "content": _simplest(texts) if texts or not calls else None}
    message |= _thinking(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _thinking(thoughts: list[Block]) -> Message:
    # Without a signature a thought is not Anthropic's, which would refuse it as a block.
    blocks = [block for block in thoughts if block["type"] != "thinking" or _is_text(block.get("signature"))]
    text = "".join(block["thinking"] for block in thoughts if block["type"] == "thinking")
    fields: Message = {"reasoning_content": text} if text else {}
    return {**fields, "thinking_blocks": blocks} if blocks else fields


def _tool_call(block: Block, where: str) -> Block:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise invalid(f"{where}.input", "an object")
    try:
        text = orjson.dumps(arguments).decode()
    except TypeError:
        raise invalid(f"{where}.input", "an object that is not nested too deeply") from None
    function = {"name": text_in(block, "name", where), "arguments": text}
    call: Block = {"id": text_in(block, "id", where), "type": "function", "function": function}
    return _cached([call], block)[0]


_ROLES: dict[str, Callable[[Any, str], list[Message]]] = {
    "user": _user,
    "assistant": _assistant,
    "system": _system,
}

# -- blocks


def _blocks(content: Any, where: str) -> Iterator[tuple[Block, str]]:
    """Every block with its place. A string is a block of text."""
    if isinstance(content, str):
        content = [_text(content)]
    if not isinstance(content, list):
        raise invalid(where, "a string or a list of content blocks")
    for place, block in enumerate(content):
        at = f"{where}[{place}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise invalid(at, "an object with a 'type'")
        yield block, at


def _parts(content: Any, where: str, readers: Readers) -> list[Part]:
    return [part for block, at in _blocks(content, where) for part in _parts_of(block, at, readers)]


def _parts_of(block: Block, where: str, readers: Readers) -> list[Part]:
    read = readers.get(block["type"])
    if read is None:
        what = f"is a block of type '{block['type'][:100]}', which this gateway cannot pass on here"
        raise unsupported(where, what, "Leave it out, or say it as text.")
    return _cached(read(block, where), block)


def _cached(parts: list[Part], block: Block) -> list[Part]:
    """The block's mark for the cache, on its last part: the cache holds what ends there."""
    mark = block.get("cache_control")
    if mark is not None and parts:
        parts[-1] = {**parts[-1], "cache_control": mark}
    return parts


def _simplest(parts: list[Part]) -> str | list[Part]:
    """One plain text as a string, since not every server of chat completions reads lists everywhere."""
    if not parts:
        return ""
    only = parts[0]
    return only["text"] if len(parts) == 1 and only.keys() == {"type", "text"} else parts


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _read_text(block: Block, where: str) -> list[Part]:
    return [_text(text_in(block, "text", where))]


def _read_image(block: Block, where: str) -> list[Part]:
    source, at = _source(block, where)
    match source["type"]:
        case "base64":
            url = _data_url(source, at)
        case "url":
            url = text_in(source, "url", at)
        case _:
            raise unsupported(at, f"is an image by '{_kind(source)}'", "Send it as base64 or by its URL.")
    return [{"type": "image_url", "image_url": {"url": url}}]


def _read_document(block: Block, where: str) -> list[Part]:
    source, at = _source(block, where)
    heading = [_text(block[key]) for key in ("title", "context") if _is_text(block.get(key))]
    match source["type"]:
        case "text":
            return [*heading, _text(text_in(source, "data", at))]
        case "content":
            return heading + _parts(source.get("content"), f"{at}.content", _DOCUMENT)
        case "base64":
            title = block["title"] if _is_text(block.get("title")) else "document.pdf"
            file = {"filename": title, "file_data": _data_url(source, at)}
        case "file":
            file = {"file_id": text_in(source, "file_id", at)}
        case _:
            raise unsupported(at, f"is a document by '{_kind(source)}'", "Send it as base64 or as text.")
    context = [_text(block["context"])] if _is_text(block.get("context")) else []
    return [*context, {"type": "file", "file": file}]


def _read_search_result(block: Block, where: str) -> list[Part]:
    heading = f"{text_in(block, 'title', where)}\n{text_in(block, 'source', where)}"
    return [_text(heading), *_parts(block.get("content"), f"{where}.content", _TEXTS)]


def _source(block: Block, where: str) -> tuple[Block, str]:
    source = block.get("source")
    at = f"{where}.source"
    if not isinstance(source, dict) or not isinstance(source.get("type"), str):
        raise invalid(at, "an object with a 'type'")
    return source, at


def _data_url(source: Block, where: str) -> str:
    return f"data:{text_in(source, 'media_type', where)};base64,{text_in(source, 'data', where)}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _kind(source: Block) -> str:
    kind: str = source["type"]
    return kind[:100]


#: Kinds of thought, and the field that holds them.
_THOUGHTS = {"thinking": "thinking", "redacted_thinking": "data"}
#: What may stand where.
_TEXTS: Readers = {"text": _read_text}
_DOCUMENT: Readers = {**_TEXTS, "image": _read_image}
_SHOWN: Readers = {**_DOCUMENT, "document": _read_document, "search_result": _read_search_result}
