"""Finds phrases and secret-like strings from a lexicon, on word boundaries, with no model.

Phrases are walked as a trie of words, so a lexicon of thousands costs no more than one of dozens.
Secrets are a literal start followed by a run of characters. Knows English word boundaries only:
scripts that write no spaces need a detector of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gateway.detector import Match, Scan
from gateway.text_folding import fold

_LEXICON = Path(__file__).with_name("lexicon.json")
_WORD = re.compile(r"[^\W_]+")
#: What may stand between two words of a phrase: "build a bomb", "build-a_bomb", "**build** a bomb".
_GAP = re.compile(r"[\s\-_*'\"`~,\u2010-\u201f]{1,4}")


_SPACES = str.maketrans(dict.fromkeys((chr(code) for code in range(128) if not chr(code).isalnum()), " "))


@dataclass(slots=True)
class _Node:
    """A place in the trie of words."""

    children: dict[str, _Node] = field(default_factory=dict)
    prefixes: set[str] = field(default_factory=set)  #: every beginning of every child's word
    ends: tuple[str, str] | None = None  #: category and pattern id, if a phrase is complete here


@dataclass(frozen=True, slots=True)
class _Secret:
    """A literal start and the run that must follow it."""

    pattern: str
    literal: str
    run: re.Pattern[str]
    length: int


class LexicalDetector:
    """Phrases by category, and secrets (category privacy)."""

    name = "lexical"

    def __init__(self, phrases: Mapping[str, Iterable[str]], secrets: Iterable[Mapping[str, Any]]) -> None:
        self._root = _Node()
        for category, texts in phrases.items():
            for number, text in enumerate(texts, start=1):
                self._add_phrase(category, f"{category}/{number}", text)
        self._secrets = tuple(_secret(entry) for entry in secrets)
        starts = {
            secret.literal[:size] for secret in self._secrets for size in range(1, len(secret.literal) + 1)
        }
        self._secret_starts = frozenset(starts)
        self._longest_start = max(map(len, starts), default=0)
        self._secret_ends = frozenset(start[-2:] for start in starts if len(start) > 1)
        self._by_mark = _grouped(secret.literal for secret in self._secrets)
        firsts = "".join(sorted({re.escape(secret.literal[0]) for secret in self._secrets}))
        self._first_of_secret = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    @classmethod
    def packaged(cls, path: Path = _LEXICON) -> LexicalDetector:
        """With the lexicon that ships beside this file, or another one."""
        lexicon = orjson.loads(path.read_bytes())
        return cls(lexicon["phrases"], lexicon["secrets"])

    def _add_phrase(self, category: str, pattern: str, text: str) -> None:
        node = self._root
        words = _WORD.findall(fold(text))
        if not words:
            raise ValueError(f"phrase {pattern} has no word in it: {text!r}")
        for word in words:
            node.prefixes.update(word[:size] for size in range(1, len(word) + 1))
            node = node.children.setdefault(word, _Node())
        node.ends = node.ends or (category, pattern)

    def scan(self, window: str, in_word: bool, final: bool) -> Scan:
        """See ``gateway.detector.Detector``."""
        phrase = self._scan_phrases(window, in_word, final)
        secret = self._scan_secrets(window, in_word, final)
        matches = [scan.match for scan in (phrase, secret) if scan.match is not None]
        first = min(matches, key=lambda match: match.end) if matches else None
        return Scan(first, min(phrase.hold_from, secret.hold_from))

    def is_clear(self, window: str, final: bool) -> bool:
        """See ``gateway.detector.Detector``."""
        words = _words(window)
        if not self._root.children.keys().isdisjoint(words):
            return False
        if not final and (self._may_open(window) or self._may_go_on(window, words)):
            return False
        for mark, literals in self._by_mark:
            if mark in window:
                for literal in literals:
                    if literal in window:
                        return False
        return True

    def _may_open(self, window: str) -> bool:
        """Whether the window's last characters may be the beginning of a secret's literal."""
        last = window[-2:]
        if last in self._secret_ends:
            return True
        in_word = last.isalnum() and len(last) > 1
        return not in_word and last[-1:] in self._secret_starts

    # -- phrases

    def _may_go_on(self, window: str, words: list[str]) -> bool:
        """Whether the window's last word, which may not be whole, may be the first of a phrase."""
        return bool(words) and words[-1] in self._root.prefixes and window.endswith(words[-1])

    def _scan_phrases(self, window: str, in_word: bool, final: bool) -> Scan:
        words = _words(window)
        if not words:
            return Scan(None, len(window))
        may_go_on = not final and self._may_go_on(window, words)
        if not may_go_on and self._root.children.keys().isdisjoint(words):
            return Scan(None, len(window))
        return self._walk_phrases(window, in_word, final)

    def _walk_phrases(self, window: str, in_word: bool, final: bool) -> Scan:
        spans = [found.span() for found in _WORD.finditer(window)]
        hold_from = len(window)
        first: Match | None = None
        for index, (start, _) in enumerate(spans):
            if start == 0 and in_word:
                continue
            match, is_open = self._walk(window, spans, index, final)
            if match is not None and (first is None or match.end < first.end):
                first = match
            if is_open:
                hold_from = min(hold_from, start)
        return Scan(first, hold_from)

    def _walk(
        self, window: str, spans: list[tuple[int, int]], index: int, final: bool
    ) -> tuple[Match | None, bool]:
        """Follow the trie from one word: a complete phrase, and whether more text could complete one."""
        node = self._root
        begin = spans[index][0]
        for place in range(index, len(spans)):
            start, end = spans[place]
            word = window[start:end]
            if end == len(window) and not final:
                return None, word in node.prefixes
            child = node.children.get(word)
            if child is None:
                return None, False
            if child.ends is not None:
                return Match(*child.ends, begin, end), False
            follows = spans[place + 1][0] if place + 1 < len(spans) else len(window)
            if not _GAP.fullmatch(window, end, follows):
                return None, False
            node = child
        return None, not final

    # -- secrets

    def _scan_secrets(self, window: str, in_word: bool, final: bool) -> Scan:
        hold_from = len(window) if final else self._open_secret(window, in_word)
        first: Match | None = None
        for secret in self._secrets:
            at = window.find(secret.literal)
            while at != -1:
                end, is_open = _follow(secret, window, at, in_word, final)
                if end is not None:
                    first = _earlier(first, Match("privacy", secret.pattern, at, end))
                elif is_open:
                    hold_from = min(hold_from, at)
                at = window.find(secret.literal, at + 1)
        return Scan(first, hold_from)

    def _open_secret(self, window: str, in_word: bool) -> int:
        """Where the window's end may be the beginning of a secret's literal."""
        tail = max(0, len(window) - self._longest_start)
        for found in self._first_of_secret.finditer(window, tail):
            at = found.start()
            if window[at:] in self._secret_starts and _begins_word(window, at, in_word):
                return at
        return len(window)


