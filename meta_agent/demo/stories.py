"""What a simulated model says: small stories that keep (or forget) what the reader wished for.

Pure: the same messages, dice and random source give the same words. It does not know which model
speaks, nor how the words travel. Only what ``read_wish`` understands can be kept or forgotten.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meta_agent.demo import phrases

#: Does the model keep this constraint? Asked once for each: ``name``, ``word:lantern``, ``ending``, ...
Keeps = Callable[[str], bool]

_STORY = re.compile(r"\b(story|tale|fable|adventure|chapter)\b", re.I)
_HERO = re.compile(
    r"\babout (?:an?|the|my) (?:(?P<adjective>[\w-]+) )?(?P<animal>[\w-]+)"
    r" (?:named|called) (?P<name>[A-Z][\w'-]*)"
)
_WORDS = re.compile(r"\bwords?:?\s+((?:['\"“][^'\"”]+['\"”](?:,?\s*(?:and\s+)?)?)+)", re.I)
_QUOTED = re.compile(r"['\"“]([^'\"”]+)['\"”]")
_ENDING = re.compile(r"\b(?:finish|end|close)\b[^.'\"“]{0,30}\bwith:? ['\"“](.+?)['\"”](?=\W|$)", re.I)
_SHORT = re.compile(r"\b(?:at most|no more than|under|fewer than) (\d+) words", re.I)
_JSON = re.compile(r"\bJSON\b")
_MOODS = {
    "sad": re.compile(r"\bsad(der|ly)?\b", re.I),
    "funny": re.compile(r"\b(funn(y|ier)|silly|sillier|laugh)\b", re.I),
    "spooky": re.compile(r"\b(spook(y|ier)|scary|scarier)\b", re.I),
    "happy": re.compile(r"\b(happy|happier|cheerful)\b", re.I),
}
_ONWARD = re.compile(r"\b(continue|go on|what happen(s|ed) (next|then)|next chapter|keep going)\b", re.I)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a reader asked for, over all turns of the conversation."""

    is_story: bool = False
    adjective: str = ""
    animal: str = ""
    name: str = ""
    words: tuple[str, ...] = ()
    ending: str = ""
    max_words: int | None = None
    wants_json: bool = False
    mood: str = ""  #: of the last turn
    goes_on: bool = False  #: the last turn asks for more of the same story
    last: str = ""  #: the last turn itself


def read_wish(turns: Sequence[str]) -> Wish:
    """Read the user's turns; a later turn overrides an earlier one, and the rest still stands.

    >>> wish = read_wish(["Tell a story about a shy fox named Bo with the word 'kite'.", "continue"])
    >>> wish.adjective, wish.animal, wish.name, wish.words, wish.goes_on
    ('shy', 'fox', 'Bo', ('kite',), True)
    """
    last = turns[-1] if turns else ""
    hero = _last_match(_HERO, turns)
    words = _last_match(_WORDS, turns)
    ending = _last_match(_ENDING, turns)
    short = _last_match(_SHORT, turns)
    return Wish(
        is_story=any(_STORY.search(turn) for turn in turns),
        adjective=(hero["adjective"] or "") if hero else "",
        animal=hero["animal"] if hero else "",
        name=hero["name"] if hero else "",
        words=tuple(_QUOTED.findall(words[1])) if words else (),
        ending=ending[1] if ending else "",
        max_words=int(short[1]) if short else None,
        wants_json=bool(_JSON.search(last)),
        mood=next((mood for mood, pattern in _MOODS.items() if pattern.search(last)), ""),
        goes_on=len(turns) > 1 and bool(_ONWARD.search(last)),
        last=last,
    )


def write_answer(turns: Sequence[str], keeps: Keeps, chance: random.Random, *, unsafe: bool = False) -> str:
    """Answer the last turn. ``unsafe`` puts a harmful sentence into the middle of the answer."""
    wish = read_wish(turns)
    if wish.is_story:
        return _write_story(wish, keeps, chance, unsafe=unsafe)
    answer = _write_short(wish, keeps, chance)
    return f"{answer} {chance.choice(phrases.UNSAFE)}" if unsafe else answer


def _write_story(wish: Wish, keeps: Keeps, chance: random.Random, *, unsafe: bool) -> str:
    sentences = _plot(wish, keeps, chance)
    if unsafe:
        sentences.insert(len(sentences) // 2, chance.choice(phrases.UNSAFE))
    ending = ""
    if wish.ending:
        ending = wish.ending if keeps("ending") else chance.choice(phrases.LOST_ENDINGS)
    if not wish.wants_json:
        return " ".join([*sentences, ending]).strip()
    story = " ".join([*sentences, ending]).strip()
    if not keeps("json"):
        return f"Of course, here it is! {story}"
    title = f"{wish.name or 'A friend'} and the {wish.words[0] if wish.words else 'long evening'}"
    return json.dumps({"title": title, "story": story, "moral": chance.choice(phrases.MORALS)})


def _plot(wish: Wish, keeps: Keeps, chance: random.Random) -> list[str]:
    """The sentences of a story, as many as fit; the words wished for always come early enough."""
    keeps_name = keeps("name")
    hero = wish.name if wish.name and keeps_name else f"the {wish.animal or 'traveller'}"
    cast = {
        "hero": hero,
        "kind": " ".join(filter(None, (wish.adjective, wish.animal or "traveller"))),
        "place": chance.choice(phrases.PLACES),
        "friend": chance.choice(phrases.FRIENDS),
        "weather": chance.choice(phrases.WEATHER),
    }
    kept = [word for word in wish.words if keeps(f"word:{word}")]
    found = [chance.choice(phrases.FINDS).format(word=word, a=_article(word), **cast) for word in kept]
    opening = phrases.ONWARD if wish.goes_on or (wish.mood and not wish.animal) else phrases.OPENINGS
    sentences = [chance.choice(opening).format(a=_article(cast["kind"]), **cast), *found]
    if not wish.words or len(kept) < len(wish.words):
        sentences.append(chance.choice(phrases.VAGUE_FINDS).format(**cast))
    closing = chance.choice(phrases.CLOSINGS).format(**cast)
    middle = [chance.choice(beat).format(**cast) for beat in phrases.BEATS]
    if wish.mood:
        middle[1:1] = [chance.choice(phrases.MOODS[wish.mood]).format(**cast)]
    whole = [_capital(sentence) for sentence in [*sentences, *middle, closing]]
    return _shorten(whole, wish, len(sentences))


def _shorten(sentences: list[str], wish: Wish, first: int) -> list[str]:
    """Drop sentences of the middle until the story fits the length that was asked for."""
    if wish.max_words is None:
        return sentences
    room = wish.max_words - len(wish.ending.split())
    while len(sentences) > first and sum(len(sentence.split()) for sentence in sentences) > room:
        del sentences[-2 if len(sentences) > first + 1 else -1]
    return sentences


def _write_short(wish: Wish, keeps: Keeps, chance: random.Random) -> str:
    if not keeps("answer"):
        return chance.choice(phrases.EVASIONS)
    for pattern, answer in phrases.FACTS:
        if pattern.search(wish.last):
            return answer
    topic = " ".join(wish.last.split()[:8]).rstrip("?.!,")
    return chance.choice(phrases.SHORT_ANSWERS).format(topic=topic or "that")


def _last_match(pattern: re.Pattern[str], turns: Sequence[str]) -> re.Match[str] | None:
    return next((match for turn in reversed(turns) if (match := pattern.search(turn))), None)


def _article(word: str) -> str:
    if word.endswith("s") and not word.endswith("ss"):
        return "some"
    return "an" if word[:1].lower() in "aeiou" else "a"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
