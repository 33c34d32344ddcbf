"""The engine of a node, under all else of the runtime: turns the loop, and calls what is due.

A state machine without coroutines, tasks or futures. One thread calls turn(); each call serves what
the loop has found: sockets that are ready, timers whose time has come, links that have brought
something or have ended, and what other threads have left. Who stands on an engine may use:

    note, raise_later, is_coming, turns      one turn, and what it raises
    after, cancel, is_armed                  timers
    watch, unwatch, close_socket, tag        sockets, and numbers for what lies in the loop
    spare                                    a descriptor for when there are no others
    post, call, call_all, try_twice          orders, and functions that are not ours
    unread                                   what has come of a connection, and is not served
    hint, schedule, emit, changed            what it tells
    config, core, world, loop, workers,      what all parts of a node share
    connections
    instance, log, troubles, totals, lock
    pipeline_depth, port, local
    check_open, closing, closed, released    whether it is there, and its end
    let_go, on_closed

and gives it serve_link, mend_link and tidy_up, and fills in emit, release and turned. Drivers and
doors use turn, crowded, owes, resume, linger, thread, owner, move_here, disown, heed_forks, orphan,
forked, process, publish, listen, on_change, changes, before_closing and before_release. The engine
knows no peer and no message. Only post() may be called on another thread.

No exception ends a turn: a callback's, a fault's, or one that a signal handler raises wherever it
struck. What has come stays here until it is served; an event that was cut off is mended, the others
are served, and then the exception goes to whoever called turn().

Invariant: an event is in _came from the moment that the loop has it until it is served to its end.
Never: forgets a timer's action or an order because something was raised.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from .. import errors
from .._core import load, values
from ..config import Config
from ..protocol.connections import Connection, Connections
from ..protocol.statistics import LinkTotals
from ..protocol.wire import INSTANCE_SIZE
from . import forks
from .log import NodeLog, Troubles
from .workers import Workers
from .world import Spare, World

_FIRST_TAG = 16
_LAST_TAG = 0xFFFF_FFF0
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


class Engine(ABC):
    """What turns one node.

    Args:
        config: everything that can be chosen.
        world: sockets and the clock.
        schedule: asks the driver for a turn at the end of this tick; called on the engine's thread
            only, any number of times.
    """

    forked = False
    """Whether this is a forked child of its process, where it is dead."""
    owner: Any = None
    """Whose turns they are: the asyncio loop of a peertalk.Node, or a node of peertalk.sync."""
    on_change: Callable[[], None] | None = None
    """Told whenever who is known, or connected, may have changed."""
    changes = 0
    """How often that was."""
    before_closing: Callable[[int], None] | None = None
    """Told each descriptor before it is closed, for a driver that watches them itself."""
    before_release: Callable[[], None] | None = None
    """Told before the loop is closed, so that its driver lets go first."""
    resume: Callable[[Callable[[], object]], bool] | None = None
    """See Worker.resume; None: its driver has no tasks."""
    linger: Callable[[], None] | None = None
    """See Worker.linger; None: whoever drives it turns it before anybody looks."""
    shared = False
    """Whether any thread may send on a peer's link while that is quick: see Loop.sender()."""
    owes = False
    """Whether something has left that only a turn tells (values.LEFT), since linger() told that."""
    released = False
    """Whether nothing is left to be given back."""

    def __init__(self, config: Config, world: World, schedule: Callable[[], None]) -> None:
        self.config = config
        self.core = core = load(config.core or None)
        self.world = world
        self.schedule = schedule
        self.process = os.getpid()
        self.instance = world.identity(INSTANCE_SIZE)
        self.thread = threading.get_ident()
        self.lock = threading.RLock()  # a signal handler may strike whoever has it
        self.port = 0
        self.local = False  # whether it can be called at a socket of this host, too
        self.closed = self.closing = self.crowded = False
        depth_is_default = config.explain()["pipeline_depth"][1] == "default"
        self.pipeline_depth: int = (
            core.limits.pipeline_depth if depth_is_default else config.pipeline_depth
        )
        self.turns = 0
        """Turns that began here: what is due once in a turn remembers the last one."""
        self.totals = LinkTotals()
        self.log = NodeLog("peertalk.network", config.name)
        self.troubles = Troubles(self, self.log)
        self.connections = Connections(world.max_connections(config))
        self.spare = Spare(world)
        self._timers: dict[int, Callable[[], None]] = {}
        self._watched: dict[int, Watched] = {}
        self.orders: deque[Callable[[], None]] = deque()  # post() has left, and no turn has obeyed
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
        self._acting: Callable[[], None] | None = None
        """The action of the timer that is being served."""
        self._raised: list[BaseException] = []
        """In this turn, for its end."""
        self.on_closed: list[Callable[[], object]] = []
        """Whom to call when all is given back."""
        self._publish: Callable[[Any], None] | None = None
        self._listening = 0  # who wait to hear of each message, beside whoever takes all events
        self.loop: Any = world.make_loop(core, config)
        self.workers = Workers.of(core, config, self.loop, world.has_threads)
        self.listen(0)

    def heed_forks(self) -> None:
        """Be orphaned in a forked child from now on: all that stands on this engine is made."""
        forks.heed(self)

    # What stands on it ----------------------------------------------------------------------------

    serve_link: Callable[[Connection, int, int, Any], None]
    """Told each event that a link has brought."""

    mend_link: Callable[[Connection, int, int, Any, BaseException | None], None]
    """Serving that was cut off: what was to be done of it is done, or its connection ends. The
    last argument is what cut it off; None: an exception that has left the turn."""

    tidy_up: Callable[[], None]
    """After anything was cut off: nothing stays half made, or half ended."""

    @abstractmethod
    def release(self) -> None:
        """The engine gives everything back: so does what stands on it, before. May be called
        again."""

    @abstractmethod
    def turned(self) -> None:
        """All that this turn has brought is served, and no order is left."""

    # A turn ---------------------------------------------------------------------------------------

    def turn(self, timeout: float | None = 0.0) -> None:
        """Serve whatever is ready, waiting up to timeout seconds for it (None: until something
        is)."""
        self.crowded = False
        self.connections.take_in_turns()
        self.turns += 1
        came, by_tag = self._came, self.connections.by_tag
        self._turning = True
        try:
            if came:  # a signal handler has ended a turn
                self._go_on()
            elif self.workers.work:
                self.workers.turn(timeout, came)
            else:
                self.loop.turn(timeout, came)
            if len(came) == 2 and came[1][0] == values.SENT:
                came.reverse()
            elif len(came) > 1:
                came.sort(key=_rank)
            while came:
                self._serving = event = came[0]
                try:
                    kind, tag, a, b = event
                    connection = by_tag.get(tag)
                    if connection is not None:
                        self.serve_link(connection, kind, a, b)
                    else:
                        self._serve(kind, tag)
                    del came[0]
                except BaseException as error:
                    self._mend(event, error)
            self._serving = None
            while self.orders:
                self._obey()
            try:
                self.turned()
            except BaseException as error:
                self.note(error)
            if self._calls:  # what a signal handler raised has ended call_all()
                self._call_rest()
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
        """One order. Of one that is cut off nobody knows how much was done."""
        try:
            self.orders[0]()
        except BaseException as error:
            self._mend(None, error)
        self.orders.popleft()

    def _call_rest(self) -> None:
        """What call_all() has left."""
        self._calling = False  # a signal handler may have left it set, and nothing would be called
        try:
            self.call_all()
        except BaseException as error:
            self.note(error)

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

    def _serve(self, kind: int, tag: int) -> None:
        """A socket that is ready, or a timer whose time has come."""
        if kind == values.READY:
            watched = self._watched.get(tag)
            if watched is not None:
                watched.ready()
        elif kind == values.TIMER:
            self._acting = action = self._timers.get(tag)
            if action is not None:
                del self._timers[tag]
                action()
                self._acting = None

    def _mend(self, event: Event | None, error: BaseException | None) -> None:
        """Serving this event, or an order (None), was cut off: what was to be done of it is done,
        or its connection ends. error: what cut it off; None: an exception that has left the
        turn."""
        if error is not None:
            self.note(error)
        self._calling = False  # a signal handler may have left it set, and nothing would be called
        of_event = () if event is None else (partial(self._mend_event, event, error),)
        for step in (*of_event, self.tidy_up, self.call_all):
            for _ in range(_TRIES):
                try:
                    if self.closed:
                        self.let_go()
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
            self.mend_link(connection, kind, a, b, error)

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

    # Orders, and functions that are not ours ------------------------------------------------------

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

    def post(self, order: Callable[[], None]) -> None:
        """Have order called on the engine's thread, soon. Any thread."""
        self.orders.append(order)
        self.loop.wake()

    # Timers and sockets ---------------------------------------------------------------------------

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

    def is_armed(self, timer: Timer) -> bool:
        """Whether its action is still to come."""
        return timer.tag in self._timers

    def cancel(self, timer: Timer | None) -> None:
        """Do not call the timer's action; nothing happens when it was called, or for None."""
        if timer is not None and self._timers.pop(timer.tag, None) is not None:
            timer.timer.cancel()

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

    def tag(self) -> int:
        """A number for something in the loop, which nothing there has."""
        while True:
            self._next_tag += 1
            if self._next_tag > _LAST_TAG:  # after weeks: what is older than that keeps its own
                self._next_tag = _FIRST_TAG
            tag = self._next_tag
            if not (tag in self._timers or tag in self._watched or tag in self.connections.by_tag):
                return tag

    def unread(self, connection: Connection) -> int:
        """How much of a connection has come and is not served yet, 0: nothing. Bytes in the system,
        and in the core, which reads more at once than a connection may bring in a turn; 1 for what
        this turn has read."""
        unread = self.world.unread(connection.socket)
        if connection.link is not None:
            unread += int(connection.link.held_bytes) + self.workers.keeps(connection.tag)
        return unread or int(self.is_coming(connection.tag))

    # Whose it is, and its end ---------------------------------------------------------------------

    def orphan(self) -> None:
        """Be dead in a forked child, where all use is refused. Its copies of the descriptors are
        closed, so that the parent's connections end when the parent ends them; nothing is written,
        nobody is told, and no epoll set is changed, since those are the parent's too."""
        self.lock = threading.RLock()  # another thread of the parent may have had it
        if self.closed:
            return
        self.forked = self.closing = self.closed = self.released = True
        self.thread = NO_THREAD
        self.before_closing = self.before_release = self._publish = self.on_change = None
        connections = list(self.connections.by_tag.values())
        sockets = [
            *(watched.socket for watched in self._watched.values()),
            *(each.socket for each in connections if each.socket is not None),
            *self.spare.kept,
        ]
        self.connections.by_tag.clear()
        self._watched.clear()
        self._timers.clear()
        self.orders.clear()
        self.workers.orphan()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.close()

    def move_here(self) -> None:
        """Belong to the calling thread from now on; whoever calls holds the lock that orders the
        threads."""
        here = threading.get_ident()
        if self.thread != here:
            if not self.closed:
                self.workers.move_here()
            self.thread = here

    def disown(self) -> None:
        """Belong to no thread until move_here(): turns and sends are refused."""
        self.thread = NO_THREAD
        self.workers.disown()

    def check_open(self) -> None:
        """Raises InvalidState when the node is closed or being closed, or another process's."""
        if self.closing or self.closed:
            if self.forked:
                raise errors.InvalidState(
                    f"node {self.config.name!r} belongs to process {self.process}, this is its "
                    "forked child: start a new node here"
                )
            raise errors.InvalidState(f"node {self.config.name!r} is closed")

    def let_go(self) -> None:
        """Give everything back, and tell that: once, though it may be begun anew when it was cut
        off."""
        if self.released:
            return
        self.release()
        self.spare.let_go()
        self._timers.clear()
        if self.before_release is not None:
            self.try_twice(self.before_release)
        self.workers.close()
        self.call(self.on_closed)
        self.on_closed = []
        self.released = True
        self.call_all()

    def try_twice(self, step: Callable[[], object]) -> None:
        """One step of several that are independent of each other, each of which may be done twice:
        once more when it raises, since that may have been a signal handler."""
        for _ in range(2):
            try:
                step()
                return
            except Exception as error:
                self.note(error)

    def hint(self, code: int) -> None:
        """Act on what a link said beside success; a refusal says nothing."""
        if code == values.LEFT:
            if self._publish is not None or self._listening:
                self.schedule()
            elif not self.owes:
                if self.linger is not None:
                    self.linger()
                self.owes = True  # last: a signal handler may raise before
        elif code > 0:
            if code & values.YIELD:
                self.crowded = True
            self.schedule()

    @property
    def publish(self) -> Callable[[Any], None] | None:
        """Told each event; None: nobody listens."""
        return self._publish

    @publish.setter
    def publish(self, publish: Callable[[Any], None] | None) -> None:
        self._publish = publish
        self.connections.take_in_turns()
        self.listen(0)

    def listen(self, more: int) -> None:
        """So many more, or fewer, wait to hear of each message that it has left."""
        self._listening += more
        late = self._publish is None and not self._listening
        self.loop.tells_late = late
        self.workers.tell_sent(not late)

    @abstractmethod
    def emit(self, event: Callable[..., object], *fields: Any) -> None:
        """Report an event about a peer, if anybody listens."""

    def changed(self) -> None:
        """Who is known, connected or to be had is not as it was: those who wait look again."""
        self.changes += 1
        if self.on_change is not None:
            self.on_change()
