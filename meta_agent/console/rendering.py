"""From a template and its facts to a page. Everything is escaped: what models wrote is hostile input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse

from meta_agent import formats
from meta_agent.access import Identity
from meta_agent.console import markdown
from meta_agent.refusals import Refusal
from meta_agent.services import Services
from storage import flags, proposals
from storage.clock import now
from storage.vocabulary import ProposalStatus, Role

HERE = Path(__file__).parent

#: What a page says after a form was taken; the URL carries the key only, never the sentence.
NOTICES: Mapping[str, str] = {
    "approved": "Your approval is on record.",
    "rejected": "Your rejection is on record.",
    "paused": "The agent is paused. People's own proposals still go on.",
    "resumed": "The agent may act again.",
    "pause": "The pause is requested; the rollout takes it at its next look.",
    "resume": "The resumption is requested; the rollout takes it at its next look.",
    "filed": "The proposal is filed. Policy judges it now.",
}

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    autoescape=True,
    auto_reload=False,  # code and templates of one version only, also while files are being replaced
    # Documents in JSONB columns are other parts' affair: a key that one leaves out is a dash, not a crash.
    undefined=jinja2.ChainableUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _known(show: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes what is absent for what is unknown."""

    def filtered(value: Any, *arguments: Any) -> Any:
        return show(None if isinstance(value, jinja2.Undefined) else value, *arguments)

    return filtered


_environment.filters.update(
    ago=lambda moment: formats.ago(moment, now()),
    json=formats.pretty_json,
    markdown=markdown.render,
    tone=formats.tone,
    words=formats.words,
    measured=formats.measured,
    sentence=formats.sentence,
    compact=_known(formats.compact),
    ms=_known(formats.milliseconds),
    number=_known(formats.number),
    percent=_known(formats.percent),
    per_million=_known(formats.per_million),
    short_id=_known(formats.short_id),
    actor=_known(formats.actor),
    significant=_known(formats.significant),
    usd=_known(formats.usd),
)
_environment.globals.update(now=now, diff=formats.diff)


def render(template: str, **facts: Any) -> str:
    """A template as text."""
    return _environment.get_template(template).render(**facts)


async def shell(services: Services, identity: Identity) -> dict[str, Any]:
    """What every page's frame shows: who is looking, the agent's state, and how much waits."""
    async with services.database.connection() as connection:
        paused = bool(await flags.get(connection, flags.AGENT_PAUSED, False))
        waiting = await proposals.list_proposals(connection, statuses=[ProposalStatus.WAITING])
    open_proposals = [each for each in waiting if each.expires_at > now()]
    return {
        "identity": identity,
        "may_operate": identity.may(Role.OPERATOR),
        "paused": paused,
        "waiting": len(open_proposals),
    }


async def page(
    request: Request,
    services: Services,
    identity: Identity,
    template: str,
    *,
    status: int = 200,
    **facts: Any,
) -> HTMLResponse:
    """A whole page in its frame, or a part of one: the templates differ, the facts do not."""
    frame = await shell(services, identity)
    notice = NOTICES.get(request.query_params.get("done", ""))
    text = render(template, path=request.url.path, notice=notice, **frame, **facts)
    return HTMLResponse(text, status)


def error_page(request: Request, refusal: Refusal, headers: Mapping[str, str]) -> HTMLResponse:
    """A page that says what was refused and why; a bare paragraph for htmx."""
    template = "parts/refusal.html" if request.headers.get("hx-request") == "true" else "error.html"
    text = render(template, refusal=refusal, identity=getattr(request.state, "identity", None))
    return HTMLResponse(text, refusal.status, dict(headers))


def see(path: str, done: str | None = None) -> RedirectResponse:
    """Go and look at a page, after a form was taken."""
    return RedirectResponse(path + (f"?done={done}" if done else ""), status_code=303)
