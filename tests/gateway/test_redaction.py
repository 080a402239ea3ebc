"""What is taken out of texts, what is left in them, and how long that takes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.redaction import redact, redact_json

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAtestkeytestkeytestkey1234\n"
    "-----END RSA PRIVATE KEY-----"
)
#: (what has to go, as what)
TRUE = [
    ("ann@example.com", "email"), ("ann.b+news@mail.example.co.uk", "email"), ("jürgen@müller.de", "email"),
    ("o_o-1@x.io", "email"),
    ("+49 170 1234567", "phone"), ("+1 (415) 555-2671", "phone"), ("+442079460958", "phone"),
    ("+49 (0)30 12345678", "phone"), ("+33 1 23 45 67 89", "phone"), ("0049 170 1234567", "phone"),
    ("(415) 555-2671", "phone"), ("415-555-2671", "phone"), ("415.555.2671", "phone"), ("1-800-555-0199",
    "phone"),
    ("030 12345678", "phone"), ("0170-1234567", "phone"), ("089/1234567", "phone"), ("020 7946 0958",
    "phone"),
    ("07700 900123", "phone"), ("01 23 45 67 89", "phone"), ("01701234567", "phone"), ("98765 43210",
    "phone"),
    ("138 1234 5678", "phone"), ("(11) 91234-5678", "phone"),
    ("4111 1111 1111 1111", "card"), ("5555555555554444", "card"), ("3782 822463 10005", "card"),
    ("4111-1111-1111-1111", "card"), ("6011000990139424", "card"),
    ("DE89 3704 0044 0532 0130 00", "iban"), ("GB29NWBK60161331926819", "iban"),
    ("FR14 2004 1010 0505 0001 3M02 606", "iban"), ("NO93 8601 1117 947", "iban"),
    ("192.168.1.10", "ip"), ("8.8.8.8", "ip"), ("2001:db8::1", "ip"), ("fe80::1ff:fe23:4567:890a", "ip"),
    ("2001:0db8:85a3:0000:0000:8a2e:0370:7334", "ip"), ("::ffff:192.0.2.1", "ip"),
    ("123-45-6789", "ssn"), ("219-09-9999", "ssn"),
    ("sk-proj-EXAMPLE-not-a-key-1234", "secret"), ("ghp_" + "EXAMPLE0" * 4 + "0000", "secret"),
    ("AKIAIOSFODNN7EXAMPLE", "secret"), (JWT, "secret"), (PEM, "secret"),
    ("ma_live_abcdefgh12345678", "secret"), ("xoxb-1234567890-abcdef", "secret"),
]  # fmt: skip
#: (the whole text, what has to go of it, as what)
LABELLED = [
    ("call me at 4155552671 today", "4155552671", "phone"), ("Tel.: 12345678", "12345678", "phone"),
    ("phone number is 5552671", "5552671", "phone"),
    ("She was born on 12 March 1984 in Rome", "12 March 1984", "date_of_birth"),
    ("DOB: 03/12/1984", "03/12/1984", "date_of_birth"), ("geboren am 12.03.1984", "12.03.1984",
    "date_of_birth"),
    ('"date of birth": "1984-03-12"', "1984-03-12", "date_of_birth"),
    ("password: hunter22hunter", "hunter22hunter", "secret"), ("API_KEY=abc123def456", "abc123def456",
    "secret"),
    ("Authorization: Bearer abc.def-123456", "abc.def-123456", "secret"),
]  # fmt: skip
FALSE = [
    "in 1984 and 2024", "from 1914-1918", "on 2024-03-12 at 10:30:45", "on 01.02.2024 10:30", "12/03/2024",
    "for $1,234,567.89", "EUR 12.345.678,90", "price 1 000 000 000", "order 4155552671",
    "invoice no. 0123456789",
    "id 12345678901234", "ISBN 978-3-16-148410-0", "version 1.2.3.4", "v10.0.0.1", "300.1.2.3", "1.2.3.4.5",
    "std::vector", "12:34:56", "00:1A:2B:3C:4D:5E", "4111 1111 1111 1112", "1234567890123456",
    "DE00 3704 0044 0532 0130 00", "000-12-3456", "666-12-3456", "@ann said hi", "a@b", "ann@localhost",
    "sk-short1", "born in 1984", "the password is required", "password: required", "token 12",
    "3.14159265358979",
    "-----BEGIN PRIVATE KEY----- is how 1 begins", "17:30-18:45", "x = 2+12345678", "1e10", "50.000.000",
    "7 8 9 10 11 12",
    "dead::beef 1", "call_4155552671", "Section 1.2.3.4", "100%", "1999-12-31T23:59:59Z", "1712345678901",
    "550e8400-e29b-41d4-a716-446655440000",
]  # fmt: skip


@pytest.mark.parametrize(("words", "kind"), TRUE, ids=range(len(TRUE)))
def test_what_identifies_is_taken_out(words: str, kind: str) -> None:
    for before, after in (("", ""), ("See ", "."), ("(", ")"), ('{"a":"', '"}'), ("漢 ", ", 2024")):
        assert redact(before + words + after) == f"{before}[{kind}]{after}"


@pytest.mark.parametrize(("text", "words", "kind"), LABELLED)
def test_what_is_labelled_is_taken_out(text: str, words: str, kind: str) -> None:
    assert redact(text) == text.replace(words, f"[{kind}]")


@pytest.mark.parametrize("text", FALSE)
def test_what_looks_like_it_stays(text: str) -> None:
    assert redact(text) == text


def test_precision_and_recall_on_the_table() -> None:
    """The tables above hold by themselves; this says what they are worth together, in running text."""
    found = sum(f"[{kind}]" in redact(f"Note: {words} and so on") for words, kind in TRUE)
    found += sum(f"[{kind}]" in redact(text) for text, _, kind in LABELLED)
    wrong = sum("[" in redact(f"Note: {text} and so on") for text in FALSE)
    assert found / (len(TRUE) + len(LABELLED)) >= 0.98
    assert found / (found + wrong) >= 0.98


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*(words for words, _ in TRUE), "and", "2024", "x", "@", "+", "漢"])))
def test_nothing_is_found_twice_and_no_line_hides_another(pieces: list[str]) -> None:
    once = redact("\n".join(pieces))
    assert redact(once) == once
    assert all(words not in once.split("\n") for words, _ in TRUE)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="1234567890 .-/()+@:aeDEsk", max_size=60) | st.text(max_size=60))
def test_any_text_can_be_redacted(text: str) -> None:
    assert isinstance(redact(text), str)


@pytest.mark.parametrize(
    "unit",
    ["a", "1", "1 ", "1-", "a@", "a.", "eyJ", "eyJaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "+1", "+1 ",
    ":",
     "012 34 ", "password:", "password: 1aaaaaaa ", "born on ", "DE89 ", "1111 ",
     "a@b.1", "(", "-",
     "4111 1111 1111 1111 "],
)  # fmt: skip
def test_time_is_linear_on_hostile_text(unit: str) -> None:
    text = unit * (1_000_000 // len(unit)) + "@1"
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 20  # a second or less for most; a quadratic one would take hours


def test_json_keeps_what_the_protocol_says() -> None:
    request = {
        "model": "m",
        "messages": [
            {"role": "user", "name": "ann@example.com", "content": [{"type": "text",
            "text": "I am ann@example.com"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f@a.io",
            "arguments": '{"to":"ann@a.io"}'}}]},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                {"type": "input_audio", "input_audio": {"data": "UklGR" * 30, "format": "wav"}},
            ]},
        ],
        "metadata": {"bob@example.com": 1, "n": 4155552671},
    }  # fmt: skip
    before = repr(request)
    assert redact_json(request) == {
        "model": "m",
        "messages": [
            {"role": "user", "name": "[email]", "content": [{"type": "text", "text": "I am [email]"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f@a.io",
            "arguments": '{"to":"[email]"}'}}]},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,[removed]"}},
                {"type": "input_audio", "input_audio": {"data": "[removed]", "format": "wav"}},
            ]},
        ],
        "metadata": {"[email]": 1, "n": 4155552671},
    }  # fmt: skip
    assert repr(request) == before
