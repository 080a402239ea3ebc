"""The deterministic assistant: an intent answered from storage, or filed as a proposal. No language model.

Numbers and names come from rows; what acts is filed in the operator's name and judged by policy like any
other proposal. Nothing here can approve.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from meta_agent import acting
from meta_agent.access import Identity
from meta_agent.chat_intents import Intent, Verb
from meta_agent.formats import ago, percent, usd
from meta_agent.reading.fleet import month_start, read_fleet, read_rollouts
from meta_agent.reading.governance import list_waiting, read_agent
from meta_agent.reading.models import FleetRow, RolloutRead
from meta_agent.refusals import Refusal
from meta_agent.services import Services
from storage import decisions, deployments, interactions, registry, rollouts, use_cases
from storage.clock import now
from storage.database import Connection
from storage.registry import Offering

Card = dict[str, Any]

HELP = """I answer from what is on record, and file what you ask for in your name. I never approve.

- **status**, **incidents**, **cost**, **approvals**, **decisions**
- **why was** a model **rolled back?** or **what happened to** a model
- **scan**, **rank** a use case, **test** an offering, **deploy** a release
- **roll back** a use case, **abort** a rollout
- **pause** and **resume** the agent"""


@dataclass(frozen=True)
class Reply:
    """What is said, and the cards of what was looked up or filed."""

    text: str
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One line of one operator."""

    services: Services
    identity: Identity
    intent: Intent


def card(
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    kind: str = "result",
    status: str | None = None,
    facts: Sequence[tuple[str, str]] = (),
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    link: str | None = None,
    duration_ms: float | None = None,
) -> Card:
    """A tool card as it is stored and rendered: plain text only, links to our own pages only."""
    return {
        "tool": tool,
        "arguments": dict(arguments or {}),
        "kind": kind,
        "status": status,
        "facts": [list(fact) for fact in facts],
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "link": link,
        "duration_ms": duration_ms,
    }


async def reply_to(turn: Turn) -> Reply:
    """The answer to one intent; a refusal is an answer too."""
    started = time.perf_counter()
    try:
        reply = await _ANSWERS[turn.intent.verb](turn)
    except Refusal as refusal:
        return Reply(refusal.message)
    taken = (time.perf_counter() - started) * 1000
    return Reply(reply.text, tuple({**each, "duration_ms": taken} for each in reply.cards))


# --- questions ------------------------------------------------------------------------


async def _status(turn: Turn) -> Reply:
    async with turn.services.database.connection() as connection:
        fleet = await read_fleet(connection)
        agent = await read_agent(connection, turn.services.settings, last=1)
    rows = [_status_row(row) for row in fleet.rows]
    columns = ("Use case", "Answers now", "Condition", "Requests, 1 h", "Failures", "Rollout")
    said = [
        f"{len(fleet.rows)} use case{'s' * (len(fleet.rows) != 1)}, "
        f"{fleet.totals.requests} requests in the last hour."
    ]
    said += ["The agent is paused."] * agent.paused
    if fleet.totals.approvals_waiting:
        said.append(f"{fleet.totals.approvals_waiting} waiting for approval.")
    return Reply(" ".join(said + agent.next[:3]), (card("status", columns=columns, rows=rows, link="/"),))


def _status_row(row: FleetRow) -> tuple[str, ...]:
    rollout = (
        f"{row.rollout.candidate.model}: {row.rollout.state} {percent(row.rollout.weight, 0)}"
        if row.rollout
        else "–"
    )
    answers = f"{row.stable.provider}/{row.stable.model}" if row.stable else "nobody"
    failures = percent(row.health.failure_rate)
    return row.use_case, answers, row.condition, str(row.health.requests), failures, rollout


