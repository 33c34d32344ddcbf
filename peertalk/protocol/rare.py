"""A field that few objects of a class ever have, while there is an object for each idle peer: it
takes no memory of an object until it is set to something else than its default.

The class has a slot `rare`, None at first. Never: for what is asked for with each message, since it
takes longer than a slot does.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Rare(Generic[T]):
    """One such field. default: what all have that were not given another value; immutable."""

    __slots__ = ("_default", "_name")

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, holder: None, owner: type) -> Rare[T]: ...

    @overload
    def __get__(self, holder: Any, owner: type) -> T: ...

    def __get__(self, holder: Any, owner: type) -> Rare[T] | T:
        if holder is None:
            return self
        held: dict[str, T] | None = holder.rare
        return self._default if held is None else held.get(self._name, self._default)

    def __set__(self, holder: Any, value: T) -> None:
        held: dict[str, T] = holder.rare or {}
        if value == self._default:
            held.pop(self._name, None)
        else:
            held[self._name] = value
        holder.rare = held or None
