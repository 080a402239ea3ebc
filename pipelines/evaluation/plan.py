"""What an evaluation is made of: the candidate's release, and the cases to ask it.

Both are fixed before the first question, so that a resumed run asks the same of the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.context import Context, PipelineError
from pipelines.evaluation.suite import Case, Suite, SuiteError, are_messages
from storage import deployments, evaluations, interactions, registry, routes, use_cases
from storage.database import notify
from storage.digests import canonical, digest
from storage.ids import derived_id
from storage.interactions import Interaction
from storage.registry import Offering
from storage.use_cases import UseCase
from storage.vocabulary import Arm, InteractionKind, InteractionStatus, Lifecycle

#: A recorded chat longer than this is not replayed: it would cost more than it tells.
_LONGEST_CHAT = 100_000
#: Of how many recent requests the distinct ones are chosen.
_LOOKED_AT_PER_CASE = 5
#: A chat with one of these asks for more than messages can replay.
_NOT_REPLAYED = frozenset({"tools", "functions", "response_format", "modalities", "audio"})


class EvaluationError(PipelineError):
    """There is nothing to evaluate; says why and what to do."""


async def prepare(context: Context, run_id: str, use_case: str, offering_id: str) -> dict[str, Any]:
    """The evaluation's row and the release it is about, made once."""
    evaluation_id = derived_id("eval", run_id)
    async with context.database.transaction() as connection:
        known = await evaluations.find(connection, evaluation_id)
    if known is None:
        await _create(context, run_id, evaluation_id, use_case, offering_id)
    return {"evaluation_id": evaluation_id}


async def _create(
    context: Context, run_id: str, evaluation_id: str, use_case_name: str, offering_id: str
) -> None:
    async with context.database.transaction() as connection:
        use_case = await use_cases.find(connection, use_case_name)
        route = await routes.current_route(connection, use_case_name)
        stable_id = route.release_of(Arm.STABLE) if route else None
        stable = await deployments.find_release(connection, stable_id) if stable_id else None
        serving = await deployments.find_deployment(connection, stable.deployment_id) if stable else None
        offering = await registry.find_offering(connection, offering_id)
        if use_case is None or stable is None or serving is None:
            raise EvaluationError(
                f"nothing serves {use_case_name!r} yet, so there is nothing to compare with"
            )
        if offering is None:
            raise EvaluationError(f"there is no offering {offering_id}; run a scan and take one of its ids")
        _check_suite(use_case)
        _check_offering(offering, (stable.provider, stable.model))
        if offering.price_input is None or offering.price_output is None:
            raise EvaluationError(f"the price of {offering.model} is not known, and unknown is not free")
        # Everything but the model stays as it is: otherwise two things would change at once.
        deployment_id = await deployments.ensure_deployment(
            connection,
            provider=offering.provider,
            model=offering.model,
            price_input=offering.price_input,
            price_output=offering.price_output,
            parameters=serving.parameters,
            system_prompt=serving.system_prompt,
            guard_profile=serving.guard_profile,
            offering_id=offering.id,
        )
        release_id = await deployments.create_release(
            connection,
            use_case=use_case.name,
            deployment_id=deployment_id,
            created_by="pipeline",
            note=f"made to be evaluated against {stable.provider}/{stable.model}",
        )
        await evaluations.create(
            connection,
            evaluation_id=evaluation_id,
            use_case=use_case.name,
            candidate_release_id=release_id,
            stable_release_id=stable.id,
            offering_id=offering.id,
            proposal_id=run_id,
            suite_digest=use_case.suite_digest or "",
        )
        await deployments.bind_evaluation(connection, release_id, evaluation_id)
        # Gateways read the release now instead of at their next poll.
        await notify(connection, routes.CHANNEL, use_case.name)


def _check_suite(use_case: UseCase) -> None:
    """Before there is a row that nobody would close."""
    try:
        Suite.from_json(use_case.suite)
    except SuiteError as error:
        raise EvaluationError(f"the suite of {use_case.name} cannot be used: {error}") from error


def _check_offering(offering: Offering, serving: tuple[str, str]) -> None:
    name = f"{offering.provider}/{offering.model}"
    if (offering.provider, offering.model) == serving:
        raise EvaluationError(f"{name} is what serves already; there is nothing to compare")
    if not offering.reachable:
        raise EvaluationError(f"{name} cannot be called: no configured provider serves it")
    if offering.lifecycle in (Lifecycle.RETIRED, Lifecycle.MISSING):
        raise EvaluationError(f"{name} is {offering.lifecycle}; there is no use in testing it")


async def plan_cases(context: Context, evaluation_id: str) -> dict[str, Any]:
    """Fix the cases: the suite's, and distinct requests that stable answered lately."""
    async with context.database.transaction() as connection:
        evaluation = await evaluations.find(connection, evaluation_id)
        if evaluation is None:
            raise EvaluationError(f"the evaluation {evaluation_id} is gone")
        use_case = await use_cases.find(connection, evaluation.use_case)
        suite = Suite.from_json(use_case.suite if use_case else None)
        # A replay that nothing is asked of always agrees: it would only dilute the suite.
        most = context.evaluation.recorded_cases if suite.recorded_checks else 0
        recorded = await interactions.recent(
            connection,
            use_case=evaluation.use_case,
            release_id=evaluation.stable_release_id,
            kind=InteractionKind.LIVE,
            status=InteractionStatus.OK,
            limit=most * _LOOKED_AT_PER_CASE,
        )
        checks = [check.to_json() for check in suite.recorded_checks]
        cases = [_suite_case(case) for case in suite.cases] + [
            {"case_id": each.id, "origin": "recorded", "messages": messages, "checks": checks}
            for each, messages in choose_recorded(recorded, most)
        ]
        await evaluations.plan_cases(connection, evaluation_id, cases)
        planned = await evaluations.list_cases(connection, evaluation_id)
    return {"cases": len(planned)}


def _suite_case(case: Case) -> dict[str, Any]:
    return {
        "case_id": case.id,
        "origin": "suite",
        "messages": [dict(each) for each in case.messages],
        "checks": [check.to_json() for check in case.checks],
    }


def choose_recorded(
    recorded: Iterable[Interaction], most: int
) -> list[tuple[Interaction, list[Mapping[str, Any]]]]:
    """The newest distinct chats that can be replayed by their messages alone."""
    chosen: list[tuple[Interaction, list[Mapping[str, Any]]]] = []
    seen: set[str] = set()
    for each in recorded:
        request = each.request or {}
        messages = request.get("messages")
        if len(chosen) >= most or not are_messages(messages) or _NOT_REPLAYED & set(request):
            continue
        name = digest(messages)
        if name in seen or len(canonical(messages)) > _LONGEST_CHAT:
            continue
        seen.add(name)
        chosen.append((each, list(messages)))
    return chosen