async def _explain(turn: Turn) -> Reply:
    wanted = turn.intent.subject.lower().removeprefix("roll back ").removeprefix("rollback ").strip(" '\"`")
    async with turn.services.database.connection() as connection:
        found = await read_rollouts(connection, await rollouts.list_rollouts(connection, limit=100))
        matching = [each for each in found if _concerns(each, wanted)]
        if not matching:
            return await _explain_offering(connection, turn.intent.subject, wanted)
        rollout = next((each for each in matching if each.state in ("rolled_back", "aborted")), matching[0])
        if not _explains_an_end(turn.intent.subject, rollout):
            rollout = matching[0]
        incidents = await interactions.list_incidents(connection, rollout.use_case, since=rollout.created_at)
        mine = [each for each in incidents if each.rollout_id == rollout.id]
        stable = next(
            (row.stable for row in (await read_fleet(connection)).rows if row.use_case == rollout.use_case),
            None,
        )
    facts = [
        ("Use case", rollout.use_case),
        ("Candidate", f"{rollout.candidate.provider}/{rollout.candidate.model}"),
        ("Reached", percent(rollout.weight, 0) if rollout.ended_at is None else _reached(rollout)),
        ("Reason", rollout.reason or str(rollout.analysis.get("why") or "none recorded")),
        ("Incidents", str(len(mine)) + (f", latest: {mine[0].summary}" if mine else "")),
        ("Answers now", f"{stable.provider}/{stable.model}" if stable else "nobody"),
    ]
    state = rollout.state.replace("_", " ")
    text = f"{rollout.candidate.model} for {rollout.use_case}: **{state}**. {rollout.reason or ''}"
    link = f"/rollouts/{rollout.id}"
    return Reply(
        text.strip(), (card("rollout", {"id": rollout.id}, status=rollout.state, facts=facts, link=link),)
    )


def _concerns(rollout: RolloutRead, wanted: str) -> bool:
    names = (
        rollout.candidate.model,
        f"{rollout.candidate.provider}/{rollout.candidate.model}",
        rollout.id,
        rollout.use_case,
    )
    return any(wanted == name.lower() for name in names) or (
        bool(wanted) and wanted in rollout.candidate.model.lower()
    )


def _explains_an_end(subject: str, rollout: RolloutRead) -> bool:
    return rollout.state in ("rolled_back", "aborted") and bool(subject)


def _reached(rollout: RolloutRead) -> str:
    passed = [step.label for step in rollout.steps if step.status != "ahead"]
    return passed[-1] if passed else "no step"


async def _explain_offering(connection: Connection, said: str, wanted: str) -> Reply:
    offerings = await registry.list_offerings(connection, search=wanted, limit=5) if wanted else []
    if not offerings:
        return Reply(f"Nothing on record is called `{said}`: no rollout, and no offering in the catalogue.")
    best = offerings[0]
    facts = [
        ("Source", best.source),
        ("State", best.lifecycle + (", reachable" if best.reachable else ", listed only")),
        ("Retires", best.retires_at.strftime("%Y-%m-%d") if best.retires_at else "no date known"),
        ("First seen", best.first_seen_at.strftime("%Y-%m-%d %H:%M UTC")),
    ]
    text = f"{best.provider}/{best.model} was never rolled out here. This is what the catalogue knows."
    return Reply(text, (card("offering", {"id": best.id}, facts=facts, link=f"/models?search={wanted}"),))


async def _decisions(turn: Turn) -> Reply:
    async with turn.services.database.connection() as connection:
        found = await decisions.list_decisions(connection, limit=8)
    rows = [
        (
            each.at.strftime("%H:%M:%S"),
            str((each.action or {}).get("tool", "nothing")),
            each.use_case or "fleet",
            each.reason,
        )
        for each in found
    ]
    if not rows:
        return Reply("No decision is on record yet.")
    shown = card(
        "decisions", columns=("At (UTC)", "Action", "Use case", "Reason"), rows=rows, link="/decisions"
    )
    return Reply(f"The last {len(rows)} decisions, newest first.", (shown,))


async def _approvals(turn: Turn) -> Reply:
    async with turn.services.database.connection() as connection:
        waiting = await list_waiting(connection)
    if not waiting:
        return Reply("Nothing waits for a person.")
    rows = [
        (each.tool, each.use_case or "fleet", each.proposer.removeprefix("user:"), each.reason)
        for each in waiting
    ]
    shown = card("approvals", columns=("Action", "Use case", "By", "Reason"), rows=rows, link="/approvals")
    return Reply(f"{len(waiting)} waiting. Approving happens on the approvals page, by a person.", (shown,))