def _grouped(literals: Iterable[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Literals by the rarest character in them: a text without it holds none of the group."""
    groups: dict[str, list[str]] = {}
    for literal in literals:
        mark = next((character for character in literal if not character.isalnum()), literal)
        groups.setdefault(mark, []).append(literal)
    return tuple((mark, tuple(found)) for mark, found in groups.items())


def _words(window: str) -> list[str]:
    """The words of folded text. Most of it is ASCII, where two string methods are five times as fast."""
    return window.translate(_SPACES).split() if window.isascii() else _WORD.findall(window)


def _secret(entry: Mapping[str, Any]) -> _Secret:
    run = re.compile(f"[{entry['run']}]{{0,{entry['length']}}}") if entry["length"] else re.compile("")
    return _Secret(entry["id"], fold(entry["literal"]), run, entry["length"])


def _follow(secret: _Secret, window: str, at: int, in_word: bool, final: bool) -> tuple[int | None, bool]:
    """Where a secret that starts here is long enough, or whether more text could make it so."""
    if not _begins_word(window, at, in_word):
        return None, False
    start = at + len(secret.literal)
    run = secret.run.match(window, start)
    end = run.end() if run else start
    if end - start == secret.length:
        return end, False
    return None, end == len(window) and not final


def _begins_word(window: str, at: int, in_word: bool) -> bool:
    if not window[at].isalnum():
        return True
    return not window[at - 1].isalnum() if at else not in_word


def _earlier(first: Match | None, second: Match) -> Match:
    return second if first is None or second.end < first.end else first
