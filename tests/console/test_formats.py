"""How things look on a page, and that model text stays text."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from meta_agent import formats
from meta_agent.console.markdown import render

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.number(1234.5), "1,234"),
        (formats.number(None), "–"),
        (formats.compact(128_000), "128k"),
        (formats.percent(0.0134), "1.3\u202f%"),
        (formats.percent(None), "–"),
        (formats.usd(0), "$0.00"),
        (formats.usd(1234.5), "$1,234.50"),
        (formats.usd(0.00041), "$0.00041"),
        (formats.per_million("0.0000025"), "$2.50"),
        (formats.per_million(None), "–"),
        (formats.milliseconds(1240), "1.24\u202fs"),
        (formats.significant(1320.4), "1,320"),
        (formats.significant(0.00607), "0.00607"),
        (formats.measured("1e+06"), "never"),
        (formats.measured("2.9e-05"), "< 0.001"),
        (formats.measured("outside every blackout"), "outside every blackout"),
        (formats.actor("user:anna"), "anna"),
        (formats.actor("rollout:ro_01m84j7968r05bs3t0vzbrr4cf"), "ro_…brr4cf"),
        (formats.ago(NOW - timedelta(minutes=7), NOW), "7 min ago"),
        (formats.ago(NOW + timedelta(hours=71, minutes=59), NOW), "in 2 d 23 h"),
        (formats.ago(None, NOW), "–"),
    ],
)
def test_values_are_shown_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_difference_is_marked_word_by_word() -> None:
    found = formats.diff("a brave fox by the hill", "a small fox by the hill")
    assert found == [("same", "a "), ("removed", "brave"), ("added", "small"), ("same", " fox by the hill")]
    assert formats.diff("one thing", "something else entirely, at length") == [
        ("same", "something else entirely, at length")
    ]
    assert "".join(text for kind, text in formats.diff("x y z", "x q z") if kind != "removed") == "x q z"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[click](javascript:alert(1)) ![x](https://evil.test/x.png)",
        "<a href='https://evil.test'>x</a>",
        "[log in again](https://evil.test/login)",
        "<p style='position:fixed' onclick=alert(1)>x</p>",
        "```\n</code></pre><img src=x onerror=alert(1)>\n```",
    ],
)
def test_model_text_brings_no_html_no_links_no_images(text: str) -> None:
    html = str(render(text))
    allowed = {"p", "em", "strong", "code", "pre", "ul", "ol", "li", "br"}
    tags = re.findall(r"<\s*/?\s*([a-zA-Z0-9]+)([^>]*)>", html)
    assert {name for name, _ in tags} <= allowed
    assert not [attributes for _, attributes in tags if attributes.strip()]


def test_plain_markdown_is_rendered() -> None:
    assert "<strong>bold</strong>" in render("**bold**")
    assert "<li>" in render("- one\n- two")
