"""Threads, forks and signals on nodes of peertalk.sync, all at once:
python tests/storm_sync.py SECONDS [SEED]

Four nodes, with one worker, with two and polled, all connected with all. Eight threads and the main
thread make every call of these nodes and of their peers, as chance has it; nodes come and go, and
end in every way that there is; a signal comes a thousand times a second, and its handler returns or
closes a node; Ctrl-C strikes the main thread in its calls, and is caught around a call or around a
whole node; a thread forks. Every call returns within its time; what was accepted is received once
and in order, or was told as failed; what was refused is not received; in the end no lock is held.

Prints what was done, and exits with 0, or says what went wrong and exits with 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from functools import partial

from kit.inside import engine_of
from kit.storms import GUARD, HEAD, NAMES, NOBODY, OPTIONS, Storm, rage

import peertalk as pt
from peertalk import errors, sync

CALLERS = 8
WORKERS = (1, 2, 0, 1)
"""Of the four nodes."""
LATE = 10
"""Times its time-out, of GUARD / 10 at least, after which a call is said to hang."""
ENDS = ("close", "close_nowait", "a thread", "a signal", "forgotten", "interrupted")
ABROAD = os.path.dirname(os.path.abspath(__file__))
"""Where Ctrl-C is not meant: what the storm itself counts must not be cut off."""


class Account:
    """What one caller sent to one node: a byte for each number."""

    def __init__(self) -> None:
        self.sent = bytearray(1)
        """0: refused; 1: accepted; 2: the call was interrupted."""
        self.got = bytearray(1)

    def number(self, outcome: int = 1) -> int:
        """The next one, which is noted as it was accepted."""
        self.sent.append(outcome)
        self.got.append(0)
        return len(self.sent) - 1


class Threads(Storm):
    """The storm of these nodes."""

    def __init__(self, seconds: float, seed: int) -> None:
        super().__init__(seconds, seed)
        self.nodes: dict[str, sync.Node] = {}
        self.accounts: defaultdict[tuple[str, int], Account] = defaultdict(Account)
        """(who receives, sender) -> what was sent."""
        self.to_close: deque[sync.Node] = deque()
        self.to_strike: deque[sync.Node] = deque()
        self.doing: dict[str, tuple[str, float]] = {}
        """Who is in which call, and when that is late."""
        self.exposed = False
        """Whether the main thread is in a call that Ctrl-C may end."""
        self.drained = threading.Event()

    def on_signal(self, *_: object) -> None:
        self.did["signals"] += 1
        exposed, self.exposed = self.exposed, False
        with contextlib.suppress(IndexError):
            self.to_strike.popleft().close_nowait()
        self.exposed = exposed

    def on_unraisable(self, what) -> None:
        """What a finalizer has raised; Ctrl-C may strike there, too, and is lost."""
        if what.exc_type is not KeyboardInterrupt:
            self.wrong.append(f"{what.object!r}: {what.exc_value!r}")

    def on_interrupt(self, _: object, frame: object) -> None:
        if self.exposed and not frame.f_code.co_filename.startswith(ABROAD):
            self.exposed = False
            self.did["Ctrl-C"] += 1
            raise KeyboardInterrupt


class Caller:
    """One of the threads that call."""

    def __init__(self, storm: Threads, number: int) -> None:
        self.storm = storm
        self.number = number
        self.chance = random.Random(storm.chance.random())
        self.heard: defaultdict[tuple[str, int], int] = defaultdict(int)
        """(who received, sender) -> the last number that this thread took."""
        self.name = f"caller {number}"

    def live(self, _: Threads | None = None) -> None:
        actions = [self.send, self.send_nowait, self.send_many, self.broadcast, self.receive]
        actions += [self.messages, self.batches, self.of_peer, self.ping, self.look, self.wait_for]
        weights = [9, 6, 3, 2, 9, 6, 4, 4, 3, 6, 3]
        actions += [self.events, self.datagram, self.poll, self.stream, self.leave, self.guest]
        weights += [3, 2, 4, 1, 0.2, 0.4]
        while not self.storm.over:
            action = self.chance.choices(actions, weights)[0]
            names = NAMES
            if action in (self.receive, self.messages, self.batches, self.of_peer):
                # what an interrupted call had taken comes next: to whom, is told by order only here
                names = NAMES[3:] if self.number == 0 else NAMES[:3]
            self.me = self.chance.choice(names)
            self.node = self.storm.nodes[self.me]
            self.to = self.chance.choice([name for name in NAMES if name != self.me])
            with contextlib.suppress(KeyError, pt.PeerNotFound):  # it is not known just now
                self.peer = self.node.peers[self.to]
                action()
                self.storm.did[action.__name__] += 1

    def call(self, what: str, seconds: float, use):
        """Make one call. Returns what came of it, None: an error that may be; and whether it was
        interrupted."""
        storm = self.storm
        limit = LATE * max(seconds, GUARD / 10)
        storm.doing[self.name] = what, time.monotonic() + limit
        came, is_struck = None, False
        try:
            if self.number == 0:
                storm.exposed = True
            came = use()
            storm.exposed = self.number != 0 and storm.exposed
        except KeyboardInterrupt:
            is_struck = True
        except pt.PeerTalkError as error:
            self.error = error.with_traceback(None)
            ours = (
                errors.WrongType,
                errors.InvalidArgument,
                errors.InternalError,
                errors.InvalidState,
            )
            if isinstance(error, ours) and "guest" not in what:
                storm.wrong.append(f"{what} of {self.me} to {self.to}: {error!r}")
        finally:
            if self.number == 0:
                storm.exposed = False
            del storm.doing[self.name]
        return came, is_struck

    # Sending

    def payload(self, account: Account, sender: int, outcome: int = 1) -> tuple[int, bytes]:
        number = account.number(outcome)
        return number, HEAD.pack(sender, number) + bytes(self.chance.randrange(900))

    def account(self, to: str, *, is_broadcast: bool = False) -> tuple[Account, int]:
        sender = self.number * 8 + NAMES.index(self.me) * 2 + is_broadcast
        return self.storm.accounts[to, sender], sender

    def sending(self, what: str, seconds: float, use) -> None:
        """A call that sends one message, of whose number and payload it is told."""
        account, sender = self.account(self.to)
        number, payload = self.payload(account, sender, 2)  # until it is known
        came, is_struck = self.call(what, seconds, partial(use, payload))
        account.sent[number] = 2 if is_struck else came is not None

    def send(self) -> None:
        seconds = self.chance.choice((0.02, 0.5, 5))
        self.sending("send", seconds, lambda data: self.peer.send(data, timeout=seconds))
        if not self.chance.randrange(3):
            self.sending("send for ever", GUARD, self.peer.send)

    def send_nowait(self) -> None:
        self.sending("send_nowait", 0, self.peer.send_nowait)

    def send_many(self) -> None:
        account, sender = self.account(self.to)
        numbers, payloads = [], []
        for _ in range(self.chance.randrange(1, 40)):
            number, payload = self.payload(account, sender, 2)
            numbers.append(number)
            payloads.append(payload)
        self.error = None
        came, is_struck = self.call(
            "send_many", 2, lambda: self.peer.send_many(payloads, timeout=2)
        )
        if not is_struck:
            accepted = getattr(self.error, "accepted", 0) if came is None else came
            for place, number in enumerate(numbers):
                account.sent[number] = place < accepted

    def broadcast(self) -> None:
        others = [name for name in NAMES if name != self.me]
        accounts = [self.account(to, is_broadcast=True)[0] for to in others]
        sender = self.account(self.to, is_broadcast=True)[1]
        number, payload = [self.payload(each, sender, 2) for each in accounts][-1]
        seconds = self.chance.choice((0, 0, 0.2))
        came, is_struck = self.call(
            "broadcast", seconds, lambda: self.node.broadcast(payload, timeout=seconds)
        )
        if not is_struck:
            accepted = [] if came is None else [peer.name for peer in came.accepted]
            for to, account in zip(others, accounts, strict=True):
                account.sent[number] = to in accepted

    def datagram(self) -> None:
        data = HEAD.pack(NOBODY, 0)
        self.call("send_datagram", 0, lambda: self.node.send_datagram(self.peer, data))
        self.call("receive_datagram", 0.01, lambda: self.node.receive_datagram(timeout=0.01))

    def stream(self) -> None:
        def use() -> None:
            with self.peer.stream_out(bytes([255]) * self.chance.randrange(1, 9000)) as out:
                out.finished(timeout=0.5)

        self.call("stream_out", 0.5, use)

    # Receiving

    def take(self, data: bytes) -> None:
        if len(data) < HEAD.size:
            return
        sender, number = HEAD.unpack_from(data)
        if sender == NOBODY:
            return
        key, storm = (self.me, sender), self.storm
        account = storm.accounts[key]
        if account.got[number]:
            storm.wrong.append(f"{key}: {number} came twice")
        if not account.sent[number]:
            storm.wrong.append(f"{key}: {number} came, though it was refused")
        if number <= self.heard[key]:
            storm.wrong.append(f"{key}: {number} came after {self.heard[key]}")
        account.got[number] = 1
        self.heard[key] = number
        storm.did["received"] += 1

    def receive(self) -> None:
        seconds = self.chance.choice((0, 0.002, 0.05))
        message, _ = self.call("receive", seconds, lambda: self.node.receive(timeout=seconds))
        if message is not None:
            self.take(message.data)

    def iterated(self, what: str, seconds: float, came) -> None:
        def use() -> None:
            for item in came:
                for data in getattr(item, "payloads", None) or [item.data]:
                    self.take(data)
                if not self.chance.randrange(10):
                    break

        self.call(what, seconds, use)
        with contextlib.suppress(pt.PeerTalkError):
            came.close()

    def messages(self) -> None:
        self.iterated("messages", 2, self.node.messages(timeout=0.01))

    def batches(self) -> None:
        self.iterated("batches", 2, self.node.batches(timeout=0.01))

    def of_peer(self) -> None:
        self.iterated("messages of a peer", 2, self.peer.messages(timeout=0.01))

    # The others

    def ping(self) -> None:
        self.call("ping", 1, lambda: self.peer.ping(timeout=1))

    def look(self) -> None:
        self.call("stats", 0, self.node.stats)
        self.call("memory", 0, lambda: self.node.memory["total"])
        self.call("repr", 0, lambda: repr((self.node, self.peer, self.peer.queue)))
        self.call("peer.stats", 0, self.peer.stats)
        self.call("peers", 0, lambda: [self.to in self.node.peers, len(self.node.peers.known())])

    def wait_for(self) -> None:
        self.call("wait_for", 0.05, lambda: self.node.wait_for(self.to, timeout=0.05))

        def answers(peer: sync.Peer) -> bool:
            return peer.name == self.to and peer.ping(timeout=1) > 0

        self.call("wait_for a function", 5, lambda: self.node.wait_for(answers, timeout=0.05))
        self.call("wait_for nobody", 0.01, lambda: self.node.wait_for("nobody", timeout=0.01))

    def events(self) -> None:
        seconds = self.chance.choice((0, 0.002))
        self.call(
            "events", 5, lambda: [len(str(event)) for event in self.node.events(timeout=seconds)]
        )

    def poll(self) -> None:
        self.call("poll", 0.01, lambda: self.node.poll(0.01))

    def leave(self) -> None:
        for peer in list(self.node.peers.values()):
            if peer.name == "guest":  # what is on its way from one that is rejected is lost
                self.call("reject", 0, peer.reject)
        self.call("disconnect", 5, lambda: self.peer.disconnect(timeout=5))
        self.call("connect", 5, lambda: self.peer.connect(timeout=5))

    def guest(self) -> None:
        """A node that comes, sends and ends. Each message that it accepted has an outcome."""
        end = self.chance.choice(ENDS)
        options = OPTIONS | {"workers": self.chance.choice((0, 1, 2))}
        address = self.node.address
        guests = [sync.Node("guest", **options)]
        payload = HEAD.pack(NOBODY, 0) + bytes(self.chance.randrange(2000))
        until = time.monotonic() + self.chance.random() * 0.02

        def talk() -> None:
            guest = guests[0]
            peer = guest.connect(address, timeout=5)
            while time.monotonic() < until or end in ("a thread", "a signal"):
                peer.send(payload, timeout=5)
                guest.receive(timeout=0)

        def within() -> None:
            with guests[0]:
                talk()

        if end == "interrupted":
            self.call("a guest's life", 20, within)
        else:
            guests[0].start()
            if end in ("a thread", "a signal"):
                # they end it while it is in a call
                (self.storm.to_close if end == "a thread" else self.storm.to_strike).append(
                    guests[0]
                )
            self.call("a guest's talk", 20, talk)
        guest = guests.pop()
        transport = engine_of(guest)  # None: it was struck in start()
        if end == "close":
            self.call("close of a guest", 5, guest.close)
        elif end != "forgotten":
            self.call("close_nowait of a guest", 5, guest.close_nowait)
        if end != "forgotten":
            guest.close_nowait()  # Ctrl-C may have ended what should have closed it
        del guest
        self.storm.did[end] += 1
        self.await_end(transport, end)

    def await_end(self, transport, end: str) -> None:
        give_up = time.monotonic() + GUARD
        while transport is not None and not transport.released:
            if time.monotonic() > give_up:
                left = list(transport.connections.by_tag.values())
                half_ended = list(transport.switchboard._ending.values())
                self.storm.wrong.append(
                    f"a guest does not end ({end}): closing {transport.closing}, closed "
                    f"{transport.closed}; of {left}, half ended {half_ended}"
                )
                faulthandler.dump_traceback(all_threads=True)
                return
            gc.collect()  # it does nothing while another thread collects
            time.sleep(0.001)
        stats = None if transport is None else transport.stats()
        if (
            stats is not None
            and stats.messages_accepted != stats.messages_sent + stats.messages_failed
        ):
            self.storm.wrong.append(f"{end}: {stats}")


# Beside them


def watch(storm: Threads) -> None:
    """Close what is to be closed by another thread, strike the main thread, and say who is late."""
    chance, next_strike = random.Random(storm.chance.random()), 0.0
    while not storm.drained.is_set():
        now = time.monotonic()
        with contextlib.suppress(IndexError):
            while True:
                storm.to_close.popleft().close_nowait()
        for name, (what, late) in list(storm.doing.items()):
            if now > late:
                storm.wrong.append(f"{name} is late in {what}")
                faulthandler.dump_traceback(all_threads=True)
                return
        if now > next_strike and not storm.over:
            next_strike = now + chance.random() * 0.05
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)


def refused(storm: Threads) -> bool:
    """In a child: everything is, and at once."""
    for name, node in storm.nodes.items():
        uses = [node.stats, node.receive, node.close, node.close_nowait, node.poll]
        uses += [lambda node=node: node.memory, lambda node=node: node.wait_for("x")]
        uses += [lambda node=node, name=name: node.peers[name]]
        for use in uses:
            try:
                use()
            except pt.InvalidState:
                continue
            return False
    return True


def fork(storm: Threads) -> None:
    storm.fork(lambda: refused(storm), 0.1)


def drain(storm: Threads, name: str) -> None:
    """Take what is still on its way to one of the four, until the others have taken theirs, too."""
    caller = Caller(storm, NAMES.index(name) + CALLERS + 1)
    caller.me, caller.node = name, storm.nodes[name]
    while not storm.drained.is_set():
        with contextlib.suppress(pt.Timeout):
            caller.take(caller.node.receive(timeout=0.05).data)


def owed(storm: Threads) -> dict[str, int]:
    """Of each of the four: messages that it accepted, and that nobody received or saw fail."""
    lacking: defaultdict[str, int] = defaultdict(int)
    for (_, sender), account in storm.accounts.items():
        pairs = zip(account.sent, account.got, strict=True)
        lacking[NAMES[sender % 8 // 2]] += sum(sent == 1 and not got for sent, got in pairs)
    failed = {name: node.stats().messages_failed for name, node in storm.nodes.items()}
    return {name: lacking[name] - failed[name] for name in NAMES if lacking[name] > failed[name]}


def lost(storm: Threads) -> Iterator[str]:
    """Who lacks which numbers of whom, and what the ends of that link say."""
    for (to, sender), account in storm.accounts.items():
        pairs = enumerate(zip(account.sent, account.got, strict=True))
        missing = [number for number, (sent, got) in pairs if sent == 1 and not got]
        if missing:
            sent_by = NAMES[sender % 8 // 2]
            out, into = storm.nodes[sent_by].peers.get(to), storm.nodes[to].peers.get(sent_by)
            yield (
                f"{to} lacks {len(missing):,} of {sent_by} by caller {sender // 8}, "
                f"{missing[0]:,} to {missing[-1]:,} of {len(account.sent):,}; out {out!r} "
                f"{out and out.stats()}; in {into!r} {into and into.stats()}"
            )


def settle(storm: Threads) -> None:
    draining = [storm.guarded(drain, name) for name in NAMES]
    give_up = time.monotonic() + GUARD
    while (lacking := owed(storm)) and time.monotonic() < give_up and not storm.wrong:
        time.sleep(0.1)
    if lacking:
        storm.wrong.append(f"accepted, and neither received nor failed: {lacking}")
        storm.wrong += list(lost(storm))
    storm.drained.set()
    for thread in draining:
        thread.join(GUARD)


def meet(storm: Threads) -> None:
    """Each of the four is connected with each other."""
    for name, node in storm.nodes.items():
        for other in NAMES[NAMES.index(name) + 1 :]:
            turning = storm.guarded(wait_for, name, other)
            node.connect(storm.nodes[other].address, timeout=GUARD)
            turning.join()


def wait_for(storm: Threads, name: str, other: str) -> None:
    storm.nodes[other].wait_for(name, timeout=GUARD)


def play(storm: Threads) -> None:
    with contextlib.ExitStack() as stack:
        for name, workers in zip(NAMES, WORKERS, strict=True):
            options = OPTIONS | {"workers": workers}
            storm.nodes[name] = stack.enter_context(sync.Node(name, **options))
        meet(storm)
        signal.signal(signal.SIGINT, storm.on_interrupt)
        sys.unraisablehook = storm.on_unraisable
        callers = [storm.guarded(Caller(storm, number + 1).live) for number in range(CALLERS)]
        others = [storm.guarded(watch), storm.guarded(fork)]
        Caller(storm, 0).live()
        for thread in (*callers, others[1]):
            thread.join(GUARD)
        settle(storm)
        others[0].join(GUARD)
        storm.wrong += [f"{each.name} hangs" for each in (*callers, *others) if each.is_alive()]
    for name, node in storm.nodes.items():
        if not repr(node._turning).startswith("<unlocked"):
            storm.wrong.append(f"the lock of {name} is held: {node._turning!r}")


if __name__ == "__main__":
    sys.exit(rage(Threads, play))