async def _incidents(turn: Turn) -> Reply:
    async with turn.services.database.connection() as connection:
        found = await interactions.list_incidents(connection, since=now() - timedelta(days=1), limit=1000)
    if not found:
        return Reply("No incident in the last 24 hours.")
    rows = [
        (
            each.at.strftime("%H:%M:%S"),
            each.use_case,
            each.severity,
            each.category.replace("_", " "),
            each.summary,
        )
        for each in found[:8]
    ]
    columns = ("At (UTC)", "Use case", "Severity", "Category", "Summary")
    return Reply(
        f"{len(found)} in the last 24 hours.",
        (card("incidents", columns=columns, rows=rows, link="/incidents"),),
    )


async def _cost(turn: Turn) -> Reply:
    moment = now()
    async with turn.services.database.connection() as connection:
        known = await use_cases.list_all(connection)
        rows = []
        for each in known:
            month = await interactions.spend(connection, since=month_start(moment), use_case=each.name)
            hour = await interactions.spend(connection, since=moment - timedelta(hours=1), use_case=each.name)
            budget = usd(each.budget_usd_per_month)
            share = percent(float(month) / each.budget_usd_per_month) if each.budget_usd_per_month else "–"
            rows.append((each.name, usd(month), budget, share, usd(hour)))
        total = await interactions.spend(connection, since=month_start(moment))
    shown = card(
        "cost", columns=("Use case", "This month", "Budget", "Used", "Last hour"), rows=rows, link="/"
    )
    return Reply(
        f"{usd(total)} spent this month, on live traffic, shadow copies and evaluations together.", (shown,)
    )


async def _help(turn: Turn) -> Reply:
    return Reply(HELP)


async def _unknown(turn: Turn) -> Reply:
    return Reply(HELP if not turn.intent.subject else "I did not understand that. " + HELP)


async def _approve(turn: Turn) -> Reply:
    return Reply(
        "I never approve or reject: that is a person's word, on the approvals page.",
        (card("approvals", link="/approvals"),),
    )


# --- what acts ------------------------------------------------------------------------


async def file_as(turn: Turn, tool: str, arguments: Mapping[str, str], about: str) -> Reply:
    """File a proposal in the operator's name, and show what policy says of it by now."""
    filed = await acting.file_proposal(
        turn.services,
        turn.identity,
        tool=tool,
        arguments=arguments,
        reason=f"asked for in chat by {turn.identity.name}",
    )
    outcome = str((filed.verdict or {}).get("outcome") or "unknown")
    words = {
        "allow": "Policy allows it; it is carried out next.",
        "require_approval": "Policy asks for a person before it is carried out.",
        "deny": "Policy denies it; the proposal says which rules.",
    }
    fired = [
        str(check.get("why")) for check in (filed.verdict or {}).get("checks") or [] if not check.get("ok")
    ]
    facts = [
        ("About", about),
        ("Early verdict", outcome.replace("_", " ")),
        *(("Because", why) for why in fired[:4]),
    ]
    shown = card(tool, arguments, kind="proposal", status=outcome, facts=facts, link=f"/approvals/{filed.id}")
    return Reply(f"Filed in your name. {words.get(outcome, '')}".strip(), (shown,))


async def _use_case(turn: Turn) -> str:
    async with turn.services.database.connection() as connection:
        names = [each.name for each in await use_cases.list_all(connection)]
    if turn.intent.use_case:
        if turn.intent.use_case not in names:
            raise Refusal(
                404,
                "not_found",
                f"There is no use case `{turn.intent.use_case}`. There are: {', '.join(names) or 'none'}.",
            )
        return turn.intent.use_case
    if len(names) == 1:
        return names[0]
    raise Refusal(422, "which_use_case", f"For which use case? There are: {', '.join(names) or 'none'}.")


async def _scan(turn: Turn) -> Reply:
    return await file_as(turn, "scan", {}, "every source")


