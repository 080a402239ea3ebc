"""The policy file: what holds after every override, and whether the rules do what they say.

Reads the file that the settings name; what a running control plane judges by is under ``/api/v1/policies``.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from meta_agent.cli.failures import Exit, usage
from meta_agent.cli.invocation import Invocation, current
from meta_agent.cli.output import make_facts, make_table

if TYPE_CHECKING:
    from policies.policy import Policy
    from policies.table import Row

app = typer.Typer(help="The rules that bound every action.", no_args_is_help=True)


@app.command("test")  # pytest would take a function called test for one of its own
def try_rules(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Print every row, not only the sums.")] = False,
) -> None:
    """Judge a table of cases generated from the policy; exits with 1 if a rule does not do what it says."""
    from policies.table import check_policy

    call = current(context)
    rows = check_policy(_load(call))
    broken = [row for row in rows if not row.ok]
    call.output.data(
        {
            "rows": len(rows),
            "broken": len(broken),
            "cases": [_row_json(row) for row in (rows if every else broken)],
        }
    )
    if every:
        call.output.show(_cases("", rows))
    else:
        call.output.show(
            make_table("", ["use case", "tool", "cases", "allow", "ask", "deny", "broken"], _sums(rows))
        )
        if broken:
            call.output.show("", _cases("Broken", broken))
    if broken:
        call.output.note(
            f"{len(broken)} of {len(rows)} cases are judged otherwise than expected.", style="red"
        )
        raise typer.Exit(Exit.FAILED)
    call.output.note(f"All {len(rows)} cases are judged as expected.", style="green")


@app.command()
def show(context: typer.Context) -> None:
    """The effective policy: tiers, tools, limits, and what use cases tighten."""
    from meta_agent.runtime import DEFAULT_POLICY

    call = current(context)
    policy = _load(call)
    call.output.data(json.loads(json.dumps(asdict(policy), default=str)) | {"digest": policy.digest})
    source = call.settings.policies or DEFAULT_POLICY
    facts = {"file": source, "digest": policy.digest, "autonomy": policy.base.autonomy}
    call.output.show(make_facts("", facts), "")
    tiers = [(tier.name, tier.approvals, list(tier.roles)) for tier in policy.tiers.values()]
    call.output.show(make_table("Tiers", ["tier", "approvals", "roles"], tiers), "")
    tools = [
        (tool.name, *tool.tiers.values(), tool.per_day, tool.spends, sorted(tool.gates), tool.is_safety)
        for tool in policy.tools.values()
    ]
    columns = ["tool", "low risk", "medium risk", "high risk", "a day", "spends", "gates", "safety"]
    call.output.show(make_table("Tools", columns, tools), "")
    call.output.show(make_facts("Limits", asdict(policy.base.limits)))
    for name, rules in policy.use_cases.items():
        base = asdict(policy.base.limits)
        tighter = {key: value for key, value in asdict(rules.limits).items() if value != base[key]}
        extra = {"autonomy": rules.autonomy, "at_least": dict(rules.at_least)}
        call.output.show("", make_facts(f"Use case {name}", {**tighter, **extra}))


def _load(call: Invocation) -> Policy:
    from meta_agent.runtime import read_policy
    from meta_agent.settings import ConfigurationError

    try:
        return read_policy(call.settings)
    except ConfigurationError as error:
        raise usage(str(error)) from None


def _sums(rows: list[Row]) -> list[tuple[object, ...]]:
    groups: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        counts = groups.setdefault((row.use_case, row.tool), Counter())
        counts.update([row.outcome.value, *([] if row.ok else ["broken"])])
    return [
        (use_case, tool, counts.total() - counts["broken"], counts["allow"], counts["require_approval"],
         counts["deny"], counts["broken"])
        for (use_case, tool), counts in groups.items()
    ]  # fmt: skip


def _cases(title: str, rows: list[Row]) -> Table:
    cells = [
        (row.use_case, row.tool, row.risk, row.case, row.expected, row.outcome, sorted(row.fired),
         "ok" if row.ok else "fail")
        for row in rows
    ]  # fmt: skip
    columns = ["use case", "tool", "risk", "case", "expected", "judged", "rules that fired", "state"]
    return make_table(title, columns, cells)


def _row_json(row: Row) -> dict[str, object]:
    return {
        **asdict(row),
        "expected_fired": sorted(row.expected_fired),
        "fired": sorted(row.fired),
        "ok": row.ok,
    }
