"""Names that several bear: told once, to whoever hears both, and never of a program that was only
started again."""

from __future__ import annotations

import itertools
import sys
import types

from peertalk.protocol.names import Names

names_file = Names.heard.__code__.co_filename


class Somebody(types.SimpleNamespace):
    __hash__ = object.__hash__


def known(name, connected=False, address=None):
    """address: None: one of its own."""
    return Somebody(name=name, connected=connected, address=address or object())


def test_two_of_a_name_that_are_both_heard_are_told_once():
    """The second one is news; so is not each of its announcements."""
    names, one, two = Names("ada"), known("bob"), known("bob")
    assert names.heard(one) == names.heard(one) == [] == names.heard(two)
    assert names.heard(one) == [(two, one)]
    assert names.heard(one) == names.heard(two) == []


def test_a_former_life_that_is_heard_no_more_is_no_collision():
    """A program that was killed and started again is known twice for half a minute."""
    names, former, again = Names("ada"), known("bob"), known("bob")
    names.heard(former)
    assert [names.heard(again) for _ in range(5)] == [[]] * 5


def test_one_that_is_connected_is_there_without_being_heard():
    """Discovery says nothing more of who is connected."""
    names, one, two = Names("ada"), known("bob", connected=True), known("bob")
    assert names.heard(one) == []
    assert names.heard(two) == [(two, one)]


def test_who_listens_where_another_did_is_its_next_life_though_that_seems_connected():
    """A host that lost its power and is back within link_timeout was told to be two."""
    names, there = Names("ada"), ("10.0.0.2", 7354)
    former, again = known("bob", connected=True, address=there), known("bob", address=there)
    other = known("bob")
    assert names.heard(former) == names.heard(again) == names.heard(again) == []
    assert names.heard(other) == [(other, former)]


def test_our_own_name_is_taken_by_whoever_bears_it():
    """We are there."""
    names, one, two = Names("ada"), known("ada"), known("ada")
    assert names.heard(one) == [(one, None)]
    assert names.heard(two) == [(two, None)]
    assert names.heard(one) == names.heard(two) == []


def test_who_changes_its_name_or_is_forgotten_leaves_the_line():
    """Who comes again is told again."""
    names, one, two = Names("ada"), known("bob", connected=True), known("bob")
    names.heard(one)
    assert names.heard(two) == [(two, one)]
    two.name = "carol"
    assert names.heard(two) == []
    two.name = "bob"
    assert names.heard(two) == [(two, one)]
    for each in (one, two, two):
        names.forget(each)
    assert not names._lines and not names._called
    assert names.heard(two) == []


def test_nameless_peers_share_nothing():
    """A classic peer that called has no name before it is heard."""
    names, one, two = Names("ada"), known("", connected=True), known("", connected=True)
    assert [names.heard(each) for each in (one, two, one)] == [[], [], []]


class Struck(BaseException):
    """What a signal handler raises."""


def test_what_is_cut_off_at_any_step_is_done_the_next_time():
    """A signal handler raises anywhere; a peer that stood in a line by half was a KeyError, and its
    forgetting never ended."""
    for at in itertools.count(1):
        names, one, left = Names("ada"), known("bob", connected=True), at

        def look(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename != names_file or event == "call":
                return look
            left -= 1
            if not left:
                sys.settrace(None)
                raise Struck
            return look

        sys.settrace(look)
        try:
            names.heard(one)
            names.forget(one)
        except Struck:
            pass
        finally:
            sys.settrace(None)
        two = known("bob")
        names.heard(one)
        assert names.heard(two) == [(two, one)], f"struck at step {at}"
        names.forget(one)
        names.forget(two)
        assert not names._lines and not names._called
        if left > 0:
            break
    assert at > 10
