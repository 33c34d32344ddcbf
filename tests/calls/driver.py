"""Who makes the calls: which one is next, on which node, is thrown by dice."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple

import peertalk as pt
from calls.ledger import (
    LAST_CALLS,
    NAMES,
    NETWORK,
    SIZES,
    SKIPPED,
    Finding,
    Ledger,
    Life,
    Way,
)
from calls.places import Place
from peertalk import errors


class Call(NamedTuple):
    """A call that waits. due: when it must be over; None: it may wait for ever."""

    task: asyncio.Task[None]
    text: str
    life: Life
    due: float | None


class Result(NamedTuple):
    """How a run ended: steps that were made, messages that arrived, lives, calls by kind."""

    steps: int
    arrivals: int
    lives: int
    kinds: Counter[str]


class Driver:
    """Makes the calls.

    Args:
        without: those of KINDS that are left out.
    """

    CALLS_MAX = 40

    def __init__(
        self, place: Place, dice: random.Random, steps: int, without: frozenset[str]
    ) -> None:
        self.place, self.dice, self.steps, self.without = place, dice, steps, without
        self.ledger = Ledger()
        self.step = 0
        self.kinds: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=LAST_CALLS)
        self.calls: dict[asyncio.Task[None], Call] = {}
        self.at_once: list[Life] = []
        self.trouble: BaseException | None = None
        self.restarting = False
        self.healed_at = -1
        self.streams: list[Any] = []
        made = [
            (14.0, self.burst),
            (6.0, self.send),
            (3.0, self.send_many),
            (1.5, self.broadcast),
            (3.0, self.receive),
            (1.0, self.read_otherwise),
            (0.7, self.messages_for_a_while),
            (0.7, self.listen_for_a_while),
            (1.0, self.ping),
            (1.0, self.flags),
            (1.5, self.datagram),
            (1.0, self.receive_datagram),
            (1.0, self.wait_for),
            (2.0, self.look_up),
            (2.0, self.look),
            (2.0, self.queue),
            (1.5, self.connect),
            (2.0, self.cancel),
            (12.0, self.pause),
            (0.7 * self.has("peer_messages"), self.peer_messages),
            (0.5 * self.has("stream"), self.stream),
            (0.3 * self.has("disconnect"), self.disconnect),
            (0.15 * (self.has("reset") and place.can_reset), self.reset),
            (0.1 * (self.has("cut") and place.can_cut), self.cut),
            (0.3, self.heal),
            (0.05 * self.has("restart"), self.restart),
        ]
        self.choices = [call for _, call in made]
        self.weights = [weight for weight, _ in made]

    def has(self, kind: str) -> bool:
        """Whether this kind of calls is made."""
        return kind not in self.without

    async def run(self) -> Result:
        """Start, make the calls, settle, close."""
        try:
            for name in NAMES:
                await self.start(name)
            await self.meet()
            while self.step < self.steps:
                for call in self.dice.choices(self.choices, self.weights, k=64):
                    waits = call()
                    if waits is not None:
                        await waits
                    if self.trouble is not None:
                        raise self.trouble
                self.check_late()
            await self.settle()
            for life in self.running():
                await self.stop(life, "polite")
            await self.drop_streams()
        except Finding as finding:
            raise Finding(f"{finding}\n  {self.account()}") from finding
        return Result(self.step, self.ledger.arrivals, len(self.ledger.lives), self.kinds)

    def account(self) -> str:
        """Where the run stands, for a finding."""
        calls = "\n    ".join(self.last)
        return f"at step {self.step}, {self.place.time():.6f} s; the last calls:\n    {calls}"

    def note(self, kind: str, text: str, count: int = 1) -> None:
        """A call is made."""
        self.step += count
        self.kinds[kind] += count
        self.last.append(f"{self.step} {self.place.time():.4f} {kind} {text}")

    # Lives

    def running(self) -> list[Life]:
        """Lives that have not ended and are not about to."""
        return [life for life in self.ledger.lives if not life.closing]

    async def start(self, name: str) -> Life:
        """Start a node of that name."""
        node = await self.place.start(name)
        life = self.ledger.begin(name, node)
        life.watching.add_done_callback(self.over)
        self.read(life, "batches")
        return life

    async def meet(self) -> None:
        """Have each node know every other one."""
        for life in self.running():
            for other in self.running():
                if life is not other:
                    with contextlib.suppress(*NETWORK):
                        await life.node.connect(other.address, timeout=10)

    async def stop(self, life: Life, how: str, timeout: float = 60.0) -> None:
        """End a life, and hold what is left of it against the ledger."""
        life.closing = True
        if how == "polite":
            await life.node.aclose(timeout=timeout)
        else:
            life.node.close_nowait()
        life.ended = how
        if how == "vanish":
            self.place.net.come_back(life.node)  # type: ignore[attr-defined]
        for task in (life.watching, life.reading):
            if task is not None:
                await self.within(asyncio.wait([task]), f"{life}: a stream goes on after the end")
        for call in [call for call in self.calls.values() if call.life is life]:
            if call.task is not asyncio.current_task():
                wait = self.within(asyncio.wait([call.task]), f"{call.text} outlives its node")
                await wait
        self.ledger.close(life)

    async def within(self, waits: Coroutine[Any, Any, Any], what: str) -> Any:
        """Wait with patience."""
        try:
            return await asyncio.wait_for(waits, self.place.patience)
        except TimeoutError:
            raise Finding(f"{what}, {self.place.patience:g} s later") from None

    # Calls that wait

    def begin(
        self,
        life: Life,
        text: str,
        call: Coroutine[Any, Any, None],
        allowed: tuple[type[Exception], ...],
        timeout: float | None,
        *,
        ways: Iterable[Way] = (),
        priority: int = 1,
        quiet: bool = False,
        for_ever: bool = False,
    ) -> None:
        """Make a call that may wait. ways: those that it waits for, in the line of this class;
        quiet: without saying which numbers it was given."""
        ways = list(ways)
        for way in ways:
            way.pair.waiting[priority] += 1
            way.calls += 1
            way.quiet = way.quiet or quiet

        def no_longer(_: object) -> None:
            call.close()  # cancelled before it had begun
            for way in ways:
                way.pair.waiting[priority] -= 1
                way.calls -= 1
                if not way.calls:
                    try:
                        self.ledger.pay(way)
                    except Finding as finding:
                        self.trouble = self.trouble or finding
                if quiet or not way.calls:
                    way.quiet = way.debt is not None

        async def made() -> None:
            try:
                await call
            except errors.InvalidState as error:
                if not life.closing:
                    raise Finding(f"{text}: {error!r}") from error
            except allowed:
                pass
            except Finding:
                raise
            except Exception as error:
                raise Finding(f"{text}: {error!r}") from error

        due = None  # of a call without an end there is none
        if not for_ever:
            wait = self.place.patience if timeout is None else timeout + self.place.slack
            due = self.place.time() + wait
        task = asyncio.ensure_future(made())
        self.calls[task] = Call(task, f"{self.step} {text}", life, due)
        task.add_done_callback(self.over)
        task.add_done_callback(no_longer)

    def over(self, task: asyncio.Task[None]) -> None:
        """A call is over."""
        self.calls.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.trouble = self.trouble or error

    def check_late(self) -> None:
        """Calls that should be over."""
        now = self.place.time()
        for call in self.calls.values():
            if call.due is not None and call.due < now and call.life.ended == "":
                raise Finding(f"call {call.text} still waits, and should be over: it hangs")

    def someone(self) -> Life:
        """A life that runs."""
        return self.dice.choice(self.running())

    def peer_of(self, life: Life) -> tuple[pt.Peer, Way] | None:
        """A peer to call, and the way to it."""
        peers = list(life.node.peers.values())
        if self.has("held") and self.dice.random() < 0.1:
            peers = list(life.ways)[-6:]
        if not peers:
            return None
        peer = self.dice.choice(peers)
        way = life.way(peer)
        if way is None or (not self.has("held") and way.pair.receiver.closing):
            return None
        return peer, way

    def timeout(self) -> float | None:
        """A time-out for a call."""
        return self.dice.choice((None, None, 0, 0.001, 0.05, 1.0, 5.0))

    def size(self, peer: pt.Peer) -> int:
        """A length, mostly short, now and then the longest, rarely too long."""
        if self.dice.random() < 0.02:
            return peer.max_message - self.dice.choice((0, 0, 1, -1))
        return self.dice.choice(SIZES)

    def priority(self) -> pt.Priority:
        """A class."""
        return pt.Priority(self.dice.choice((0, 1, 1, 1, 1, 1, 2, 3)))

    # The calls ------------------------------------------------------------------------------------

    def line(self) -> tuple[Life, pt.Peer, Way, pt.Priority] | None:
        """Where a message may be sent now."""
        life = self.someone()
        found = self.peer_of(life)
        priority = self.priority()
        if found is None or (found[1].pair.waiting[priority] and not self.has("overlap")):
            return None
        return life, *found, priority

    def burst(self) -> None:
        chosen = self.line()
        if chosen is None or not (chosen[1].connected or self.has("stray_queue")):
            return
        _, peer, way, priority = chosen
        key = self.dice.choice((0, 0, 0, 1, 2))
        count = self.dice.choice((1, 1, 2, 5, 20, 60))
        size = self.size(peer)
        options: dict[str, Any] = {}
        if priority != 1:
            options["priority"] = priority
        if key:
            options["key"] = key
        if self.dice.random() < 0.1:
            options["no_delay"] = True
        ledger, send, made = self.ledger, peer.send_nowait, 0
        while made < count:
            made += 1
            index, payload = ledger.compose(way.pair, size, priority, key)
            try:
                number = send(payload, **options)
            except (errors.WouldBlock, errors.MessageTooLarge):
                ledger.refused(way, index)
                break
            except errors.NetworkFailure as error:
                ledger.refused(way, index)
                expected = way.pair.receiver.closing or self.has(
                    "disconnect" if isinstance(error, errors.NotConnected) else "reset"
                )
                if not expected:
                    raise Finding(f"send_nowait {way.pair}: {error!r}") from error
                break
            ledger.accepted(way, number, index)
        self.note("send_nowait", f"{way.pair} {made} of {count}, {size} B, {options}", made)

    def send(self) -> None:
        chosen = self.line()
        if chosen is None or len(self.calls) >= self.CALLS_MAX or chosen[2].debt is not None:
            return
        life, peer, way, priority = chosen
        timeout, size = self.timeout(), self.size(peer)
        # of one class only: a later one of another class may be accepted before this one is
        key = self.dice.choice((0, 0, 0, 4 + priority))
        options: dict[str, Any] = {}
        if key:
            options["key"] = key
        if timeout is not None:
            options["timeout"] = timeout
        if priority != 1:
            options["priority"] = priority
        if self.dice.random() < 0.1:
            options["no_delay"] = True
        if self.dice.random() < 0.1:
            options["connect"] = False
        text = f"{way.pair}, {size} B, {options}"
        self.note("send", text)

        async def call() -> None:
            index, payload = self.ledger.compose(way.pair, size, priority, key)
            try:
                number = await peer.send(payload, **options)
            except BaseException:
                self.ledger.refused(way, index)
                raise
            self.ledger.accepted(way, number, index)

        allowed = (*NETWORK, errors.MessageTooLarge)
        self.begin(life, f"send {text}", call(), allowed, timeout, ways=[way], priority=priority)

    def send_many(self) -> None:
        chosen = self.line()
        if chosen is None or len(self.calls) >= self.CALLS_MAX or chosen[2].quiet:
            return
        life, peer, way, priority = chosen
        timeout, size = self.timeout(), self.dice.choice(SIZES)
        count, as_list = self.dice.choice((0, 1, 5, 50, 300)), self.dice.random() < 0.5
        text = f"{way.pair} x{count}, {size} B, {priority}, {timeout}, list {as_list}"
        self.note("send_many", text)

        async def call() -> None:
            composed = [self.ledger.compose(way.pair, size, priority) for _ in range(count)]
            payloads = [payload for _, payload in composed]
            way.pair.many.update((index, composed[0][0]) for index, _ in composed)
            exactly: int | None = None
            try:
                exactly = await peer.send_many(
                    payloads if as_list else iter(payloads), priority=priority, timeout=timeout
                )
                if exactly != count:
                    raise Finding(f"send_many {text}: it says {exactly}")
            except errors.PeerTalkError as error:
                exactly = error.accepted
                raise
            finally:
                self.ledger.accepted_quietly(way, [index for index, _ in composed], exactly)

        allowed = (*NETWORK, errors.MessageTooLarge)
        self.begin(
            life,
            f"send_many {text}",
            call(),
            allowed,
            timeout,
            ways=[way],
            priority=priority,
            quiet=True,
        )

    def broadcast(self) -> None:
        life, priority, timeout = self.someone(), self.priority(), self.timeout()
        size = self.dice.choice(SIZES)
        ways = [way for peer in life.node.peers.values() if (way := life.way(peer)) is not None]
        if (
            len(self.calls) >= self.CALLS_MAX
            or any(way.quiet for way in ways)
            or (not self.has("overlap") and any(way.pair.waiting[priority] for way in ways))
            or (not self.has("held") and any(way.pair.receiver.closing for way in ways))
        ):
            return
        text = f"{life}, {size} B, {priority}, {timeout}"
        self.note("broadcast", text)

        async def call() -> None:
            there = [way for peer in life.node.peers.values() if (way := life.way(peer))]
            if there != ways:
                return  # somebody came or went meanwhile, to whom other calls may wait
            indexes, payload = self.ledger.compose_broadcast(life, there, size, priority)
            result: Any = None
            try:
                result = await life.node.broadcast(payload, priority=priority, timeout=timeout)
            finally:
                for way, index in zip(there, indexes, strict=True):
                    exactly = None if result is None else int(way.peer in result.accepted)
                    self.ledger.accepted_quietly(way, [index], exactly)
            for peer, error in result.skipped.items():
                gone = isinstance(error, errors.InvalidState) and life.closing
                if not gone and not isinstance(error, SKIPPED):
                    raise Finding(f"broadcast {text}: {peer} was skipped with {error!r}")

        self.begin(
            life,
            f"broadcast {text}",
            call(),
            (),
            timeout,
            ways=ways,
            priority=priority,
            quiet=True,
        )

    def stream(self) -> None:
        life = self.someone()
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX or found[1].quiet:
            return
        peer, way = found
        cells, give_up = self.dice.choice((1, 8, 100, 1024)), self.dice.random() < 0.3
        timeout = self.timeout()
        text = f"{way.pair}, {cells} cells, {timeout}"
        self.note("stream_out", text)

        async def call() -> None:
            data = self.ledger.compose_stream(way.pair, cells)
            told: list[tuple[int, int]] = []
            try:
                async with peer.stream_out(data, lambda *now: told.append(now)) as out:
                    if give_up:
                        return
                    await out.finished(timeout=timeout)
                if told and told[-1] != (len(data), len(data)):
                    raise Finding(f"stream_out {text}: it ended, and the progress was {told[-1]}")
            finally:
                self.ledger.accepted_quietly(way, None, None)

        allowed = (*NETWORK, errors.WouldBlock)
        self.begin(
            life, f"stream_out {text}", call(), allowed, timeout, ways=[way], priority=1, quiet=True
        )

    def receive(self) -> None:
        life, timeout = self.someone(), self.timeout()
        if len(self.calls) >= self.CALLS_MAX:
            return
        self.note("receive", f"{life}, {timeout}")

        async def call() -> None:
            message = await life.node.receive(timeout=timeout)
            self.ledger.arrived(life, message.peer, message.data)

        self.begin(
            life, f"receive {life}", call(), (errors.Timeout,), timeout, for_ever=timeout is None
        )

    def receive_datagram(self) -> None:
        life, timeout = self.someone(), self.timeout()
        if len(self.calls) >= self.CALLS_MAX:
            return
        self.note("receive_datagram", f"{life}, {timeout}")

        async def call() -> None:
            datagram = await life.node.receive_datagram(timeout=timeout)
            self.ledger.datagram(life, datagram.data)

        self.begin(
            life,
            f"receive_datagram {life}",
            call(),
            (errors.Timeout,),
            timeout,
            for_ever=timeout is None,
        )

    def read(self, life: Life, how: str) -> None:
        """Have a life read what comes, in this way; whoever did before, stops."""
        before = life.reading
        if before is not None:
            before.cancel()
        life.reading = None
        if how == "nobody":
            return

        async def reading() -> None:
            node, arrived = life.node, self.ledger.arrived
            if how == "batches":
                async for batch in node.batches():
                    for data in batch.payloads:
                        arrived(life, batch.peer, data)
            elif how == "messages":
                async for message in node.messages():
                    arrived(life, message.peer, message.data)
            else:
                with contextlib.suppress(errors.InvalidState):
                    while True:
                        message = await node.receive()
                        arrived(life, message.peer, message.data)

        life.reading = asyncio.ensure_future(reading())
        life.reading.add_done_callback(self.over)

    def read_otherwise(self) -> None:
        life = self.someone()
        how = self.dice.choice(("batches", "batches", "messages", "receive", "nobody"))
        self.note("read", f"{life} by {how}")
        self.read(life, how)

    def messages_for_a_while(self) -> None:
        life, count = self.someone(), self.dice.choice((0, 1, 20, 500))
        if len(self.calls) >= self.CALLS_MAX:
            return
        self.note("messages", f"{life}, {count}")

        async def call() -> None:
            left = count
            async for message in life.node.messages():
                self.ledger.arrived(life, message.peer, message.data)
                left -= 1
                if left <= 0:
                    break

        self.begin(life, f"messages {life}", call(), (), None, for_ever=True)

    def peer_messages(self) -> None:
        life, count = self.someone(), self.dice.choice((1, 20, 500))
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX:
            return
        peer = found[0]
        self.note("peer.messages", f"{found[1].pair}, {count}")

        async def call() -> None:
            left = count
            async for message in peer.messages():
                self.ledger.arrived(life, message.peer, message.data)
                left -= 1
                if left <= 0:
                    break

        self.begin(life, f"peer.messages {life}", call(), (), None, for_ever=True)

    def listen_for_a_while(self) -> None:
        life, count = self.someone(), self.dice.choice((0, 1, 5, 50))
        if len(self.streams) >= 12:
            self.note("events", "close the oldest")
            closing = self.streams.pop(0)
            self.begin(life, "events.aclose", closing.aclose(), (), None)
            return
        self.note("events", f"{life}, {count}")
        stream = life.node.events()
        self.streams.append(stream)

        async def call() -> None:
            left = count
            async for _ in stream:
                left -= 1
                if left <= 0:
                    break

        if len(self.calls) < self.CALLS_MAX:
            self.begin(life, f"events {life}", call(), (), None, for_ever=True)

    def ping(self) -> None:
        life, timeout = self.someone(), self.timeout()
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX:
            return
        peer = found[0]
        self.note("ping", f"{found[1].pair}, {timeout}")

        async def call() -> None:
            seconds = await peer.ping(timeout=timeout)
            if not 0 <= seconds <= self.place.patience:
                raise Finding(f"ping {found[1].pair} took {seconds} s")

        self.begin(
            life, f"ping {found[1].pair}", call(), NETWORK, timeout, for_ever=timeout is None
        )

    def flags(self) -> None:
        life = self.someone()
        flags = pt.PeerFlag(self.dice.randrange(0x10000) & 0xFF1F)
        self.note("flags", f"{life} {flags:#x}")
        life.node.flags = flags
        if life.node.flags != flags:
            raise Finding(f"{life}: flags {flags!r} were set, and are {life.node.flags!r}")

    def datagram(self) -> None:
        life = self.someone()
        found = self.peer_of(life)
        if found is None:
            return
        peer, way = found
        size = self.dice.choice((2, 10, 500, 1392))
        data = way.pair.receiver.number.to_bytes(2, "big") + self.dice.randbytes(size - 2)
        self.note("send_datagram", f"{way.pair}, {size} B")
        way.pair.receiver.datagrams.add(data)
        try:
            life.node.send_datagram(peer, data)
        except (errors.NotSupported, errors.PeerNotFound) as error:
            if peer.connected and peer.capabilities is not None:
                raise Finding(f"send_datagram {way.pair}: {error!r}") from error

    def wait_for(self) -> None:
        life, timeout = self.someone(), self.timeout()
        other = self.dice.choice(self.ledger.lives)
        how = self.dice.randrange(3)
        if len(self.calls) >= self.CALLS_MAX or other is life:
            return
        who: Any = (other.id, other.name, lambda peer: peer.name == other.name)[how]
        self.note("wait_for", f"{life} for {other}, {how}, {timeout}")

        async def call() -> None:
            peer = await life.node.wait_for(who, timeout=timeout)
            if peer.name != other.name:
                raise Finding(f"{life} waited for {other} and got {peer}")

        self.begin(
            life,
            f"wait_for {life}",
            call(),
            (errors.Timeout,),
            timeout,
            for_ever=timeout is None,
        )

    def look_up(self) -> None:
        life, other = self.someone(), self.dice.choice(self.ledger.lives)
        self.note("peers", f"{life} {other}")
        peers = life.node.peers
        try:
            if peers[other.id].id != other.id or peers[other.id] not in list(peers.values()):
                raise Finding(f"{life}: peers[{other.id}] is {peers[other.id]}")
            if peers[other.name].name != other.name:
                raise Finding(f"{life}: peers[{other.name!r}] is {peers[other.name]}")
        except errors.PeerNotFound:
            pass
        if len(peers) != len(list(peers)):
            raise Finding(f"{life}: {len(peers)} peers, of which {len(list(peers))} are shown")

    def look(self) -> None:
        life = self.someone()
        self.note("stats", f"{life}")
        self.ledger.look(life)

    def queue(self) -> None:
        found = self.peer_of(self.someone())
        if found is None:
            return
        self.note("queue", f"{found[1].pair}")
        queue = found[0].queue
        if not (
            queue.pending == found[0]._remote.accepted - found[0]._remote.reported
            and 0 <= queue.pressure <= 100
            and queue.bytes >= 0
        ):
            raise Finding(f"{found[1].pair}: {queue}")

    def connect(self) -> None:
        life, timeout = self.someone(), self.timeout()
        others = [other for other in self.running() if other is not life]
        if len(self.calls) >= self.CALLS_MAX or not others:
            return
        other = self.dice.choice(others)
        who: Any = other.address
        found = self.peer_of(life)
        if found is not None and self.dice.random() < 0.5:
            who = found[0]
        self.note("connect", f"{life} to {who}, {timeout}")

        async def call() -> None:
            await life.node.connect(who, timeout=timeout)

        self.begin(life, f"connect {life} to {who}", call(), NETWORK, timeout)

    def disconnect(self) -> None:
        life, timeout = self.someone(), self.timeout()
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX:
            return
        peer = found[0]
        self.note("disconnect", f"{found[1].pair}, {timeout}")

        async def call() -> None:
            await peer.disconnect(timeout=timeout)

        self.begin(life, f"disconnect {found[1].pair}", call(), (errors.Timeout,), timeout)

    def cancel(self) -> None:
        if self.calls:
            call = self.dice.choice(list(self.calls.values()))
            if not call.text.endswith("restart"):
                self.note("cancel", call.text)
                call.task.cancel()

    def pause(self) -> Any:
        return asyncio.sleep(self.dice.choice(self.place.pauses))

    # What goes wrong ------------------------------------------------------------------------------

    def reset(self) -> None:
        self.note("network", self.place.reset(self.dice, self.running()))

    def cut(self) -> None:
        self.note("network", self.place.cut(self.dice, self.running()))

    def heal(self) -> None:
        self.note("network", "heal")
        self.place.heal()

    def restart(self) -> None:
        if self.restarting or len(self.running()) < 4 or len(self.calls) >= self.CALLS_MAX:
            return
        life = self.someone()
        how = self.dice.choice(("polite", "polite", "killed", "vanish"))
        if how == "vanish" and not self.place.can_vanish:
            how = "killed"
        timeout = self.dice.choice((0.0, 0.1, 1.0, 5.0))
        away = self.dice.choice((0, 0, 0.1, 1, 10)) if self.place.can_vanish else 0.01
        self.note("restart", f"{life} {how}, {timeout}, away for {away} s")
        self.restarting = True
        life.closing = True
        if how == "vanish":
            self.place.net.vanish(life.node)  # type: ignore[attr-defined]

        async def call() -> None:
            try:
                await self.stop(life, how, timeout)
                await asyncio.sleep(away)
                await self.start(life.name)
            finally:
                self.restarting = False

        self.begin(life, "restart", call(), (), None)

    # The end --------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait until this holds."""
        end, pause = self.place.time() + self.place.patience, 0.01
        while not holds():
            if self.trouble is not None:
                raise self.trouble
            if self.place.time() > end:
                raise Finding(f"{what()}, {self.place.patience:g} s after everything had healed")
            await asyncio.sleep(pause)
            pause = min(pause * 1.25, 0.5)

    async def settle(self) -> None:
        """Heal everything, read everything; then everybody who was called is over, all are
        connected, one connection for each two, and nothing is missing."""
        self.note("settle", "")
        self.place.heal()
        await self.until(lambda: not self.restarting, lambda: "a restart is not over")
        for life in self.running():
            self.read(life, "batches")
        for call in list(self.calls.values()):
            if call.due is None:
                call.task.cancel()
        await self.until(
            lambda: not self.calls,
            lambda: f"still waits: {[call.text for call in self.calls.values()]}",
        )
        lives = self.running()
        for life in lives:
            for other in lives:
                if life is not other:
                    await self.say(life, other)
        await self.until(
            lambda: all(life.node.stats().links_open == len(lives) - 1 for life in lives),
            lambda: f"links: {[(str(life), life.node.stats().links_open) for life in lives]}",
        )
        await self.until(
            lambda: not any(map(self.ledger.open_numbers, lives)),
            lambda: f"without an outcome: {[self.ledger.open_numbers(life) for life in lives]}",
        )
        exact = [
            life
            for life in self.ledger.lives
            if life in lives or (life.ended == "polite" and self.has("farewell"))
        ]
        await self.until(
            lambda: not any(map(self.ledger.missing, exact)),
            lambda: next(filter(None, map(self.ledger.missing, exact))),
        )
        for life in lives:
            self.ledger.look(life)

    async def say(self, life: Life, other: Life) -> None:
        """Send a last message, however many attempts that takes."""
        end = self.place.time() + self.place.patience
        while True:
            try:
                if other.id in life.node.peers:
                    peer = life.node.peers[other.id]
                elif self.place.discovery:
                    peer = await life.node.wait_for(other.id, timeout=self.place.patience)
                else:
                    peer = await life.node.connect(other.address, timeout=self.place.patience)
                way = life.way(peer)
                if way is None or way.pair.receiver is not other:
                    raise errors.NotConnected(f"{peer} is not {other}")
                index, payload = self.ledger.compose(way.pair, 16, 1)
                try:
                    number = await peer.send(payload, timeout=self.place.patience)
                except BaseException:
                    self.ledger.refused(way, index)
                    raise
                self.ledger.accepted(way, number, index)
                return
            except NETWORK as error:
                if self.place.time() > end:
                    raise Finding(f"{life} cannot reach {other} after all: {error!r}") from error
                await asyncio.sleep(0.05)

    async def drop_streams(self) -> None:
        """Close the event streams that nobody reads."""
        for stream in self.streams:
            await stream.aclose()
