"""Messages that wait for a slot, in order, for one peer.

Invariant: bytes is the sum of the lengths of all waiting messages, and at most max_bytes unless a single message, longer than that, waits alone;
len() is at most max_messages.
Never: drops, blocks, copies or reorders. A refusal changes nothing.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from ..errors import InvalidArgument

Payload = bytes


class Outbox:
    """Bounded first-in first-out queue of payloads. Not thread-safe: runtime holds the lock.

    Args:
        max_messages: messages that may wait, 1 or more.
        max_bytes: sum of their lengths in bytes, 1 or more. A single longer message is accepted when the outbox is empty, so that every
            message that a peer can take can pass.

    Raises:
        InvalidArgument: a limit below 1.
    """

    __slots__ = ("_bytes", "_pending", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        if max_messages < 1 or max_bytes < 1:
            raise InvalidArgument(f"an outbox of {max_messages:,} messages and {max_bytes:,} bytes: both must be 1 or more")
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self._pending: deque[Payload] = deque()
        self._bytes = 0

    def put(self, data: Payload) -> bool:
        """Append one message. False: there is no room, and nothing has changed. O(1)."""
        pending = self._pending
        total = self._bytes + len(data)
        if pending and (total > self.max_bytes or len(pending) >= self.max_messages):
            return False
        pending.append(data)
        self._bytes = total
        return True

    def peek(self, count: int) -> list[Payload]:
        """The first `count` messages, or all if there are fewer; they stay."""
        return list(islice(self._pending, count))

    def drop(self, count: int) -> None:
        """Take away the first `count` messages: they have been handed on.

        Raises:
            InvalidArgument: fewer than that are waiting; nothing has changed.
        """
        pending = self._pending
        if not 0 <= count <= len(pending):
            raise InvalidArgument(f"{count:,} messages to drop: {len(pending):,} are waiting")
        for _ in range(count):
            self._bytes -= len(pending.popleft())

    def clear(self) -> int:
        """Take away all messages; their number."""
        count = len(self._pending)
        self._pending.clear()
        self._bytes = 0
        return count

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def bytes(self) -> int:
        """Sum of the lengths of all waiting messages."""
        return self._bytes

    @property
    def capacity(self) -> int:
        """Messages that may wait at most."""
        return self.max_messages

    @property
    def pressure(self) -> int:
        """Fill level, 0 (empty) to 100 (full): the larger one of messages and bytes, in per cent rounded down."""
        fill = max(len(self._pending) * 100 // self.max_messages, self._bytes * 100 // self.max_bytes)
        return min(fill, 100)
