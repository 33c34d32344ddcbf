"""The engine under every front door: turns the loop, keeps the peers, moves messages in and out.

A state machine without coroutines, tasks or futures. One thread calls turn(); each call serves what
the loop found, moves queued messages to links that have room, and acts on deadlines. Results go to
publish() as events and to the callbacks that were left here. Any thread may call post().

The order of one peer's messages of one class is the order of acceptance: straight into its link
while nothing waits before it, else into its outbox, from where pump() moves them on, higher classes
first. Messages to a peer are numbered from 1; its connection keeps which of them its link was
given, in that order, which is how the counts that a link reports become the ranges of Sent and
Failed.

No exception ends a turn: a callback's, a fault's, or one that a signal handler raises wherever it
struck. What has come stays here until it is served; an event that was cut off is mended, the others
are served, and then the exception goes to whoever called turn().
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakSet, WeakValueDictionary

from .. import errors
from .._core import load, values
from .._numbers import ERR_CANCELLED
from ..config import Config
from ..protocol import events
from ..protocol.connections import Connection, State
from ..protocol.discovery import Changed, Found, Gone, Heard
from ..protocol.names import Names
from ..protocol.outbox import NORMAL, Key, Outbox, Pieces, piece_size
from ..protocol.peer import FRAGMENTED_MAX, Peer, PeerFlag, PeerState
from ..protocol.wire import INSTANCE_SIZE
from .datagrams import Datagrams
from .finder import Finder
from .inbox import Inbox, Outlet
from .log import NodeLog, Troubles
from .remote import Remote
from .statistics import LinkTotals, MemoryReport, MemoryUse, NodeStatistics
from .switchboard import Switchboard
from .world import Address, World, check_interfaces

_FIRST_TAG = 16
_LAST_TAG = 0xFFFF_FFF0
_PUMP = 256
_UNBOUNDED = 1 << 62
_UNTAKEN_TIME = 5.0
"""Seconds that a full inbox may stay untouched before a warning is logged."""
_TAKING = "taking messages"
_STARVED_RETRY = 0.01
_NAMES_WARNED = 64
"""Names whose collision is logged, once each in the life of a node: a neighbour who makes up names
fills no log."""
_TRIES = 3
"""Times that a step of mending is tried, which may itself be cut off."""
_AGAIN = 0.5
"""Seconds until what failed (a timer's action, a watch) is tried again."""


_RANK = {values.SENT: 0, values.TIMER: 2}

Event: TypeAlias = tuple[int, int, Any, Any]


def _rank(event: Event) -> int:
    """First what left, which had left before anything that came in could end its link; last what is
    late, which may be among what came."""
    return _RANK.get(event[0], 1)


NO_THREAD = 0
"""What an engine belongs to when it is no thread's."""
_engines: WeakSet[Transport] = WeakSet()
"""Those that a forked child must not touch."""


def _orphan_all() -> None:
    for engine in list(_engines):
        engine.orphan()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_orphan_all)


class Timer(NamedTuple):
    """What after() returns, for cancel()."""

    tag: int
    timer: Any


class Watched(NamedTuple):
    """What watch() returns, for unwatch()."""

    tag: int
    socket: socket.socket
    interest: int
    ready: Callable[[], None]
    watch: Any


