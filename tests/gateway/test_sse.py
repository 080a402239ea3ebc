"""Server-sent events read the same wherever the network cuts them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import EventReader

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
#: Data as JSON is: no line breaks inside.
DATA = st.binary(min_size=1, max_size=30).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"") or b"x")
NOISE = st.sampled_from([b": a comment", b"event: message", b"id: 7", b"retry: 10", b"unknown", b":"])


@st.composite
def events(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """(bytes of a stream, the data of its events)."""
    end = draw(ENDS)
    written: list[bytes] = []
    payloads: list[bytes] = []
    for lines in draw(st.lists(st.lists(st.tuples(st.booleans(), DATA, NOISE), max_size=4), max_size=6)):
        data = []
        for is_data, payload, noise in lines:
            if is_data:
                data.append(payload)
                space = draw(st.sampled_from([b" ", b""])) if not payload.startswith(b" ") else b" "
                written.append(b"data:" + space + payload + end)
            else:
                written.append(noise + end)
        written.append(end)
        if data:
            payloads.append(b"\n".join(data))
    return b"".join(written), payloads


@given(events(), st.lists(st.integers(0, 400), max_size=12))
def test_cuts_change_nothing(stream: tuple[bytes, list[bytes]], cuts: list[int]) -> None:
    written, payloads = stream
    reader, found = EventReader(), []
    places = sorted({min(cut, len(written)) for cut in cuts} | {0, len(written)})
    for start, stop in itertools.pairwise(places):
        found += reader.feed(written[start:stop])
    # A lone CR at the very end may be half of a line's end: only more would tell.
    found += reader.feed(b"\n") if written.endswith(b"\r") else []
    assert found == payloads


def test_every_byte_may_come_alone() -> None:
    written = b"data: one\r\n\r\n: ping\r\n\r\ndata: two\r\ndata: three\r\n\r\ndata: [DONE]\r\n\r\n"
    reader = EventReader()
    found = [payload for byte in written for payload in reader.feed(bytes([byte]))]
    assert found == [b"one", b"two\nthree", b"[DONE]"]
