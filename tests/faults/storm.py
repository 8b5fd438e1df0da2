"""Everything at once, from a seed: kills and pauses of every role under load while the vendors misbehave in every mode.

    python -m tests.faults.storm --seed 7 --notifications 20000 --kills 200 --zombies 20
    python -m tests.faults.storm --calm --notifications 50000

The same seed gives the same schedule. Ends with 0 when every invariant of oracle.py and customer.py holds, else with what does not and the
seed; the state directory is kept then.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from local.simulator.faults import Mode
from runtime.clock import system_clock
from tests.faults.customer import customer
from tests.faults.load import Load
from tests.faults.oracle import violations
from tests.faults.world import World, world

RARE = {"kafka": 0.15, "postgres": 0.3, "clickhouse": 0.3}
"""How much less often a store is killed than a role: every role waits for it."""
ZOMBIE_S = 13.0
"""Longer than a session: its partitions have a new owner when it wakes."""
ZOMBIES = (
    "sender-email",
    "second-email",
    "sender-sms",
    "second-sms",
    "sender-push",
    "second-push",
    "router-normal",
    "timers",
    "sink",
)
VENDORS = ("smtp", "twilio", "fcm", "apns")
SETTLE_S = 300.0


@dataclass(frozen=True)
class Plan:
    """What a storm does."""

    seed: int
    notifications: int
    kills: int
    zombies: int
    every_s: float = 2.0
    """Between two kills, on average."""
    fault_s: float = 8.0
    """How long a pair of vendors' faults lasts; every mode of every vendor has its turn."""
    modes: tuple[Mode, ...] = tuple(Mode)

    rate: float | None = None
    """Notifications a second; by default what lasts as long as the kills do."""

    @property
    def per_second(self) -> float:
        return self.rate or max(10.0, self.notifications / max(20.0, self.kills * self.every_s * 0.9))


def say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def run(plan: Plan, state_dir: Path) -> list[str]:
    """The violations of one storm."""
    with world(state_dir) as made, customer(made) as told:
        since, since_seq = system_clock(), made.accept_count()
        load = Load(lambda: made.endpoints, f"storm{plan.seed}", plan.notifications, plan.per_second, plan.seed)
        load.start()
        killed, paused = _rage(made, plan, load)
        made.clear_faults()
        made.resume_paused(everyone=True)
        load.join()
        journal = load.journal
        say(
            f"accepted {len(journal.accepted):,} ({journal.retried} tries again), killed {dict(killed)}, paused {dict(paused)}"
        )
        accounting = made.settle(since, len(journal.accepted), SETTLE_S, say)
        made.calm(120)
        verification = made.verification(since, since_seq, set(journal.accepted))
        ended = killed.total() + paused.total() + len(plan.modes)
        found = violations(made, verification, accounting, journal.accepted, ended)
        found += told.violations(made, journal.accepted)
        extra = len(verification.accepts) - len(set(verification.accepts))
        flagged = sum(message.possible_duplicate for message in verification.messages)
        if not ended and (extra or flagged):
            found.append(f"{extra} duplicates and {flagged} flags although nothing went wrong")
        if len(journal.accepted) != plan.notifications:
            found.append(f"{plan.notifications - len(journal.accepted)} requests were refused: {journal.refused[:3]}")
        states = Counter(message.state for message in verification.messages)
        say(
            f"{dict(states)}, {len(verification.accepts):,} accepts, {extra} of them extra, {flagged} messages flagged; {accounting}"
        )
        return found


def _rage(made: World, plan: Plan, load: Load) -> tuple[Counter[str], Counter[str]]:
    rng = random.Random(plan.seed)
    killed: Counter[str] = Counter()
    paused: Counter[str] = Counter()
    faults = [(kind, mode) for mode in plan.modes for kind in VENDORS]
    rng.shuffle(faults)
    next_fault = next_kill = time.monotonic() + 2
    zombie_every = max(1, plan.kills // max(1, plan.zombies))
    turn = 0
    while killed.total() < plan.kills or paused.total() < plan.zombies or load.running or turn < len(faults):
        time.sleep(0.1)
        made.keep()
        now = time.monotonic()
        if now >= next_fault:
            next_fault = now + plan.fault_s
            made.clear_faults()
            for _ in range(2 if len(faults) > 8 else 1):
                kind, mode = faults[turn % len(faults)] if faults else ("", Mode.SLOW)
                turn += 1
                if faults:
                    rate = 0.05 if mode is Mode.REJECT else 0.2
                    made.fault(
                        kind=kind, mode=mode.value, rate=rate, latency_ms=rng.choice((300, 12_000)), retry_after_s=1
                    )
        if now >= next_kill and killed.total() < plan.kills:
            next_kill = now + rng.uniform(0.5, 1.5) * plan.every_s
            roles = made.roles
            victim = rng.choices(roles, [RARE.get(role, 1.0) for role in roles])[0]
            if victim not in made.paused and made.signal(victim, signal.SIGKILL):
                killed[victim] += 1
                if killed.total() % 20 == 0:
                    say(f"{killed.total()} kills, {paused.total()} zombies, {len(load.journal.accepted):,} accepted")
        if paused.total() < plan.zombies and killed.total() >= paused.total() * zombie_every:
            asleep = rng.choice(ZOMBIES)
            if made.pause(asleep, ZOMBIE_S):
                paused[asleep] += 1
    return killed, paused


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--notifications", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--zombies", type=int, default=20)
    parser.add_argument("--every-s", type=float, default=2.0)
    parser.add_argument("--per-second", type=float)
    parser.add_argument("--calm", action="store_true", help="no kill, no pause, no fault: and so no duplicate")
    options = parser.parse_args()
    plan = Plan(
        options.seed, options.notifications, options.kills, options.zombies, options.every_s, rate=options.per_second
    )
    if options.calm:
        plan = replace(plan, kills=0, zombies=0, modes=(), rate=options.per_second or 200.0)
    state_dir = Path(tempfile.mkdtemp(prefix="heliograph-storm-"))
    say(
        f"seed {plan.seed}: {plan.notifications:,} notifications, {plan.kills} kills, {plan.zombies} zombies; state in {state_dir}"
    )
    found = run(plan, state_dir)
    for violation in found:
        say(f"VIOLATED: {violation}")
    if found:
        say(
            f"again: python -m tests.faults.storm --seed {plan.seed} --notifications {plan.notifications} --kills {plan.kills} "
            f"--zombies {plan.zombies}; the state is in {state_dir}"
        )
        return 1
    shutil.rmtree(state_dir)
    say("every invariant holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
