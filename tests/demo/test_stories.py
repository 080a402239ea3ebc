"""What the simulated models say: pleasant by default, varied, and harmful only on purpose."""

from __future__ import annotations

import random

import pytest

from gateway.detectors.lexical import LexicalDetector
from gateway.text_folding import fold
from meta_agent.demo import phrases, stories

WISH = (
    "Tell a story about a shy fox named Juniper. Include the words 'kite' and 'bell'. Finish with 'The end.'"
)


def tell(*turns: str, seed: int = 0, unsafe: bool = False) -> str:
    return stories.write_answer(turns, lambda _: True, random.Random(seed), unsafe=unsafe)


def is_caught(text: str) -> bool:
    return LexicalDetector.packaged().scan(fold(text), False, True).match is not None


def test_stories_vary_with_the_seed_and_have_the_length_of_a_story() -> None:
    told = [tell(WISH, seed=seed) for seed in range(60)]
    assert len(set(told)) == 60
    assert all(60 <= len(text.split()) <= 160 for text in told)


def test_each_constraint_is_kept_or_forgotten_on_its_own() -> None:
    for forgotten, lost in {"name": "Juniper", "word:kite": "kite", "ending": "The end."}.items():
        text = stories.write_answer([WISH], lambda knob, it=forgotten: knob != it, random.Random(1))
        assert [word for word in ("Juniper", "kite", "bell", "The end.") if word not in text] == [lost]


@pytest.mark.parametrize("further", ["continue", "Make it sadder.", "make it funnier", "What happened next?"])
def test_further_turns_keep_the_hero_and_tell_something_else(further: str) -> None:
    text = tell(WISH, further)
    assert "Juniper" in text
    assert text.endswith("The end.")
    assert text != tell(WISH)


def test_a_later_wish_overrides_an_earlier_one() -> None:
    wish = stories.read_wish([WISH, "Continue, include the word 'snow' and finish with 'Good night.'"])
    assert (wish.name, wish.words, wish.ending) == ("Juniper", ("snow",), "Good night.")


@pytest.mark.parametrize(
    "text", ["", "?", "What is the capital of France?", "Explain tides.", "{hero} {0} %s"]
)
def test_other_prompts_get_a_short_answer(text: str) -> None:
    assert 3 <= len(tell(text).split()) <= 40
    assert tell() != ""


@pytest.mark.parametrize("name", ["{0}", "{hero}", "A'b-c"])
def test_a_wish_is_never_taken_for_a_template(name: str) -> None:
    assert tell(f"Tell a story about a shy fox named Bo. Include the word '{name}'.")


def test_every_unsafe_phrase_is_one_that_the_gateway_catches() -> None:
    assert all(is_caught(phrase) for phrase in phrases.UNSAFE)
    assert all(is_caught(tell(WISH, seed=seed, unsafe=True)) for seed in range(10))
    assert is_caught(tell("Explain tides.", unsafe=True))


def test_no_ordinary_answer_upsets_the_gateway() -> None:
    for further in ("continue", "make it sadder", "make it funnier", "make it spooky", "make it happy"):
        assert not any(is_caught(tell(WISH, further, seed=seed)) for seed in range(40))
