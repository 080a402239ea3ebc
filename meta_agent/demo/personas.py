"""The demo's cast: which provider offers which model, with which character.

The prices and qualities make the demo's plot: a stable that is good and dear, a successor that is
as good and cheap, a temptation that turns bad once it is trusted, and one that was never good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meta_agent.demo.behaviour import Behaviour


@dataclass(frozen=True, kw_only=True)
class Persona:
    """One simulated provider."""

    name: str
    port: int  #: where it listens when nobody says otherwise
    role: str  #: its part in the plot, for people
    created: int  #: birthday of its models, seconds since 1970
    models: Mapping[str, Behaviour] = field(default_factory=dict)


_CAST = (
    Persona(
        name="lab",
        port=9101,
        role="very good and expensive: the story-teller's stable",
        created=1_767_225_600,
        models={
            "atlas-large": Behaviour(
                quality=0.9998,
                ttft_seconds=0.025,
                seconds_per_token=0.001,
                prompt_usd="0.000003",
                completion_usd="0.000015",
                context_length=200_000,
            )
        },
    ),
    Persona(
        name="thrift",
        port=9102,
        role="as good on stories at a fifth of the price: the first candidate, promoted",
        created=1_780_272_000,
        models={
            "swift-mini": Behaviour(
                quality=0.9998,
                ttft_seconds=0.018,
                seconds_per_token=0.0008,
                prompt_usd="0.0000006",
                completion_usd="0.000003",
                context_length=128_000,
            )
        },
    ),
    Persona(
        name="bargain",
        port=9103,
        role="cheaper still, appears later, and is fine until it is trusted: rolled back",
        created=1_785_542_400,
        models={
            "budget-nano": Behaviour(
                quality=0.9998,
                ttft_seconds=0.015,
                seconds_per_token=0.0008,
                prompt_usd="0.00000015",
                completion_usd="0.00000075",
                context_length=64_000,
            )
        },
    ),
    Persona(
        name="rough",
        port=9104,
        role="cheapest of all and careless: fails its evaluation",
        created=1_788_220_800,
        models={
            "rough-draft": Behaviour(
                quality=0.45,
                ttft_seconds=0.012,
                seconds_per_token=0.0006,
                prompt_usd="0.00000004",
                completion_usd="0.00000016",
                context_length=32_000,
            )
        },
    ),
)

PERSONAS: Mapping[str, Persona] = {persona.name: persona for persona in _CAST}
