"""Fields that take no memory until they are set."""

from __future__ import annotations

from peertalk.protocol.rare import Rare


class Thing:
    """Has two such fields."""

    __slots__ = ("rare",)
    count = Rare(0)
    name = Rare[str | None](None)

    def __init__(self):
        self.rare = None


def test_a_field_is_its_default_until_it_is_set_and_costs_nothing_then():
    """There is one object for each idle peer."""
    one, other = Thing(), Thing()
    assert (one.count, one.name) == (0, None) and one.rare is None
    one.count = 3
    one.name = "ada"
    assert (one.count, one.name) == (3, "ada") and (other.count, other.name) == (0, None)
    one.name = None
    assert (one.count, one.name) == (3, None)
    one.count -= 3
    assert one.count == 0 and one.rare is None, "nothing is left of what was set"


def test_setting_the_default_takes_no_memory():
    """Whoever clears a field does not ask whether it was set."""
    thing = Thing()
    thing.count = 0
    thing.name = None
    assert thing.rare is None


def test_the_class_has_the_field_itself():
    """For whoever reads the class, such as a documentation tool."""
    assert isinstance(Thing.count, Rare)
