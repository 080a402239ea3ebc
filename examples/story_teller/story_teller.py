"""The story-teller: a small application that asks a language model for bedtime stories.

It is written as its developers would write it without knowing what answers: the official `openai`
client, a base URL, a key, and the name of the use case where a model's name would stand. All that
it does for Meta Agent's sake is to say who is reading (`user`), which conversation it is
(`metadata`), and how it went (`/v1/feedback`).

    python examples/story_teller/story_teller.py --key ma_live_... --once
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from openai import AsyncOpenAI

# fmt: off
ANIMALS = (
    "hedgehog", "otter", "fox", "badger", "penguin", "tortoise", "mouse",
    "dragon", "owl", "whale", "rabbit", "bear", "mole", "cat",
)
ADJECTIVES = (
    "brave", "sleepy", "shy", "grumpy", "curious", "polite",
    "tiny", "clumsy", "gentle", "stubborn", "dreamy", "clever",
)
NAMES = (
    "Pip", "Marlow", "Juniper", "Oswald", "Wilma", "Barnaby",
    "Clementine", "Ferdinand", "Minerva", "Solveig", "Quill", "Hazel",
)
WORDS = (
    "lantern", "teapot", "kite", "umbrella", "compass", "violin",
    "thimble", "mirror", "bell", "ribbon", "acorn", "button",
)
# fmt: on
ENDING = "The end."
FURTHER = ("Please continue.", "Make it sadder.", "Make it funnier.", "What happened next?")
FEEDBACK_SHARE = 0.3  # most readers say nothing; the disappointed always do
HEADERS = ("x-meta-agent-variant", "x-meta-agent-deployment", "x-meta-agent-release")


@dataclass(frozen=True)
class Wish:
    """What one reader would like to hear about."""

    name: str
    word: str
    text: str

    def is_met_by(self, story: str) -> bool:
        """Did the story keep to the wish?"""
        return self.name in story and self.word in story and story.rstrip().endswith(ENDING)


@dataclass(frozen=True)
class Told:
    """One answer, and where it came from."""

    id: str
    text: str
    finish_reason: str | None
    headers: dict[str, str]  #: what the gateway says of where it came from

    @property
    def origin(self) -> str:
        """Arm and release in a few letters: ``stable ..3k9x2m``."""
        arm = self.headers.get("x-meta-agent-variant", "unknown")
        release = self.headers.get("x-meta-agent-release", "")
        return f"{arm} ..{release[-6:]}" if release else arm


@dataclass
class Tally:
    """What the status line shows; times and shares are of the latest answers."""

    requests: int = 0
    answered: int = 0
    errors: int = 0
    blocked: int = 0
    met: int = 0
    feedback: int = 0
    last_error: str = ""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=500))
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=200))

    def line(self) -> str:
        """One line for people."""
        p50 = f"{statistics.median(self.seconds) * 1000:.0f} ms" if self.seconds else "-"
        of = max(1, len(self.recent))
        shares = ", ".join(f"{who} {n * 100 // of} %" for who, n in Counter(self.recent).most_common(3))
        met = f"{self.met * 100 // max(1, self.answered)} %"
        head = f"requests {self.requests}  errors {self.errors}  blocked {self.blocked}  wish met {met}"
        return f"{head}  feedback {self.feedback}  p50 {p50}  answered by: {shares or '-'}"


class Pace:
    """Lets one caller through at a time, so that all readers together keep to a rate."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1 / per_second
        self._next = time.monotonic()

    async def wait(self) -> None:
        """Return when it is this caller's turn."""
        at = max(self._next, time.monotonic())
        self._next = at + self._gap
        await asyncio.sleep(at - time.monotonic())


def make_wish(chance: random.Random) -> Wish:
    """Think of a story to ask for."""
    name, word = chance.choice(NAMES), chance.choice(WORDS)
    hero = f"{chance.choice(ADJECTIVES)} {chance.choice(ANIMALS)} named {name}"
    text = f"Tell a story about a {hero}. Please include the word '{word}' and finish with '{ENDING}'"
    return Wish(name, word, text)


