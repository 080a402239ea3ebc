"""Identifiers: unique over threads and forks, and in the order of their birth."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import ids
from storage.ids import new_id


def test_an_id_is_its_kind_and_26_digits() -> None:
    assert all(re.fullmatch(r"rel_[0-9a-hjkmnp-tv-z]{26}", new_id("rel")) for _ in range(1000))


def test_ids_sort_by_time_of_birth(monkeypatch: pytest.MonkeyPatch) -> None:
    born = []
    for moment in (0, 1, 31, 32, 1_795_000_000_000, 1_795_000_000_001, 2**48 - 1):
        monkeypatch.setattr(ids, "milliseconds", lambda moment=moment: moment)
        born.append(new_id("x"))
    assert born == sorted(born)
    assert born[0].startswith("x_0000000000")
    assert born[-1].startswith("x_7zzzzzzzzz")


def test_no_two_threads_make_the_same() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = [
            each for some in pool.map(lambda _: [new_id("t") for _ in range(5000)], range(4)) for each in some
        ]
    assert len(set(made)) == len(made)


def test_every_random_digit_takes_every_value() -> None:
    made = [new_id("x")[-16:] for _ in range(2000)]
    assert {len({each[place] for each in made}) for place in range(16)} == {32}


def test_a_forked_child_makes_ids_of_its_own() -> None:
    new_id("x")  # there are prepared parts now
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, " ".join(new_id("x")[-16:] for _ in range(20)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = set(pipe.read().split())
    assert len(theirs) == 20
    assert theirs.isdisjoint({new_id("x")[-16:] for _ in range(200)})
