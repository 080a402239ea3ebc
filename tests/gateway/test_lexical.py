"""The quick look of the lexical detector never says clear where the careful one finds or holds something."""

from __future__ import annotations

from pathlib import Path

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.detectors.lexical as lexical
from gateway.detectors.lexical import LexicalDetector
from gateway.text_folding import fold

DETECTOR = LexicalDetector.packaged()
LEXICON = orjson.loads(Path(lexical.__file__).with_name("lexicon.json").read_bytes())
WHOLE = [
    *(phrase for phrases in LEXICON["phrases"].values() for phrase in phrases),
    *(secret["literal"] + "a1B2" * 12 for secret in LEXICON["secrets"]),
    "the fox walked", " ", "-", "_", "é", "\u200b", "ß", "X",
]  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Beginnings and ends of what is looked for, glued together."""
    pieces = draw(
        st.lists(st.tuples(st.sampled_from(WHOLE), st.integers(0, 45), st.booleans()), min_size=1, max_size=3)
    )
    return "".join(text[:size] if front else text[-size:] for text, size, front in pieces)


@settings(max_examples=1500)
@given(texts(), st.booleans(), st.booleans())
def test_clear_means_nothing_found_and_nothing_held(text: str, in_word: bool, final: bool) -> None:
    window = fold(text)
    if DETECTOR.is_clear(window, final):
        assert DETECTOR.scan(window, in_word, final) == (None, len(window))