class StoryTeller:
    """The application: asks for stories, and says how they were."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self.tally = Tally()
        self._client = client
        self._model = model

    async def ask(
        self,
        messages: list[dict[str, str]],
        *,
        user: str,
        conversation: str,
        stream: bool,
        live: bool = False,
    ) -> Told:
        """Ask for the next part of a story; ``live`` prints it as it arrives."""
        request: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "user": user,
            "metadata": {"conversation_id": conversation},
        }
        began = time.perf_counter()
        create = self._client.chat.completions.with_raw_response.create
        if stream:
            raw = await create(**request, stream=True, stream_options={"include_usage": True})
            told = await self._listen(raw, live=live)
        else:
            raw = await create(**request)
            whole = raw.parse()
            choice = whole.choices[0]
            told = Told(whole.id, choice.message.content or "", choice.finish_reason, _origin_headers(raw))
        self.tally.seconds.append(time.perf_counter() - began)
        return told

    async def _listen(self, raw: Any, *, live: bool) -> Told:
        parts: list[str] = []
        identity, finish = "", None
        async for piece in raw.parse():
            identity = piece.id or identity
            for choice in piece.choices:
                finish = choice.finish_reason or finish
                parts.append(choice.delta.content or "")
                if live:
                    print(parts[-1], end="", flush=True)
        if finish is None:
            raise ConnectionError("the stream ended in the middle of the story")
        return Told(identity, "".join(parts), finish, _origin_headers(raw))

    async def rate(self, told: Told, name: str, value: bool) -> None:
        """Tell how it was. A lost opinion is no reason to disturb a reader."""
        body = {"response_id": told.id, "name": name, "value": value}
        try:
            await self._client.post("/feedback", body=body, cast_to=httpx.Response)
            self.tally.feedback += 1
        except openai.OpenAIError as error:
            self.tally.last_error = f"feedback: {error}"

    async def read(self, user: str, pace: Pace, chance: random.Random) -> None:
        """One conversation of one reader: a wish, then two or three more turns."""
        wish = make_wish(chance)
        conversation = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        messages = [{"role": "user", "content": wish.text}]
        for _ in range(chance.randint(2, 4)):
            told = await self._turn(messages, wish, user, conversation, pace, chance)
            if told is None:
                return
            further = {"role": "user", "content": chance.choice(FURTHER)}
            messages = [*messages, {"role": "assistant", "content": told.text}, further]

    async def _turn(
        self,
        messages: list[dict[str, str]],
        wish: Wish,
        user: str,
        conversation: str,
        pace: Pace,
        chance: random.Random,
    ) -> Told | None:
        """One question and answer; None when the reader gives up."""
        await pace.wait()
        self.tally.requests += 1
        try:
            told = await self.ask(
                messages, user=user, conversation=conversation, stream=chance.random() < 0.5
            )
        # ValueError: a body or an event that is no JSON. A reader shrugs at all of these and moves on.
        except (openai.OpenAIError, httpx.HTTPError, OSError, ValueError) as error:
            self.tally.errors += 1
            self.tally.last_error = f"{type(error).__name__}: {error}"
            return None
        self.tally.answered += 1
        self.tally.recent.append(told.origin)
        if told.finish_reason == "content_filter":
            self.tally.blocked += 1
            return None
        met = wish.is_met_by(told.text)
        self.tally.met += met
        if not met or chance.random() < FEEDBACK_SHARE:
            await self.rate(told, "thumb", met)
        if not met and chance.random() < 0.5:
            await self.rate(told, "regenerated", True)
        return told


def _origin_headers(raw: Any) -> dict[str, str]:
    return {name: raw.headers[name] for name in HEADERS if name in raw.headers}


async def tell_once(teller: StoryTeller, chance: random.Random) -> int:
    """Print a single story, word by word."""
    wish = make_wish(chance)
    print(f"> {wish.text}\n")
    messages = [{"role": "user", "content": wish.text}]
    try:
        told = await teller.ask(
            messages, user="reader-0", conversation=str(uuid.uuid4()), stream=True, live=True
        )
    except (openai.OpenAIError, httpx.HTTPError, OSError, ValueError) as error:
        print(f"No story tonight: {error}", file=sys.stderr)
        return 1
    print("\n")
    for name, value in told.headers.items():
        print(f"{name}: {value}")
    return 0


async def keep_reading(teller: StoryTeller, user: str, pace: Pace, chance: random.Random) -> None:
    """One reader, conversation after conversation."""
    while True:
        await teller.read(user, pace, chance)


async def show(tally: Tally, every: float) -> None:
    """The rolling status: one line that renews itself on a terminal, or a line now and then in a log."""
    while True:
        await asyncio.sleep(every)
        if sys.stdout.isatty():
            print(f"\r\x1b[2K{tally.line()}", end="", flush=True)
        else:
            print(tally.line(), flush=True)


async def serve_readers(teller: StoryTeller, options: argparse.Namespace) -> int:
    """Let all readers read until the time is up or someone says stop."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    pace = Pace(options.rps)
    readers = [
        asyncio.create_task(keep_reading(teller, f"reader-{n}", pace, random.Random(f"{options.seed}:{n}")))
        for n in range(1, options.readers + 1)
    ]
    status = asyncio.create_task(show(teller.tally, 0.5 if sys.stdout.isatty() else 5.0))
    over = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait(
        [over, status, *readers], timeout=options.duration, return_when=asyncio.FIRST_COMPLETED
    )
    for task in (over, status, *readers):
        task.cancel()
    await asyncio.gather(over, status, *readers, return_exceptions=True)
    print(f"\n{teller.tally.line()}" if sys.stdout.isatty() else teller.tally.line(), flush=True)
    if teller.tally.last_error:
        print(f"last error: {teller.tally.last_error}", file=sys.stderr)
    for task in done - {over}:
        task.result()  # a reader that broke is a bug of this program: show it
    return 0


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Reads bedtime stories through Meta Agent's gateway.")
    parser.add_argument("--gateway", default="http://127.0.0.1:8080/v1", help="base URL of the gateway")
    parser.add_argument("--key", default=os.environ.get("STORY_TELLER_KEY"), help="or STORY_TELLER_KEY")
    parser.add_argument("--model", default="story-teller", help="the name of the use case")
    parser.add_argument("--rps", type=float, default=20.0, help="requests per second, all readers together")
    parser.add_argument("--readers", type=int, default=40)
    parser.add_argument("--duration", type=float, help="seconds; default: until stopped")
    parser.add_argument("--once", action="store_true", help="tell a single story and leave")
    parser.add_argument("--seed", type=int, help="play the same readers again")
    options = parser.parse_args()
    if not options.key:
        parser.error("a key is needed: --key, or STORY_TELLER_KEY in the environment")
    if options.rps <= 0 or options.readers < 1:
        parser.error("--rps and --readers must be above 0")
    if options.seed is None:
        options.seed = random.randrange(2**32)
    return options


async def run(options: argparse.Namespace) -> int:
    """Connect and read."""
    # No retries: an error that the SDK hides is an error that nobody learns from.
    client = AsyncOpenAI(base_url=options.gateway, api_key=options.key, max_retries=0, timeout=30.0)
    async with client:
        teller = StoryTeller(client, options.model)
        if options.once:
            return await tell_once(teller, random.Random(options.seed))
        return await serve_readers(teller, options)


if __name__ == "__main__":
    sys.exit(asyncio.run(run(read_options())))
