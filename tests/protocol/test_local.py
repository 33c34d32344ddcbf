"""Where the sockets of a host lie, whose they may be, and from where a caller says it calls."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.protocol import local


@pytest.mark.parametrize(
    ("runtime_dir", "places"),
    [
        ("/run/user/1000", ["/run/user/1000/peertalk-1000", "/tmp/peertalk-1000"]),
        ("", ["/tmp/peertalk-1000"]),
        ("run", ["/tmp/peertalk-1000"]),
    ],
)
def test_a_socket_lies_where_the_environment_says_or_among_the_temporary_files(runtime_dir, places):
    """With the user's number: a program that became another user may have kept the environment."""
    assert local.folders(runtime_dir, 1000) == places


def test_the_name_of_a_socket_is_the_instance_and_short_enough():
    """A path has 107 bytes; usual places take half of them."""
    place = local.place(local.folders("/run/user/4294967295", 2**32 - 1)[0], b"\x00" * 7 + b"\x1f")
    assert place == "/run/user/4294967295/peertalk-4294967295/000000000000001f.sock"
    assert len(place) < 108


@pytest.mark.parametrize(
    ("mode", "owner", "private"),
    [
        (stat.S_IFDIR | 0o700, 7, True),
        (stat.S_IFDIR | stat.S_ISGID | 0o700, 7, True),
        (stat.S_IFDIR | 0o700, 8, False),
        (stat.S_IFDIR | 0o710, 7, False),
        (stat.S_IFDIR | 0o701, 7, False),
        (stat.S_IFLNK | 0o700, 7, False),
        (stat.S_IFREG | 0o700, 7, False),
    ],
)
def test_a_folder_is_private_when_nobody_else_may_enter(mode, owner, private):
    """What somebody else has made, a link among it, leads to somebody else."""
    assert local.is_private(mode, owner, 7) is private


@pytest.mark.parametrize(
    ("mode", "age", "left"),
    [(stat.S_IFSOCK, 61, True), (stat.S_IFSOCK, 59, False), (stat.S_IFREG, 61, False)],
)
def test_an_old_socket_may_have_been_left(mode, age, left):
    """A young one may be about to be listened at; what is none is not ours to judge."""
    assert local.may_be_left(mode | 0o600, 1000.0, 1000.0 + age) is left


def test_the_kernel_says_the_user_in_the_second_number():
    assert local.user_of(local.CREDENTIALS.pack(4711, 1000, 100)) == 1000


@given(host=st.ip_addresses(v=4).map(str), chance=st.binary(min_size=8, max_size=8))
def test_a_caller_says_from_where_tcp_would_have_called(host, chance):
    """In a name that is no file, and that fits."""
    name = local.name_of_caller(host, chance)
    assert name.startswith(b"\0") and len(name) < 108
    assert local.host_of_caller(name) == host


@given(
    name=st.one_of(
        st.none(), st.text(), st.binary(), st.binary().map(lambda end: b"\0peertalk/" + end)
    )
)
def test_whoever_says_nonsense_is_of_this_host_all_the_same(name):
    """Nobody else can call. What it says is an address all the same, or not believed."""
    host = local.host_of_caller(name)
    assert [0 <= int(part) < 256 for part in host.split(".")] == [True] * 4


@pytest.mark.parametrize(
    "name", [b"", "", "/run/a/file", b"\0peertalk", b"\0peertalk/x/0", b"\0other/1.2.3.4/0"]
)
def test_a_name_that_is_none_of_ours_says_nothing(name):
    assert local.host_of_caller(name) == "127.0.0.1"
