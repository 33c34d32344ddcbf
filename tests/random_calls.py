"""Random calls of the public API on four nodes, and an oracle that is held against everything that
comes back.

`play(form, seed, steps)` starts four nodes where the form says (FORMS), makes `steps` calls that
the seed chooses, breaks and heals the network meanwhile, restarts nodes, and at last lets
everything settle. One step is one call. What must hold is written in calls/ledger.py; the first
thing that does not is raised as a Finding, with the seed, the step and the last calls. In the
simulator the same seed gives the same run to the last decision.

Each payload says who sent it to whom, which one it is, of which class and key, and its length; the
rest is filler that follows from these. So whatever arrives can be judged by itself, and all nodes
live in this one process, so that the ledger sees both ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from calls.driver import Driver, Result
from calls.ledger import KNOWN_BROKEN, Finding, Ledger
from calls.places import Loopback, Simulated

from peertalk import sim


def play(
    form: str,
    seed: int,
    steps: int,
    *,
    discovery_port: int = 0,
    without: frozenset[str] = KNOWN_BROKEN,
    ledger: Callable[[], Ledger] = Ledger,
) -> Result:
    """One run.

    Args:
        form: of FORMS.
        discovery_port: of real nodes; one that nobody else uses.
        without: those of KINDS that are left out.
        ledger: what judges; to try whether it does.

    Raises:
        Finding: what must not be, with seed, step and the last calls.
    """
    logger = logging.getLogger("peertalk")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        if form == "simulator":
            return _play_simulated(seed, steps, without, ledger)
        return _play_real(form, seed, steps, discovery_port, without, ledger)
    except Finding as finding:
        raise Finding(
            f"random calls, form {form!r}, seed {seed}, {steps} steps: {finding}"
        ) from None
    finally:
        logger.setLevel(level)


def trace_of(seed: int, steps: int, without: frozenset[str] = KNOWN_BROKEN) -> str:
    """The trace hash of a run in the simulator."""
    seen: list[str] = []
    _play_simulated(seed, steps, without, Ledger, seen.append)
    return seen[0]


def _play_simulated(
    seed: int,
    steps: int,
    without: frozenset[str],
    ledger: Callable[[], Ledger],
    trace: Callable[[str], object] | None = None,
) -> Result:
    dice = random.Random(seed)
    network = sim.Network(seed)
    driver: Driver | None = None

    async def main(net: sim.Network) -> Result:
        nonlocal driver
        driver = Driver(Simulated(net, dice), dice, steps, without)
        driver.ledger = ledger()
        return await driver.run()

    try:
        try:
            result = sim.run_in(network, main, limit="8000h")
        except Finding:
            raise
        except Exception as error:
            account = driver.account() if driver is not None else ""
            raise Finding(f"{error!r}\n  {account}") from error
        if faults := network.faults():
            raise Finding(f"the network found: {faults[:5]}")
        if trace is not None:
            trace(network.trace.hash)
        return result
    finally:
        network.close()


def _play_real(
    form: str,
    seed: int,
    steps: int,
    discovery_port: int,
    without: frozenset[str],
    ledger: Callable[[], Ledger],
) -> Result:
    factory: Any = None
    if form == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.sleep(0))  # uvloop keeps a pair of descriptors from its first loop on
    dice = random.Random(seed)
    before = _descriptors()
    troubles: list[dict[str, Any]] = []

    async def main() -> Result:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: troubles.append(context)
        )
        core = "lowmem" if form == "lowmem" else ""
        driver = Driver(Loopback(dice, core, discovery_port), dice, steps, without)
        driver.ledger = ledger()
        try:
            result = await driver.run()
        except Finding:
            raise
        except Exception as error:
            raise Finding(f"{error!r}\n  {driver.account()}") from error
        finally:
            driver.place.heal()
            for life in driver.ledger.lives:
                life.node.close_nowait()
        if troubles:
            raise Finding(f"{troubles[:3]}\n  {driver.account()}")
        return result

    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(main())
    if _descriptors() > before:
        raise Finding(f"{_descriptors() - before} descriptors are left open")
    return result


def _descriptors() -> int:
    path = "/proc/self/fd"
    return len(os.listdir(path)) if os.path.isdir(path) else 0


def main() -> None:
    """python tests/random_calls.py FORM SEED STEPS [KIND ...]: one run; KIND: of KNOWN_BROKEN, not
    left out."""
    form, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    begun = time.perf_counter()
    result = play(
        form, seed, steps, discovery_port=27_399, without=KNOWN_BROKEN - set(sys.argv[4:])
    )
    took = time.perf_counter() - begun
    print(f"{form} {seed}: {result.steps:,} steps, {result.steps / took:,.0f} a second, {result}")


if __name__ == "__main__":
    main()