class Transport:
    """The engine of one node.

    Args:
        config: everything that can be chosen.
        world: sockets and the clock.
        make_view: makes what the front door hands out for a peer.
        schedule: asks the driver for a turn at the end of this tick; called on the engine's thread
            only, any number of times.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        make_view: Callable[[Remote], Any],
        schedule: Callable[[], None],
    ) -> None:
        self.config = config
        self.core = core = load(config.core or None)
        self.world = world
        self.make_view = make_view
        self.schedule = schedule
        self.process = os.getpid()
        self.forked = False
        """Whether this is a forked child of its process, where it is dead."""
        self.owner: Any = None
        """Whose turns they are: the asyncio loop of a peertalk.Node, or a node of peertalk.sync."""
        self.publish: Callable[[Any], None] | None = None
        self.on_change: Callable[[], None] | None = None
        """Told whenever who is known, or connected, may have changed."""
        self.instance = world.identity(INSTANCE_SIZE)
        self.flags = PeerFlag(config.flags)
        self.peers: dict[Any, Remote] = {}
        self._forgotten: WeakValueDictionary[Any, Remote] = WeakValueDictionary()
        """Peers that are not in the table any more, while anybody has them."""
        self._names: Names[Remote] = Names(config.name)
        self._names_warned: set[str] = set()
        self.peers_version = 0
        self.changes = 0
        """How often who is known, or connected, may have changed."""
        self.crowded = False
        self.thread = threading.get_ident()
        self.lock = threading.Lock()
        self.port = 0
        self.closed = False
        self.closing = False
        self.unsent = 0
        self.inbox = Inbox(config.receive_queue_bytes, self.resume, self._stalled)
        self.max_message: int = world.max_message(core)
        depth_is_default = config.explain()["pipeline_depth"][1] == "default"
        self.pipeline_depth: int = (
            core.limits.pipeline_depth if depth_is_default else config.pipeline_depth
        )
        self.finder: Finder | None = None
        self._starved: dict[Remote, None] = {}
        self.turns = 0
        """Turns that began here: what is due once in a turn remembers the last one."""
        self._fragmented = 0
        """Message id of the next message that is sent in fragments, of the whole node as in the
        original."""
        self.totals = LinkTotals()
        self.log = NodeLog("peertalk.network", config.name)
        self.troubles = Troubles(self, self.log)
        self._spare: socket.socket | None = None
        self.before_closing: Callable[[int], None] | None = None
        """Told each descriptor before it is closed, for a driver that watches them itself."""
        self.before_release: Callable[[], None] | None = None
        """Told before the loop is closed, so that its driver lets go first."""
        self._warnings: dict[Outlet, Timer] = {}
        self._timers: dict[int, Callable[[], None]] = {}
        self._watched: dict[int, Watched] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        """What call() was given and has not called yet."""
        self._calling = False
        self._called = False
        """Whether the first of them was called before, and raised."""
        self._struck: object = None
        """Whose action was cut off last by what no program may overlook."""
        self._next_tag = _FIRST_TAG
        self._turning = False
        self._came: list[Event] = []
        """What has come and is not served to its end; the first is being served in a turn."""
        self._serving: Event | None = None
        """The one that was begun last."""
        self.kept: list[bytes] | None = None
        """What was put into the inbox last in this turn."""
        self._acting: Callable[[], None] | None = None
        """The action of the timer that is being served."""
        self._raised: list[BaseException] = []
        """In this turn, for its end."""
        self._on_closed: list[Callable[[], object]] = []
        self._released = False
        """Whether nothing is left to be given back."""
        self._final: NodeStatistics | None = None
        self._memory = MemoryReport()
        self.loop: Any = world.make_loop(core, config)
        self.switchboard = Switchboard(self)
        self.connections = self.switchboard.connections
        self.datagrams = Datagrams(self)
        _engines.add(self)

    # Life -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen and announce.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it; nothing stays
                open.
        """
        config = self.config
        try:
            world, names = self.world, config.interfaces
            interfaces = world.interfaces()
            check_interfaces(world.interface_names(), interfaces, names, config.bind)
            self.datagrams.open()
            self.port = self.switchboard.listen()
            self._spare = self.world.spare()
            if config.discovery:
                self.finder = Finder(self, interfaces)
        except BaseException:
            self._release()
            raise

    def turn(self, timeout: float | None = 0.0) -> None:
        """Serve whatever is ready, waiting up to timeout seconds for it (None: until something
        is)."""
        self.crowded = False
        self.turns += 1
        came, serve = self._came, self._serve
        self._turning = True
        try:
            if came:  # a signal handler has ended a turn
                self._go_on()
            else:
                self.loop.turn(timeout, came)
            if len(came) > 1:
                came.sort(key=_rank)
            while came:
                self._serving = event = came[0]
                try:
                    serve(event)
                    del came[0]
                except BaseException as error:
                    self._mend(event, error)
            self._serving = self.kept = None
            while self._orders:
                self._obey()
            if self.closing and not self._released:
                self._try(self._let_go if self.closed else self.finish_close)
            if self._calls:  # what a signal handler raised has ended call_all()
                self._call_rest()
            try:
                self.switchboard.pulse.answer()
            except BaseException as error:
                self.note(error)
        finally:
            try:
                if came:  # before anybody takes what it may have put into the inbox
                    self._go_on()
            finally:
                self._turning = False
        if self._raised:
            self._raise()

    def _raise(self) -> None:
        """What was raised in this turn: the first, unless another is none that a program may
        overlook. All others are logged."""
        raised, self._raised = self._raised, []
        first = next((each for each in raised if not isinstance(each, Exception)), raised[0])
        raised.remove(first)
        while raised:
            self._log_raised(raised.pop(0))
        try:
            raise first
        finally:
            del first  # or the two keep each other alive, and a socket that was just accepted open

    def _go_on(self) -> None:
        """With what an earlier turn has left. One that it had begun may be served, or not."""
        begun = self._came[0]
        if begun is self._serving:
            self._mend(begun, None)

    def _obey(self) -> None:
        """One order."""
        try:
            self._orders[0]()
        except BaseException as error:
            self.note(error)
        self._orders.popleft()

    def _call_rest(self) -> None:
        """What call_all() has left."""
        self._calling = False  # nobody is, in the middle of a turn
        try:
            self.call_all()
        except BaseException as error:
            self.note(error)

    @property
    def unfinished(self) -> bool:
        """Whether a turn was cut off, and something of it is left."""
        return bool(self._came or self._calls)

    def is_coming(self, tag: int) -> bool:
        """Whether this turn has read something of a link that is not served yet."""
        return any(event[1] == tag for event in islice(self._came, 1, None))

    def raise_later(self, interrupt: BaseException) -> None:
        """Raise what interrupted a callback when the present turn is done."""
        if not self._turning:
            raise interrupt
        self.note(interrupt)

    def note(self, error: BaseException) -> None:
        """What was raised where it must not end what is being done: it is raised at the end of the
        turn, or logged where there is none."""
        if self._turning:
            self._raised.append(error)
        else:
            self._log_raised(error)

    def _log_raised(self, error: BaseException) -> None:
        self.log.error("an exception was raised in the engine, which goes on", exc_info=error)

    def call(self, functions: Iterable[Callable[..., object]], *arguments: Any) -> None:
        """Have functions called that are not the engine's: by call_all(), which is the caller's to
        call next."""
        self._calls.extend([(function, arguments) for function in functions])

    def call_all(self) -> None:
        """Call what call() was given: now, or after what is being called now, so that no number of
        them is nested. What one raises stops neither the others nor the engine; it is called once
        more, because it may have been a signal handler that raised before it had begun."""
        calls = self._calls
        if self._calling:
            return
        try:
            self._calling = True
            while calls:
                function, arguments = calls[0]
                again, self._called = self._called, True
                try:
                    function(*arguments)
                except BaseException as error:
                    if again:
                        calls.popleft()
                        self._called = False
                    if not isinstance(error, Exception):
                        raise
                    self.note(error)
                else:
                    calls.popleft()
                    self._called = False
        finally:
            self._calling = False

    def orphan(self) -> None:
        """Be dead in a forked child, where all use is refused. Its copies of the descriptors are
        closed, so that the parent's connections end when the parent ends them; nothing is written,
        nobody is told, and no epoll set is changed, since those are the parent's too."""
        self.lock = threading.Lock()  # another thread of the parent may have had it
        if self.closed:
            return
        self.forked = self.closing = self.closed = self._released = True
        self.thread = NO_THREAD
        self.before_closing = self.before_release = self.publish = self.on_change = None
        for peer in self._everybody():
            peer.quick = None
        connections = list(self.connections.by_tag.values())
        sockets = [
            *(watched.socket for watched in self._watched.values()),
            *(each.socket for each in connections if each.socket is not None),
            *([] if self._spare is None else [self._spare]),
        ]
        self.connections.by_tag.clear()
        self._watched.clear()
        self._timers.clear()
        self._orders.clear()
        self.loop.orphan()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.close()

    def move_here(self) -> None:
        """Belong to the calling thread from now on; whoever calls holds the lock that orders the
        threads."""
        here = threading.get_ident()
        if self.thread != here:
            self.thread = here
            if not self.closed:
                self.loop.move_here()

    @contextlib.contextmanager
    def use_spare(self) -> Iterator[None]:
        """For a moment let go of the descriptor that is kept for when this program has used up all
        others; what is opened inside is closed inside, or there is no such moment again."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        try:
            yield
        finally:
            with contextlib.suppress(errors.PlatformError):  # another thread has been quicker
                self._spare = self.world.spare()

    def disown(self) -> None:
        """Belong to no thread until move_here(): turns and sends are refused."""
        self.thread = NO_THREAD
        self.loop.disown()

    def check_open(self) -> None:
        """Raises InvalidState when the node is closed or being closed, or another process's."""
        if self.closing or self.closed:
            if self.forked:
                raise errors.InvalidState(
                    f"node {self.config.name!r} belongs to process {self.process}, this is its "
                    "forked child: start a new node here"
                )
            raise errors.InvalidState(f"node {self.config.name!r} is closed")

    def check_own(self, peer: Remote) -> None:
        """Raises InvalidArgument when this is a peer of another node."""
        if peer.transport is not self:
            other, address = peer.transport.config.name, f"{peer.address[0]}:{peer.address[1]}"
            raise errors.InvalidArgument(
                f"peer {peer.name!r} belongs to node {other!r}, not to node {self.config.name!r}: "
                f"name it by its id, {peer.id}, or connect to its address, {address}",
                peer=peer.name,
            )

    def set_flags(self, flags: int) -> None:
        """Announce these flags from now on.

        Raises:
            InvalidArgument: they are more than 16 bits. WrongType: they are no whole number.
        """
        if isinstance(flags, bool) or not isinstance(flags, int):
            raise errors.WrongType(f"flags {errors.shown(flags)}: a sum of PeerFlag, or a number")
        if not 0 <= flags <= 0xFFFF:
            raise errors.InvalidArgument(
                f"flags {errors.shown(flags)}: they have 16 bits, 0 to {0xFFFF:,}"
            )
        self.flags = PeerFlag(flags)
        if self.finder is not None:
            self.finder.set_flags(flags)

    def wake_receivers(self) -> None:
        """Nothing more will come: all who wait for something look again."""
        self.inbox.wake_all()
        self.datagrams.waiters.wake_all()

    def post(self, order: Callable[[], None]) -> None:
        """Have order called on the engine's thread, soon. Any thread."""
        self._orders.append(order)
        self.loop.wake()

    def after(self, delay: float, action: Callable[[], None]) -> Timer:
        """Call action once, delay seconds from now, unless cancelled."""
        tag = self.tag()
        timer = self.loop.timer(tag)
        self._timers[tag] = action
        try:
            timer.arm(delay)
        except BaseException:
            self._timers.pop(tag, None)
            raise
        if not self._turning:
            self.schedule()  # the driver knows the deadlines of its last turn only
        return Timer(tag, timer)

    def watch(self, watched: socket.socket, interest: int, ready: Callable[[], None]) -> Watched:
        """Call ready in each turn in which the socket is.

        Raises:
            InvalidArgument, OutOfMemory, PlatformError: the system does not watch it.
        """
        tag = self.tag()
        watch = self.loop.watch(watched.fileno(), tag, interest)
        self._watched[tag] = result = Watched(tag, watched, interest, ready, watch)
        return result

    def unwatch(self, watched: Watched | None) -> None:
        """No longer; before the socket is closed."""
        if watched is not None and watched.tag in self._watched:
            watched.watch.close()
            del self._watched[watched.tag]

    def close_socket(self, closing: socket.socket) -> None:
        """Close a socket of the engine."""
        if self.before_closing is not None:
            self.before_closing(closing.fileno())
        closing.close()

    def is_armed(self, timer: Timer) -> bool:
        """Whether its action is still to come."""
        return timer.tag in self._timers

    def cancel(self, timer: Timer | None) -> None:
        """Not call it after all."""
        if timer is not None and self._timers.pop(timer.tag, None) is not None:
            timer.timer.cancel()

    def close(self, timeout: float | None, on_closed: Callable[[], object]) -> None:
        """Leave politely: send what is queued, DISCONNECT, read to the end, GOODBYE; at most
        timeout seconds, None: however long that takes. on_closed is called when all is closed. May
        be called again; the first call's deadline holds."""
        if self.closed:
            self._let_go()
            on_closed()
            return
        self._on_closed.append(on_closed)
        if self.closing:
            return
        with self.lock:
            self.closing = True
        self.loop.wake()  # there will be a turn, whatever has happened to the driver
        if timeout is not None:
            self.after(timeout, self.close_now)
        closed = errors.InvalidState(f"node {self.config.name!r} is closed")
        for peer in self._everybody():
            peer.quick = None
            peer.on_lost(closed)
            if peer.connection is None:
                self.fail_queued(
                    peer,
                    errors.ConnectionClosed(
                        f"the node is closed; {peer.name!r} was not connected", peer=peer.name
                    ),
                )
        # what still arrives is read and dropped, so that our own last bytes are not destroyed
        self.inbox.lift(_UNBOUNDED)
        self.switchboard.close()
        self.finish_close()

    def close_now(self) -> None:
        """End everything at once; what was not sent is counted in unsent and reported as Failed."""
        if self.closed:
            self._let_go()
            return
        with self.lock:
            self.closing = True
        for peer in self._everybody():
            peer.quick = None
            if peer.connection is not None:
                continue  # the end of its connection reports what that has taken first
            self.fail_queued(
                peer,
                errors.ConnectionClosed(
                    f"the node was closed before this was sent to {peer.name!r}", peer=peer.name
                ),
            )
        self.switchboard.close_now()
        self.finish_close()

    def finish_close(self) -> None:
        """When the last connection is gone: GOODBYE, and everything is given back."""
        if self.closed or self.connections.by_tag:
            return
        if self.finder is not None:
            self._try(self.finder.goodbye)
        self._release()

    def _release(self) -> None:
        with self.lock:
            self._final = self.stats()
            self.memory()
            self.closed = True
            self.closing = True
        self._let_go()

    def _let_go(self) -> None:
        """Give everything back, and tell that: once, though it may be begun anew when it was cut
        off."""
        if self._released:
            return
        for peer in self._everybody():
            peer.tell_reaching(errors.InvalidState(f"node {self.config.name!r} is closed"))
        self._forgotten.clear()
        self._try(self.switchboard.stop_listening)
        self._try(self.switchboard.watchdog.stop)
        self._try(self.datagrams.close)
        if self.finder is not None:
            self._try(self.finder.close)
            self.finder = None
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        self._timers.clear()
        self._warnings.clear()
        if self.before_release is not None:
            self._try(self.before_release)
        self.loop.close()
        self.call(self._on_closed)
        self._on_closed = []
        self._released = True
        self.call_all()

    def _try(self, step: Callable[[], object]) -> None:
        """One step of several that are independent of each other, each of which may be done twice:
        once more when it raises, since that may have been a signal handler."""
        for _ in range(2):
            try:
                step()
                return
            except Exception as error:
                self.note(error)

    # One turn's events ----------------------------------------------------------------------------

    def _serve(self, event: Event) -> None:
        kind, tag, a, b = event
        if kind == values.READY:
            watched = self._watched.get(tag)
            if watched is not None:
                watched.ready()
            return
        if kind == values.TIMER:
            self._acting = action = self._timers.get(tag)
            if action is not None:
                del self._timers[tag]
                action()
                self._acting = None
            return
        connection = self.connections.by_tag.get(tag)
        if connection is None:
            return
        if kind == values.SENT:
            if connection.state is not State.DRAINING:  # else its outcome has been told
                self._sent(connection, a, b)
        elif kind == values.STILL:
            self.end_who_stands_still(connection, a / 1000)
        else:
            self.switchboard.arrived(connection, kind, a, b)

    def _mend(self, event: Event, error: BaseException | None) -> None:
        """Serving this event was cut off: what was to be done of it is done, or its connection
        ends. error: what cut it off; None: an exception that has left the turn."""
        if error is not None:
            self.note(error)
        self._calling = False  # nobody is, in the middle of a turn
        for step in (
            partial(self._mend_event, event, error),
            self.switchboard.tidy_up,
            self.call_all,
        ):
            for _ in range(_TRIES):
                try:
                    if self.closed:
                        self._let_go()
                    else:
                        step()
                    break
                except BaseException as another:
                    self.note(another)
        if self._came and self._came[0] is event:
            del self._came[0]

    def _mend_event(self, event: Event, error: BaseException | None) -> None:
        kind, tag, a, b = event
        if kind == values.TIMER:
            action = self._timers.get(tag) or self._acting
            if action is not None:
                self.after(_AGAIN if self._fails(action, error) else 0.0, action)
            self._timers.pop(tag, None)
            self._acting = None
        elif kind == values.READY:
            if tag in self._watched and self._fails(tag, error):
                self._rest(self._watched[tag])
        elif (connection := self.connections.by_tag.get(tag)) is not None:
            self.switchboard.mend(connection, kind, a, b, error)

    def _fails(self, what: object, error: BaseException | None) -> bool:
        """Whether this action has failed by itself, so that it would at once again. What is no
        Exception comes from a signal handler, unless it comes twice from the same."""
        before, self._struck = self._struck, what
        return isinstance(error, Exception) or (error is not None and before == what)

    def _rest(self, watched: Watched) -> None:
        """What a socket is watched for has failed: it is not looked at for a moment, since it is
        ready as before."""
        watched.watch.set(0)

        def look_again() -> None:
            if watched.tag in self._watched:
                watched.watch.set(watched.interest)

        self.after(_AGAIN, look_again)

    def deliver(
        self, peer: Remote, connection: Connection, payload_bytes: int, payloads: list[bytes]
    ) -> None:
        """Put what arrived where it is taken from; a full inbox pauses the link."""
        peer.received += len(payloads)
        peer.received_bytes += payload_bytes
        self.totals.received += len(payloads)
        if self.closing:
            return
        inbox = self.inbox
        outlet = inbox.put(peer, payloads, payload_bytes)
        self.kept = payloads
        if connection.pressure or outlet.cost * 4 >= inbox.limit:
            self.switchboard.pulse.press(connection, outlet)
        if inbox.full:
            self.pause_if_full(connection, peer)
            if inbox.floods():
                for other in self.connections.by_tag.values():
                    if isinstance(other.peer, Remote) and other.state is State.OPEN:
                        self.pause_if_full(other, other.peer)

    def pause_if_full(self, connection: Connection, peer: Remote) -> None:
        """Read a connection no more while there is no room for what it may bring."""
        outlet = self.inbox.outlet_of(peer)
        if (
            self.inbox.must_wait(outlet)
            and connection.state is not State.CLOSED
            and connection not in outlet.paused
        ):
            self.totals.pauses += 1
            connection.link.pause()
            connection.spoilt = True
            outlet.pause(connection)

    def read_on(self, connection: Connection) -> None:
        """Read a connection again that was held back, unless its messages have no room."""
        peer = connection.peer
        if isinstance(peer, Remote) and connection in self.inbox.outlet_of(peer).paused:
            return
        connection.link.resume()
        self.schedule()

    def resume(self, outlet: Outlet) -> None:
        """An outlet has room again: read on."""
        self.cancel(self._warnings.pop(outlet, None))
        if self.troubles.lasting:
            self.troubles.worked(_TAKING)
        paused, outlet.paused = outlet.paused, {}
        for connection in paused:
            if connection.tag in self.connections.by_tag and connection.held is None:
                connection.link.resume()
        self.schedule()

    def _stalled(self, outlet: Outlet) -> None:
        """The first link of an outlet waits for room: somebody may have forgotten to take."""
        if outlet not in self._warnings:
            self._warnings[outlet] = self.after(_UNTAKEN_TIME, lambda: self._warn_if_paused(outlet))

    def _warn_if_paused(self, outlet: Outlet) -> None:
        self._warnings.pop(outlet, None)
        names = sorted({repr(each.peer.name) for each in outlet.paused if each.peer is not None})
        if names:
            text = (
                "those from %s are not being taken: %d bytes wait, and the sender is slowed; "
                "receive() or iterate messages()"
            )
            self.troubles.failed(_TAKING, text, ", ".join(names), outlet.cost)

    def _sent(self, connection: Connection, count: int, code: int) -> None:
        peer = connection.peer
        if not isinstance(peer, Remote):
            return
        if count:
            handed = connection.handed
            if code == 0 and not handed.runs:
                first = handed.first
                handed.first = first + count
                if peer.accepted < first + count - 1:  # who was to count one was cut off
                    peer.accepted = first + count - 1
                self._tell_sent(peer, first, first + count - 1)
            else:
                for first, last, sent in handed.report(count, sent=code == 0):
                    if sent:
                        self._tell_sent(peer, first, last)
                    else:
                        self.fail(
                            peer, first, last, events.Outcome.UNKNOWN, self.closed_error(peer)
                        )
                if handed.crowded:
                    handed.prune(connection.link.unconfirmed)
        if (
            connection.state is State.OPEN
            and not self.closing
            and peer.state is PeerState.CONNECTED
        ):
            self.pump(peer)
        else:
            self.switchboard.slots_came_free(connection)

    def _tell_sent(self, peer: Remote, first: int, last: int) -> None:
        count = last - first + 1
        self.totals.sent += count
        if self.publish is not None:
            self.publish(events.Sent(peer.view, first, last))
        peer.reported += count
        if peer.stream is not None:
            peer.stream.told(first, last, None)

    def tell_sent_again(self, peer: Remote, connection: Connection) -> None:
        """A link's report was cut off: what it said to be sent is told, if it is not counted."""
        handed = connection.handed
        if not handed.runs and handed.first > peer.reported + 1:
            self._tell_sent(peer, peer.reported + 1, handed.first - 1)

    def revoke(self, connection: Connection) -> None:
        """Before the link of a connection that is over is closed: what it reported as sent and the
        other side's system has not acknowledged may not have arrived. Reported as Failed, and
        counted as such and no longer as sent."""
        peer, link = connection.peer, connection.link
        if link is None or not isinstance(peer, Remote):
            return
        unconfirmed = link.unconfirmed
        if not unconfirmed:
            return
        error = errors.ConnectionClosed(
            f"the connection with peer {peer.name!r} ended before its system acknowledged this; "
            "it may have arrived",
            peer=peer.name,
        )
        for first, last in connection.handed.revoke(unconfirmed):
            count = last - first + 1
            self.totals.sent -= count
            peer.reported -= count  # fail() adds them again
            self.fail(peer, first, last, events.Outcome.UNKNOWN, error)

    # Messages out ---------------------------------------------------------------------------------

    def pump(self, peer: Remote) -> None:
        """Move what waits in the outbox to the link, as far as it takes it; then tell those who
        wait for room."""
        if self.move(peer):
            peer.on_room()

    def move(self, peer: Remote) -> bool:
        """Move what waits in the outbox to the link, as far as it takes it. False: there is no
        link."""
        connection = peer.connection
        if connection is None or connection.state is not State.OPEN:
            return False
        if connection.owed:
            self.switchboard.pulse.pay(connection)
        outbox = peer.outbox
        if outbox is None or self._hand_over(peer, connection, outbox):
            peer.outbox = None
            if not connection.handed.first:
                connection.handed.open(peer.accepted + 1)
            if (
                peer.state is PeerState.CONNECTED
                and not self.closing
                and peer.lowest <= NORMAL
                and not peer.in_line(NORMAL)  # a new message must not overtake those who wait
            ):
                peer.quick = connection.link.send
        return True

    def _hand_over(self, peer: Remote, connection: Connection, outbox: Outbox) -> bool:
        """Give the link what waits, in its order. False: it took no more."""
        link = connection.link
        while outbox or connection.pieces is not None:
            # before anything else of any class: the other side puts together one message at a time
            if connection.pieces is not None:
                code = self._hand_piece(connection, connection.pieces)
                if code < 0:
                    self.refused(peer, code)
                    return False
                continue
            waiting = outbox.peek(_PUMP)
            accepted, code = link.send_many(waiting)
            for first, last in outbox.drop(accepted):
                connection.handed.add(first, last)
            self.hint(code)
            if accepted == len(waiting):
                continue
            if code == errors.MessageTooLarge.code:
                code = self._hand_too_large(peer, connection, outbox)
            if code < 0:
                self.refused(peer, code)
                return False
        return True

    def _hand_too_large(self, peer: Remote, connection: Connection, outbox: Outbox) -> int:
        """The next message is longer than a frame may be: begin to hand it in pieces, skip it where
        it can never go, or leave it where that is not known yet."""
        data = outbox.peek(1)[0]
        if connection.slow and len(data) > FRAGMENTED_MAX:
            return errors.WouldBlock.code
        limit, _ = self.limit_of(peer)
        if len(data) > limit:
            [(number, _)] = outbox.drop(1)
            self.totals.abandoned += 1
            self.fail(peer, number, number, events.Outcome.FAILED, self.too_large(peer, len(data)))
            return 0
        pieces = Pieces(data, self._fragmented, connection.link.max_message)
        code = self._hand_piece(connection, pieces)
        if code >= 0:
            self._fragmented = self._fragmented + 1 & 0xFFFF
            [(number, _)] = outbox.drop(1)
            connection.handed.add(number, number, pieces.count)
            self.totals.accepted += 1
        return code

    def _hand_piece(self, connection: Connection, pieces: Pieces) -> int:
        """Give the link one fragment. It counts each as a message and its header as payload, which
        is put right here."""
        header, piece = pieces.peek()
        fragment = self.core.encode_fragment(*header) + piece
        code: int = connection.link.send_frame(values.DATA, fragment, values.FRAGMENT)
        if code >= 0:
            connection.pieces = None if pieces.drop() else pieces
            self.totals.accepted -= 1
            self.totals.payload_sent -= len(fragment) - len(piece)
            self.hint(code)
        return code

    def enqueue(
        self, peer: Remote, payload: bytes, priority: int = NORMAL, key: Key | None = None
    ) -> bool:
        """Put a message behind those of its class that wait, or in the place of the one with its
        key, and connect if need be. False: there is no room, and nothing has changed.

        Raises:
            NotConnected: the peer is being disconnected.
        """
        if peer.successor is not None:
            raise peer.restarted_error()
        if peer.state is PeerState.DISCONNECTING:
            raise errors.NotConnected(f"peer {peer.name!r} is being disconnected", peer=peer.name)
        if peer.outbox is None:
            peer.outbox = Outbox(self.config.send_queue_size, self.config.send_queue_bytes)
            if peer.connection is not None:
                peer.connection.handed.seal(peer.accepted)
        peer.quick = None
        number = peer.accepted + 1
        replaced = peer.outbox.put(payload, number, priority, key)
        if replaced is None:
            return False
        peer.accepted = number
        if replaced:
            self.totals.abandoned += 1
            text = (
                f"message {replaced:,} to peer {peer.name!r} was replaced by message {number:,} "
                f"with the same key, {key!r}"
            )
            self.fail(
                peer,
                replaced,
                replaced,
                events.Outcome.REPLACED,
                errors.PeerTalkError(text, code=ERR_CANCELLED, peer=peer.name),
            )
        if peer.connection is None and peer.retry is None:
            self.switchboard.reach(peer, lambda *_: None)
        return True

    def send_sync(self, peer: Remote, payload: bytes | bytearray | memoryview, flags: int) -> int:
        """Block until a connected peer's link has taken what waits and then this message. Returns
        hints, or why it did not: let it wait then.

        Raises:
            Timeout: the slots did not come free within 5 s; the message was not accepted, what
                waited before it waits on.
        """
        connection = peer.connection
        assert connection is not None
        link, code = connection.link, 0
        while peer.outbox is not None and code == 0:
            before, code = (
                (peer.handed, connection.pieces and connection.pieces.offset),
                link.drain(),
            )
            self.pump(peer)
            if (
                code == 0
                and (peer.handed, connection.pieces and connection.pieces.offset) == before
            ):
                return errors.WouldBlock.code  # not for want of slots: memory comes free by and by
        if code == 0:
            code = link.send_sync(payload, flags)
        if code == errors.Timeout.code:
            text = (
                f"peer {peer.name!r} has not taken in 5 s what is on its way to it; "
                "nothing was accepted: send again"
            )
            raise errors.Timeout(text, peer=peer.name)
        if code >= 0:
            self.hint(code)
            peer.accepted += 1
        return int(code)

    def refused(self, peer: Remote, code: int) -> None:
        """A link took no more. A slot comes free with an event; a system without memory for the
        first one tells nobody when it has some, so all who met that ask again soon, together."""
        if code == errors.OutOfMemory.code:
            if not self._starved:
                self.after(_STARVED_RETRY, self._ask_again)
            self._starved[peer] = None

    def _ask_again(self) -> None:
        starved, self._starved = self._starved, {}
        for peer in starved if not self.closed else ():
            self.pump(peer)

    def end_who_stands_still(self, connection: Connection, seconds: float) -> None:
        """Memory is scarce, and of all links this one has sent nothing of what waits in it for the
        longest: it ends, if that is longer than link_timeout, and its buffers serve others."""
        timeout = self.config.link_timeout
        if connection.state is State.CLOSED or seconds < timeout:
            return
        self.totals.ended_still += 1
        peer = connection.peer
        who = f"peer {peer.name!r}" if peer is not None else connection.address[0]
        error = errors.ConnectionClosed(
            f"{who} has taken nothing for {seconds:.0f} s (Config.link_timeout is {timeout:g} s), "
            "and memory for sending ran short: the connection is closed; send again to connect "
            "anew",
            peer=peer.name if peer is not None else None,
        )
        self.log.warning("%s", error)
        self.switchboard._end(connection, error)

    def too_large(self, peer: Remote, size: int) -> errors.MessageTooLarge:
        """The error for a message that no link to this peer takes."""
        limit, whose = self.limit_of(peer)
        text = (
            f"message of {size:,} bytes to peer {peer.name!r}: the limit is {limit:,} ({whose}); "
            "send it in parts"
        )
        return errors.MessageTooLarge(text, peer=peer.name)

    def limit_of(self, peer: Remote) -> tuple[int, str]:
        """The largest message to this peer, bytes, and whose limit it is."""
        connection = peer.connection
        if (
            connection is None
            or connection.link is None
            or connection.slow
            or connection.link.max_message >= self.max_message
        ):
            return self.max_message, "of this core"
        limit: int = connection.link.max_message
        whose = (
            "its MAX_MESSAGE"
            if peer.capabilities is not None
            else "a classic peer that has not said more"
        )
        if not peer.classic or limit >= FRAGMENTED_MAX or not piece_size(limit):
            return limit, whose
        if self.max_message <= FRAGMENTED_MAX:
            return self.max_message, "of this core"
        return (
            FRAGMENTED_MAX,
            (
                "what a classic peer puts together of fragments; in one frame it takes "
                f"{limit:,}, {whose}"
            ),
        )

    def hint(self, code: int) -> None:
        """Act on what a link said beside success; a refusal says nothing."""
        if code > 0:
            if code & values.YIELD:
                self.crowded = True
            self.schedule()

    def fail(
        self,
        peer: Remote,
        first: int,
        last: int,
        outcome: events.Outcome,
        error: errors.PeerTalkError,
    ) -> None:
        """Messages that will not be sent (again): counted, and reported."""
        count = last - first + 1
        peer.failed += count
        self.totals.failed += count
        if self.closing:
            self.unsent += count
        peer.reported += count
        if peer.stream is not None:
            peer.stream.told(first, last, error)
        if self.publish is not None:
            self.publish(events.Failed(peer.view, first, last, outcome, error))

    def fail_unnumbered(self, peer: Remote, error: errors.PeerTalkError) -> None:
        """A message from another thread, accepted there, can never be sent: reported as Failed with
        number 0."""
        self.totals.abandoned += 1
        self.totals.failed += 1
        if self.closing:
            self.unsent += 1
        if self.publish is not None:
            self.publish(events.Failed(peer.view, 0, 0, events.Outcome.FAILED, error))

    def fail_queued(self, peer: Remote, error: errors.PeerTalkError) -> None:
        """What waited in the outbox will not be sent, nor what other threads left."""
        outbox = peer.outbox
        peer.outbox = None
        for first, last in outbox.clear() if outbox is not None else ():
            self.totals.abandoned += last - first + 1
            self.fail(peer, first, last, events.Outcome.FAILED, error)
        for _ in range(peer.drop_from_afar() if self.closing else 0):
            self.fail_unnumbered(peer, error)
        if peer.afar:
            self.post(peer.on_room)

    def closed_error(
        self, peer: Peer | None, where: str = "", system_error: int = 0
    ) -> errors.ConnectionClosed:
        """What waiting senders hear when the connection is gone. system_error: the platform's own
        number for it, 0 where it has none."""
        number = f" (system error {system_error})" if system_error else ""
        if peer is None:
            return errors.ConnectionClosed(
                f"the connection with {where or 'the other side'} is closed{number}"
            )
        return errors.ConnectionClosed(
            f"the connection with peer {peer.name!r} is closed{number}; send again to connect anew",
            peer=peer.name,
        )

    # Peers ----------------------------------------------------------------------------------------

    def _everybody(self) -> list[Remote]:
        """Those who are known, and those who are forgotten and held: they may be sent to. Any
        thread."""
        held = [held() for held in self._forgotten.valuerefs()]
        return [*self.peers.values(), *(peer for peer in held if peer is not None)]

    def meet(self, instance: bytes, name: str, address: Address) -> Remote:
        """The peer that has said its instance id on a connection, or by whose announcement it was
        heard; made when it was not known."""
        peer = self.peers.get(instance)
        if peer is None:
            return self.make_peer(instance, instance, name, address)
        peer.name = name or peer.name
        return peer

    def make_peer(self, key: Any, instance: bytes | None, name: str, address: Address) -> Remote:
        """A peer that is not in the table: the same object as before as long as anybody has that.
        Who was known at its address, and is not connected, is its former life."""
        peer = self._forgotten.pop(key, None)
        if peer is None:
            peer = Remote(self, key, name=name, address=address, own_max_message=self.max_message)
        else:
            peer.name, peer.address = name or peer.name, address
        if instance is not None:
            for former in self._others_at(address, instance):
                if former.connection is None and not former.greeted:
                    self.succeed(former, peer)
        return self.know(peer)

    def recall(self, key: Any) -> Remote | None:
        """Who has this key: in the table, or forgotten while somebody holds it."""
        return self.peers.get(key) or self._forgotten.get(key)

    def know(self, peer: Remote) -> Remote:
        """Have it in the table, which it was not in, and report it as found; returns it."""
        self._forgotten.pop(peer.key, None)
        peer.keep_view()
        peer.successor = None
        self.peers[peer.key] = peer
        self.peers_version += 1
        self.datagrams.place(peer)
        self.emit(events.PeerFound, peer)
        self.check_name(peer)
        return peer

    def check_name(self, peer: Remote) -> None:
        """A peer is there: it announced itself, or connected. Tell who shares its name."""
        if self.peers.get(peer.key) is not peer:
            return
        for newcomer, other in self._names.heard(peer):
            self.emit(events.NameCollision, newcomer, other)
            name = newcomer.name
            if name not in self._names_warned and len(self._names_warned) < _NAMES_WARNED:
                self._names_warned.add(name)
                whose = "this node" if other is None else f"peer {other.id} at {other.address[0]}"
                self.log.warning(
                    "name %r is that of peer %s at %s and of %s: give each its own "
                    "(PEERTALK_NAME), or use ids",
                    name,
                    newcomer.id,
                    newcomer.address[0],
                    whose,
                )

    def find_successor(self, peer: Remote) -> None:
        """A peer has lost its connection: who has been met at its address meanwhile is its next
        life."""
        for other in self._others_at(peer.address, peer.instance):
            self.succeed(peer, other)

    def _others_at(self, address: Address, instance: bytes | None) -> list[Remote]:
        return [
            peer
            for peer in self.peers.values()
            if peer.address == address and peer.instance not in (None, instance)
        ]

    def succeed(self, old: Remote, successor: Remote) -> None:
        """A program was started again: nothing is forwarded, since the new one knows nothing of
        what the old one was sent."""
        old.successor = successor
        restarted = old.restarted_error()
        self.cancel(old.retry)
        old.retry = None
        self.fail_queued(old, restarted)
        old.tell_reaching(restarted)
        self.forget(old, events.LostReason.RESTARTED)

    def tidy(self, peer: Remote) -> None:
        """Forget a peer of whom there is nothing left: no connection, none on its way, nothing that
        waits, and no announcement."""
        announced = self.finder is not None and peer.key in self.finder.discovery
        if announced or peer.connection is not None or peer.queued or peer.reaching or peer.retry:
            return
        if self.connections.dialling(peer) is None and not (peer.line and peer.line.members):
            self.forget(peer, events.LostReason.CLOSED)

    def renew(self, peer: Remote, key: Any, instance: bytes | None) -> None:
        """A peer is known better: one that was taken for classic has an instance id, or one that
        called has said where it listens. Nobody else has this key: see recall()."""
        del self.peers[peer.key]
        self.inbox.rename(peer.key, key)
        peer.key = key
        self.peers[key] = peer
        self.peers_version += 1

    def forget(self, peer: Remote, reason: events.LostReason | None) -> None:
        """Take an unconnected peer out of the table. reason: what to report; None: nothing."""
        if self.peers.get(peer.key) is peer and peer.connection is None:
            del self.peers[peer.key]
            self.peers_version += 1
            self.datagrams.displace(peer)
            self._names.forget(peer)
            self._forgotten[peer.key] = peer
            if isinstance(peer.key, tuple):
                self.switchboard.classics.forget(peer.key)
            self.inbox.end(peer)
            if reason is not None:
                self.emit(events.PeerLost, peer, reason)
            peer.loosen_view()

    def present(self) -> Iterator[events.Event[Any]]:
        """What is true now, as events: what who listens from now on has missed of those who are
        there."""
        for peer in self.peers.values():
            yield events.PeerFound(peer.view)
            if peer.connection is not None:
                yield events.PeerConnected(peer.view)
            if peer.frozen:
                yield events.PeerFrozen(peer.view)

    def emit(self, event: Callable[..., object], *fields: Any) -> None:
        """Report an event about a peer, if anybody listens, who sees its view."""
        self.changed()
        if self.publish is not None:
            seen = (each.view if isinstance(each, Remote) else each for each in fields)
            self.publish(event(*seen))

    def changed(self) -> None:
        """Who is known, connected or to be had is not as it was: those who wait look again."""
        self.changes += 1
        if self.on_change is not None:
            self.on_change()

    def seek(self, who: str) -> None:
        """Somebody waits for the peer of this name or id, which is not known."""
        if self.finder is not None and not self.closing:
            self.finder.seek(who)

    # Peers: what discovery tells ------------------------------------------------------------------

    def found(self, event: Found | Changed | Heard) -> None:
        """Discovery has heard a new peer, something new of one, or one that is not connected."""
        peer = self.peers.get(event.key)
        if isinstance(event.key, tuple) and (peer is None or peer.connection is None):
            peer = self.switchboard.name_caller(event.key) or peer
        flags = PeerFlag.heard(event.announcement.flags)
        if peer is None:
            peer = self.make_peer(
                event.key, event.announcement.instance, event.announcement.name, event.address
            )
            peer.flags = flags
            self.datagrams.place(peer)
        else:
            before = peer.name, peer.flags
            peer.name, peer.flags = event.announcement.name, flags
            if peer.connection is None:
                peer.address = event.address
            self.peers_version += 1
            self.datagrams.place(peer)
            if before != (peer.name, flags):
                self.emit(events.PeerChanged, peer)
            self.check_name(peer)
        if peer.classic:
            self.switchboard.heard_classic(peer)
        if peer.connection is None:
            self.switchboard.heard(peer, event.heard_at)

    def gone(self, event: Gone) -> None:
        """Discovery has forgotten a peer. One that has said goodbye is not waited for; one that was
        silent may still be reached by the attempt that is under way."""
        peer = self.peers.get(event.key)
        if event.reason is events.LostReason.GOODBYE:
            self.switchboard.expect_no_more(event.key)
        if peer is None or peer.connection is not None:
            return
        trying = peer.retry is not None or self.connections.dialling(peer) is not None
        if trying and event.reason is events.LostReason.TIMEOUT:
            return
        text = f"peer {peer.name!r} is gone ({event.reason.value})"
        lost = errors.ConnectionClosed(text, peer=peer.name)
        self.cancel(peer.retry)
        peer.retry = None
        self.fail_queued(peer, lost)
        peer.tell_reaching(lost)
        self.forget(peer, event.reason)

    # Small things ---------------------------------------------------------------------------------

    def tag(self) -> int:
        """A number for something in the loop, which nothing there has."""
        while True:
            self._next_tag += 1
            if self._next_tag > _LAST_TAG:  # after weeks: what is older than that keeps its own
                self._next_tag = _FIRST_TAG
            tag = self._next_tag
            if not (tag in self._timers or tag in self._watched or tag in self.connections.by_tag):
                return tag

    def memory(self) -> MemoryReport:
        """Bytes that the C side holds, part by part; of its end, once the node is closed."""
        if self.forked:
            self.check_open()
        if not self.closed:
            self._memory = MemoryReport(
                {part: MemoryUse(*use) for part, use in self.loop.memory().items()}
            )
        return self._memory

    def stats(self) -> NodeStatistics:
        """Counters of the whole node; of its end, once it is closed."""
        if self._final is not None:
            return self._final
        if self.forked:
            self.check_open()
        open_links = [
            link.statistics()
            for connection in list(self.connections.by_tag.values())  # any thread may ask
            if (link := connection.link) is not None
        ]
        return self.totals.report(
            open_links,
            self.loop.statistics(),
            self.loop.pool_statistics(),
            links_open=len(open_links),
            links_refused=self.connections.refused,
            inbox_bytes=self.inbox.total,
            peers=len(self.peers),
            peers_refused=0 if self.finder is None else self.finder.discovery.statistics().refused,
            queued=sum(peer.queued for peer in self._everybody()),
        )
