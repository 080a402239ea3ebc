"""What the gateway costs, beside its peers in one run.

    python -m benchmarks.gateway                    comparison, features, profile; under two minutes
    python -m benchmarks.gateway --flip 10          one question alone; so --outage, --memory, --workers
    python -m benchmarks.gateway --everything       all questions, long, LiteLLM too

Everything on loopback and in processes of its own. CPU, user and system, is read from /proc: it is the figure
that holds on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from benchmarks.gateway import comparison, faults, features, litellm_proxy, participants, soak, workers
from benchmarks.gateway.participants import Participant
from benchmarks.gateway.processes import DidNotStartError
from benchmarks.gateway.report import Report
from benchmarks.gateway.stage import Stage, set_stage


def main() -> None:
    """Ask what was asked for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every ``finally``
    options, report = _options(), Report()
    try:
        with set_stage(options.database_url) as stage:
            _run(stage, options, report)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if options.json:
            report.write(options.json)


def _run(stage: Stage, options: argparse.Namespace, report: Report) -> None:
    single = any((options.flip, options.outage, options.memory, options.workers))
    if options.everything or not single:
        _compare(stage, options, report)
    if options.workers:
        workers.compare_workers(stage, options.rounds, options.seconds, report)
    if not any((options.flip, options.outage, options.memory)):
        return
    with participants.our_gateway(stage, name="faults") as gateway:
        if options.flip:
            faults.flip_routes(stage, gateway, options.flip, report)
        if options.outage:
            faults.take_database_away(stage, gateway, options.outage, report)
        if options.memory:
            soak.watch_memory(stage, gateway, options.memory, report)


def _compare(stage: Stage, options: argparse.Namespace, report: Report) -> None:
    effort = comparison.Effort(options.rounds, options.seconds, 2 * options.seconds, options.rate)
    with contextlib.ExitStack() as stack:
        everybody = [participants.provider_alone(stage), *_peers(stack, stage, options.litellm)]
        gateway = stack.enter_context(participants.our_gateway(stage))
        comparison.compare(stage, [*everybody, gateway], effort, report)
        features.compare_features(stage, gateway, options.rounds + 1, 0.5 * options.seconds, report)
        features.profile(stage, gateway, 3 * options.seconds, report)


def _peers(stack: contextlib.ExitStack, stage: Stage, litellm: bool) -> list[Participant]:
    """Those that can be had; of the others a line why not."""
    there, wanted = [], [participants.nginx, participants.bare_asgi]
    if litellm or litellm_proxy.is_installed():
        wanted.append(litellm_proxy.litellm_proxy)
    for peer in wanted:
        try:
            if peer is litellm_proxy.litellm_proxy:
                litellm_proxy.install()
            there.append(stack.enter_context(peer(stage)))
        except (OSError, DidNotStartError, litellm_proxy.NotInstallableError) as error:
            print(f"without {peer.__name__}: {error}", file=sys.stderr)
    return there


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, help="over which medians are taken")
    add("--seconds", type=int, help="of each measurement in a round")
    add("--rate", type=float, default=50, help="requests a second where delays are measured")
    add("--litellm", action="store_true", help="install LiteLLM's proxy into the user's cache for comparison")
    add("--workers", action="store_true", help="two workers on two cores against one")
    add("--flip", type=float, default=0, metavar="SECONDS", help="flip routes at full load")
    add("--outage", type=float, default=0, metavar="SECONDS", help="take PostgreSQL away at full load")
    add("--memory", type=int, default=0, metavar="REQUESTS", help="watch memory over so many requests")
    add("--everything", action="store_true", help="all of that: 7 rounds of 3 s, 30 s, 60 s, a million")
    add("--database-url", help="an empty database; absent: an embedded server")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if options.everything:
        options.litellm = options.workers = True
        options.flip = options.flip or 30
        options.outage = options.outage or 60
        options.memory = options.memory or 1_000_000
    options.rounds = options.rounds or (7 if options.everything else 3)
    options.seconds = options.seconds or (3 if options.everything else 1)
    return options


if __name__ == "__main__":
    main()