async def _rank(turn: Turn) -> Reply:
    name = await _use_case(turn)
    reply = await file_as(turn, "rank", {"use_case": name}, name)
    async with turn.services.database.connection() as connection:
        ranking = await registry.latest_ranking(connection, name)
    if ranking is None:
        return reply
    rows = [
        (
            str(place),
            f"{each.get('provider')}/{each.get('model')}",
            str(each.get("list", "")).replace("_", " "),
            usd(each.get("cost_per_request_usd")),
            percent(each.get("saving_share"), 0),
        )
        for place, each in enumerate(ranking.candidates[:6], start=1)
    ]
    columns = ("#", "Model", "List", "Cost per request", "Saving")
    shown = card("ranking", {"use_case": name}, columns=columns, rows=rows, link=f"/models?use_case={name}")
    return Reply(
        f"{reply.text} Until it is done, this is the ranking of {ago(ranking.at, now())}.",
        (*reply.cards, shown),
    )


async def _test(turn: Turn) -> Reply:
    name, wanted = await _use_case(turn), turn.intent.subject
    async with turn.services.database.connection() as connection:
        offering = await registry.find_offering(connection, wanted) or await _offering_called(
            connection, wanted
        )
    return await file_as(
        turn,
        "test",
        {"use_case": name, "offering_id": offering.id},
        f"{offering.provider}/{offering.model} for {name}",
    )


async def _offering_called(connection: Connection, wanted: str) -> Offering:
    provider, _, model = wanted.rpartition("/")
    found = await registry.list_offerings(connection, search=model, reachable=True, limit=50)
    exact = [each for each in found if each.model == model and provider in ("", each.provider)]
    if len(exact) == 1:
        return exact[0]
    near = exact or found
    if not near:
        raise Refusal(
            404,
            "not_found",
            f"No reachable offering is called `{wanted}`; only those of configured providers can be tested.",
        )
    names = ", ".join(f"`{each.provider}/{each.model}`" for each in near[:6])
    raise Refusal(422, "which_offering", f"Which one? {names}.")


async def _deploy(turn: Turn) -> Reply:
    name, wanted = await _use_case(turn), turn.intent.subject
    async with turn.services.database.connection() as connection:
        known = await deployments.list_releases(connection, name)
    matching = [each for each in known if wanted in (each.id, each.model, f"{each.provider}/{each.model}")]
    if not matching:
        raise Refusal(
            404,
            "not_found",
            f"No release of {name} is or serves `{wanted}`. Test an offering first: that makes one.",
        )
    release = next((each for each in matching if each.evaluation_id), matching[0])
    return await file_as(
        turn,
        "deploy",
        {"use_case": name, "release_id": release.id},
        f"{release.provider}/{release.model} for {name}",
    )


async def _roll_back(turn: Turn) -> Reply:
    name = await _use_case(turn)
    return await file_as(turn, "rollback", {"use_case": name}, name)


async def _abort(turn: Turn) -> Reply:
    rollout_id = turn.intent.subject
    if not rollout_id:
        name = await _use_case(turn)
        async with turn.services.database.connection() as connection:
            active = await rollouts.active(connection, name)
        if active is None:
            return Reply(f"No rollout is under way for {name}.")
        rollout_id = active.id
    return await file_as(turn, "abort", {"rollout_id": rollout_id}, rollout_id)


async def _pause(turn: Turn) -> Reply:
    await acting.set_agent_paused(turn.services, turn.identity, True)
    return Reply(
        "The agent is paused: it looks and records, and starts nothing by itself.",
        (card("pause", status="paused"),),
    )


async def _resume(turn: Turn) -> Reply:
    await acting.set_agent_paused(turn.services, turn.identity, False)
    return Reply("The agent may act again.", (card("resume", status="active"),))


_ANSWERS: Mapping[Verb, Callable[[Turn], Awaitable[Reply]]] = {
    Verb.STATUS: _status,
    Verb.EXPLAIN: _explain,
    Verb.DECISIONS: _decisions,
    Verb.APPROVALS: _approvals,
    Verb.INCIDENTS: _incidents,
    Verb.COST: _cost,
    Verb.RANK: _rank,
    Verb.SCAN: _scan,
    Verb.TEST: _test,
    Verb.DEPLOY: _deploy,
    Verb.ROLL_BACK: _roll_back,
    Verb.ABORT: _abort,
    Verb.APPROVE: _approve,
    Verb.PAUSE: _pause,
    Verb.RESUME: _resume,
    Verb.HELP: _help,
    Verb.UNKNOWN: _unknown,
}
