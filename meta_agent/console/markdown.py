"""Model text on a page: Markdown without HTML, then sanitised. Links and images are dropped on purpose:
whoever wrote the text may be a model under attack, and an operator clicks."""

from __future__ import annotations

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

_TAGS = {"p", "br", "strong", "em", "code", "pre", "ul", "ol", "li", "blockquote", "table", "thead", "tbody",
         "tr", "th", "td", "h3", "h4", "hr"}  # fmt: skip
_markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table")


def render(text: str) -> Markup:
    """Safe HTML for the page."""
    html = nh3.clean(_markdown.render(text), tags=_TAGS, attributes={}, link_rel=None)
    return Markup(html)  # noqa: S704  # sanitised on the line above
