"""The test: a candidate against what serves now, case by case, through the gateway.

Durable in chunks. A case is recorded the moment both have answered, so a killed run asks again only
what was in flight. Judging is in ``summary``; this only asks and records.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipelines.context import Context, Run
from pipelines.evaluation.checks import Check, failed_checks
from pipelines.evaluation.gateway_client import Answer, Fault, GatewayClient
from pipelines.evaluation.plan import EvaluationError, plan_cases, prepare
from pipelines.evaluation.similarity import is_no_worse, lexical_similarity
from pipelines.evaluation.summary import is_measured, judge
from storage import audit, evaluations, events
from storage.evaluations import Evaluation, EvaluationCase
from storage.vocabulary import EvaluationStatus

ACTOR = "pipeline"
#: A chunk is this many times what may be in flight: short enough to show progress.
_CHUNK_PER_PLACE = 2

__all__ = ["EvaluationError", "run_test"]


async def run_test(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate an offering for a use case; raises :class:`EvaluationError` if it cannot begin."""
    use_case, offering_id = str(arguments["use_case"]), str(arguments["offering_id"])
    context = run.context
    prepared = await run.step("prepare", partial(prepare, context, run.id, use_case, offering_id))
    evaluation_id = prepared["evaluation_id"]
    planned = await run.step("plan", partial(plan_cases, context, evaluation_id))
    size = max(1, context.evaluation.concurrency * _CHUNK_PER_PLACE)
    for number in range(math.ceil(planned["cases"] / size)):
        work = partial(_run_chunk, context, evaluation_id, number * size, size)
        chunk = await run.step(f"cases:{number}", work)
        if not chunk["measured"]:
            break  # nobody can be reached: the rest would wait as long and say as little
    return await run.step("judge", partial(_judge, context, evaluation_id))


async def _run_chunk(context: Context, evaluation_id: str, start: int, size: int) -> dict[str, Any]:
    """Ask both sides every case of a slice that was not asked yet."""
    evaluation, cases = await _load(context, evaluation_id)
    waiting = [case for case in cases[start : start + size] if case.candidate_result is None]
    async with GatewayClient(
        context.gateway_url,
        context.gateway_key,
        timeout_seconds=context.evaluation.timeout_seconds,
        concurrency=context.evaluation.concurrency,
    ) as gateway:
        await asyncio.gather(*(_run_case(context, gateway, evaluation, case) for case in waiting))
    evaluation, cases = await _load(context, evaluation_id)
    if waiting:
        await _publish_progress(context, evaluation)
    return {"measured": sum(is_measured(case) for case in cases[start : start + size])}


async def _load(context: Context, evaluation_id: str) -> tuple[Evaluation, list[EvaluationCase]]:
    async with context.database.connection() as connection:
        evaluation = await evaluations.find(connection, evaluation_id)
        if evaluation is None:
            raise EvaluationError(f"the evaluation {evaluation_id} is gone")
        return evaluation, await evaluations.list_cases(connection, evaluation_id)


async def _publish_progress(context: Context, evaluation: Evaluation) -> None:
    data = {
        "use_case": evaluation.use_case,
        "done": evaluation.cases_done,
        "planned": evaluation.cases_planned,
    }
    async with context.database.transaction() as connection:
        await events.publish(connection, kind="evaluation.progress", subject=evaluation.id, data=data)


async def _run_case(
    context: Context, gateway: GatewayClient, evaluation: Evaluation, case: EvaluationCase
) -> None:
    stable, candidate = await asyncio.gather(
        gateway.ask(evaluation.use_case, evaluation.stable_release_id, case.messages),
        gateway.ask(evaluation.use_case, evaluation.candidate_release_id, case.messages),
    )
    checks = [Check.from_json(each) for each in case.checks]
    async with context.database.transaction() as connection:
        await evaluations.record_case(
            connection, case.id, evaluation.id, **compare(checks, stable, candidate)
        )


def compare(checks: Sequence[Check], stable: Answer, candidate: Answer) -> dict[str, Any]:
    """What is recorded of a case that both were asked.

    Without stable's answer there is nothing to compare with, and whoever could not be reached was not
    measured; a candidate that was reached and failed is worse than any answer.
    """
    stable_result, candidate_result = _result(checks, stable), _result(checks, candidate)
    agrees: bool | None = None
    if stable.fault is None and candidate.fault is None:
        agrees = is_no_worse(stable_result["failed_checks"], candidate_result["failed_checks"])
        # A refusal by the guard is no answer, whatever checks the rest of it happens to pass.
        agrees = agrees and (stable.blocked or not candidate.blocked)
    elif stable.fault is None and candidate.fault is Fault.MODEL:
        agrees = False
    both = stable.fault is None and candidate.fault is None
    return {
        "stable_text": None if stable.fault else _storable(stable.text),
        "candidate_text": None if candidate.fault else _storable(candidate.text),
        "stable_result": stable_result,
        "candidate_result": candidate_result,
        "agrees": agrees,
        "lexical_similarity": lexical_similarity(stable.text, candidate.text) if both else None,
        "stable_latency_ms": stable.latency_ms,
        "candidate_latency_ms": candidate.latency_ms,
        "stable_cost_usd": stable.cost_usd,
        "candidate_cost_usd": candidate.cost_usd,
    }


def _result(checks: Sequence[Check], answer: Answer) -> dict[str, Any]:
    common = {"attempts": answer.attempts, "finish_reason": answer.finish_reason}
    if answer.fault is not None:
        error = _storable(answer.error or answer.fault.value)
        passed = False if answer.fault is Fault.MODEL else None
        return common | {"passed": passed, "failed_checks": [], "blocked": False, "error": error}
    failed = [str(check) for check in failed_checks(checks, answer.text)]
    passed = not failed and not answer.blocked
    return common | {"passed": passed, "failed_checks": failed, "blocked": answer.blocked, "error": None}


def _storable(text: str) -> str:
    """PostgreSQL takes neither NUL characters nor lone surrogates."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


async def _judge(context: Context, evaluation_id: str) -> dict[str, Any]:
    """Close the evaluation, once."""
    evaluation, cases = await _load(context, evaluation_id)
    if evaluation.status == EvaluationStatus.RUNNING:
        result = judge(cases)
        async with context.database.transaction() as connection:
            await evaluations.finish(
                connection,
                evaluation_id,
                status=result.status,
                summary=result.summary,
                reason=result.reason,
            )
            await audit.append_once(
                connection,
                actor=ACTOR,
                event="evaluation.finished",
                subject=evaluation_id,
                data={
                    "use_case": evaluation.use_case,
                    "candidate_release_id": evaluation.candidate_release_id,
                    "stable_release_id": evaluation.stable_release_id,
                    "status": result.status,
                    "reason": result.reason,
                    "summary": result.summary,
                },
            )
        evaluation, _ = await _load(context, evaluation_id)
    return {
        "evaluation_id": evaluation.id,
        "use_case": evaluation.use_case,
        "candidate_release_id": evaluation.candidate_release_id,
        "stable_release_id": evaluation.stable_release_id,
        "status": evaluation.status,
        "reason": evaluation.reason,
        "summary": evaluation.summary,
    }
