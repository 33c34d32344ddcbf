"""Configuration: precedence, bounds, units, and messages that say where a wrong value came from."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk._core import load
from peertalk._numbers import IO_BUDGET, IO_BUDGET_MAX
from peertalk.config import (
    CORES,
    PROFILES,
    Config,
    Setting,
    check_name,
    default_name,
    load_config,
    settings,
)
from peertalk.errors import InvalidArgument, WrongType

BOUNDED = [setting for setting in settings() if setting.minimum is not None]
BY_NAME = {setting.name: setting for setting in settings()}


@pytest.fixture(autouse=True)
def _no_variables_of_this_shell(monkeypatch):
    for setting in settings():
        monkeypatch.delenv(setting.environment, raising=False)


def test_an_argument_beats_the_environment_which_beats_the_default(monkeypatch):
    """Whoever speaks closest to the code has the last word, and explain() says who it was."""
    monkeypatch.setenv("PEERTALK_PORT", "5000")
    monkeypatch.setenv("PEERTALK_MAX_PEERS", "7")
    config = load_config(port=6000)
    assert (config.port, config.max_peers, config.io_budget) == (6000, 7, 16)
    explained = config.explain()
    assert explained["port"] == (6000, "argument")
    assert explained["max_peers"] == (7, "environment PEERTALK_MAX_PEERS")
    assert explained["io_budget"] == (16, "default")
    assert set(explained) == {setting.name for setting in settings()}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_beats_the_default_and_yields_to_argument_and_environment(profile, monkeypatch):
    """A profile is a better default, not an order: whoever says a value outright gets it, even when
    it is the plain default."""
    monkeypatch.setenv("PEERTALK_MAX_PEERS", "1024")
    config = load_config(profile=profile, pipeline_depth=8)
    assert (config.profile, config.core, config.max_peers, config.pipeline_depth, config.port) == (
        profile,
        "lowmem",
        1024,
        8,
        7354,
    )
    explained = config.explain()
    assert {
        name: explained[name][1]
        for name in ("profile", "core", "max_peers", "pipeline_depth", "port")
    } == {
        "profile": "argument",
        "core": "profile",
        "max_peers": "environment PEERTALK_MAX_PEERS",
        "pipeline_depth": "argument",
        "port": "default",
    }
    monkeypatch.delenv("PEERTALK_MAX_PEERS")
    monkeypatch.setenv("PEERTALK_PROFILE", profile)
    for small in (load_config(), Config(profile=profile)):
        assert (small.core, small.max_peers, small.pipeline_depth) == ("lowmem", 4, 2)
        assert [small.explain()[name][1] for name in PROFILES[profile]] == ["profile"] * 3
    assert load_config(core="standard").explain()["core"] == ("standard", "argument")
    with pytest.raises(
        InvalidArgument,
        match="argument profile='huge': profile must be embedded, or empty for none",
    ):
        load_config(profile="huge")


def test_the_embedded_profile_is_the_lowmem_core_and_its_limits():
    """The numbers stand in two places: what was compiled is right."""
    assert set(PROFILES) == {"embedded"}
    core = load("lowmem")
    limits = {
        "core": core.name,
        "max_peers": core.limits.max_peers,
        "pipeline_depth": core.limits.pipeline_depth,
    }
    assert all(preset == limits for preset in PROFILES.values())


@pytest.mark.parametrize("core", CORES)
def test_the_budget_of_a_turn_has_the_bounds_of_every_core(core):
    """The numbers stand in two places, and a node of the lowmem core is refused nothing later."""
    setting = BY_NAME["io_budget"]
    bounds = (setting.minimum, setting.default, setting.maximum)
    assert bounds == (1, IO_BUDGET, IO_BUDGET_MAX) == (1, 16, 1_024)
    for budget in bounds:
        assert Config(core=core, io_budget=budget).io_budget == budget
        load(core).Loop(io_budget=budget).close()
    for wrong in (0, 1_025):
        with pytest.raises(InvalidArgument, match=r"io_budget.* 1 to 1,024 links"):
            Config(core=core, io_budget=wrong)
        with pytest.raises(InvalidArgument, match=r"a turn serves 1 to 1,024"):
            load(core).Loop(io_budget=wrong)


def test_a_config_built_directly_guesses_its_sources():
    """No environment was read, so a value is the default or somebody's argument."""
    explained = Config(port=1).explain()
    assert explained["port"] == (1, "argument")
    assert explained["discovery_port"] == (7353, "default")


def test_a_wrong_variable_that_an_argument_overrules_harms_nobody(monkeypatch):
    """A broken shell profile must not stop a program that says exactly what it wants."""
    monkeypatch.setenv("PEERTALK_PORT", "many")
    assert load_config(port=1).port == 1


def test_the_defaults_that_both_sides_must_share_are_those_of_the_original():
    """A node with nothing set finds, and is found by, an original with nothing set."""
    config = Config()
    assert (config.discovery_port, config.port, config.udp_port) == (7353, 7354, 7355)
    assert config.announce_interval == 5.0
    assert config.peer_timeout == 30.0, "what the original really waits"
    assert config.async_send is True and config.drain_timeout == 5.0


def test_none_and_an_empty_variable_count_as_not_given(monkeypatch):
    """A command line passes None for what was not typed; shells leave empty variables behind."""
    monkeypatch.setenv("PEERTALK_PORT", "")
    config = load_config(port=None, name=None)
    assert config == Config(name=config.name)


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("PORT", " 80 ", 80),
        ("ANNOUNCE_INTERVAL", "250ms", 0.25),
        ("PEER_TIMEOUT", "1m", 60.0),
        ("DRAIN_TIMEOUT", "0", 0.0),
        ("SEND_QUEUE_BYTES", "64KiB", 65536),
        ("RECEIVE_QUEUE_BYTES", "1MB", 1_000_000),
        ("DISCOVERY", "Off", False),
        ("DISCOVERY", "1", True),
        ("INTERFACES", "eth0, lo,", ("eth0", "lo")),
        ("NAME", "ada", "ada"),
        ("BIND", "127.0.0.1", "127.0.0.1"),
        ("CORE", "lowmem", "lowmem"),
        ("ASYNC_SEND", "no", False),
        ("PIPELINE_DEPTH", "7", 7),
    ],
)
def test_each_kind_of_field_can_be_set_from_the_environment(monkeypatch, variable, text, expected):
    """The environment knows only text."""
    monkeypatch.setenv(f"PEERTALK_{variable}", text)
    assert getattr(load_config(), variable.lower()) == expected


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_bounds_are_inclusive_and_what_lies_beyond_is_refused_with_value_bound_and_source(
    setting: Setting, monkeypatch
):
    """The reader of the message must see what to change, to what, and where."""
    if setting.name == "peer_timeout":
        monkeypatch.setenv("PEERTALK_ANNOUNCE_INTERVAL", "0.1")  # not above it
    step = 1 if setting.kind in ("whole", "bytes") else 0.001
    for bound in (setting.minimum, setting.maximum):
        assert getattr(load_config(**{setting.name: bound}), setting.name) == bound
    for beyond in (setting.minimum - step, setting.maximum + step):
        with pytest.raises(InvalidArgument) as caught:
            load_config(**{setting.name: beyond})
        assert f"argument {setting.name}={beyond!r}: {setting.name} must be " in str(caught.value)
        monkeypatch.setenv(setting.environment, str(beyond))
        with pytest.raises(InvalidArgument) as caught:
            load_config()
        assert f"{setting.environment}={beyond} in the environment: {setting.name} must be " in str(
            caught.value
        )
        assert f"{setting.maximum:,}".removesuffix(".0") in str(caught.value)
        monkeypatch.delenv(setting.environment)


def test_the_message_about_a_port_reads_as_promised(monkeypatch):
    """This sentence is in the documentation."""
    monkeypatch.setenv("PEERTALK_PORT", "70000")
    with pytest.raises(
        InvalidArgument, match=r"^PEERTALK_PORT=70000 in the environment: port must be 0 to 65,535$"
    ):
        load_config()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"port": "7354"}, "whole number"),
        ({"port": True}, "whole number"),
        ({"port": 1.0}, "whole number"),
        ({"discovery": 1}, "True or False"),
        ({"interfaces": "eth0"}, "list of names"),
        ({"interfaces": [1]}, "list of names"),
        ({"name": b"ada"}, "must be text"),
        ({"announce_interval": [1]}, "text such as '250ms'"),
        ({"peer_timeout": False}, "text such as '250ms'"),
        ({"send_queue_bytes": 2048.0}, "text such as '64KiB'"),
    ],
)
def test_a_wrong_type_is_named_with_its_field(arguments, said):
    """A type error that surfaces three layers later costs an hour."""
    with pytest.raises(WrongType, match=said) as caught:
        load_config(**arguments)
    assert str(caught.value).startswith(f"argument {next(iter(arguments))}=")
    with pytest.raises(TypeError):
        Config(**arguments)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PORT", "many"),
        ("DISCOVERY", "maybe"),
        ("ANNOUNCE_INTERVAL", "1 day"),
        ("SEND_QUEUE_BYTES", "-1"),
        ("BIND", "::1"),
        ("CORE", "fast"),
        ("PROFILE", "huge"),
    ],
)
def test_text_that_means_nothing_names_its_variable(monkeypatch, variable, text):
    """Nobody remembers what stands in their environment."""
    monkeypatch.setenv(f"PEERTALK_{variable}", text)
    with pytest.raises(
        InvalidArgument,
        match=f"^PEERTALK_{variable}={text} in the environment: {variable.lower()} must be",
    ):
        load_config()


def test_an_unknown_argument_names_the_closest_field():
    """A typing error should cost seconds."""
    with pytest.raises(InvalidArgument, match=r"'anounce_intervall'.*'announce_interval'"):
        load_config(anounce_intervall=1)


@pytest.mark.parametrize("bind", ["224.0.0.1", "239.1.2.3", "255.255.255.255", "::1", "eth0"])
def test_an_address_that_no_machine_can_have_is_refused(bind):
    """bind(2) takes a group's address, and such a node would be found by nobody."""
    with pytest.raises(InvalidArgument, match="bind must be an IPv4 address of this machine"):
        load_config(bind=bind)


def test_the_address_that_other_programs_call_all_is_all():
    """A node that lived on 0.0.0.0 announced itself on no interface."""
    assert load_config(bind="0.0.0.0").bind == Config(bind="0.0.0.0").bind == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "0 bytes"),
        ("\u00e9" * 16, "32 bytes"),
        ("a\0b", r"'a\\x00b' holds a control character"),
        ("a\nb", r"'a\\nb' holds"),
        ("a\x1b[31m", "holds"),
        ("a\x9b31m", "holds"),
        ("a\u2028b", "end of a line"),
        ("\ud800", "UTF-8"),
    ],
)
def test_a_name_that_no_packet_can_hold_is_refused_with_its_length_and_the_limit(name, said):
    """The discovery packet has 31 bytes for it, counted in UTF-8, and the original stops at a NUL.
    Names stand in lines of logs: one with a line feed would write a line of its own."""
    with pytest.raises(InvalidArgument, match=said) as caught:
        load_config(name=name)
    if "bytes" in said:
        assert "1 to 31 bytes" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "\u00e9" * 15 + "x", "x" * 31, "\U0001f469\u200d\U0001f4bb"])
def test_a_name_of_1_to_31_bytes_is_taken_as_it_is(name):
    """The bound is inclusive."""
    assert load_config(name=name).name == name
    assert check_name(name) == name.encode()


@given(host=st.text(max_size=80), script=st.text(max_size=80))
def test_the_default_name_is_always_a_valid_one(host, script):
    """Names of hosts and scripts may be long, empty or odd; a node without a word of configuration
    must start anyway, and two of them have two names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: host)
        patch.setattr("sys.argv", [script])
        names = {default_name() for _ in range(3)}
        assert len(names) == 3
        for name in names:
            check_name(name)


@pytest.mark.parametrize(
    ("host", "script", "name"),
    [
        ("ada.example.org", "/srv/chat.py", "ada-chat"),
        ("ada", "/lib/python3/site-packages/shop/__main__.py", "ada-shop"),
        ("ada", "-c", "ada-python"),
        ("ada", "", "ada-python"),
        ("ada\nbob", "chat\x1b.py", "adabob-chat"),
        ("web-frontend-7d9f8b6c5d-abcde", "server.py", "web-frontend-7d9f-server"),
        ("web-frontend-7d9f8b6c5d-abcde", "a-long-name-of-a-script.py", "web-fronten-a-long-name-"),
        ("ada", "a-long-name-of-a-script.py", "ada-a-long-name-of-a-scr"),
    ],
)
def test_the_default_name_says_host_and_program_and_ends_in_what_no_other_has(
    host, script, name, monkeypatch
):
    """Two programs on one host were one name, and so were two pods whose names differ after byte
    31; a host name with a line feed wrote two lines into every log."""
    monkeypatch.setattr("socket.gethostname", lambda: host)
    monkeypatch.setattr("sys.argv", [script])
    configs = [load_config(), load_config(), Config(), Config()]
    assert len({config.name for config in configs}) == 4
    for config in configs:
        assert re.fullmatch(re.escape(name) + "-[0-9a-f]{6}", config.name)
        assert config.explain()["name"] == (config.name, "default")


def test_programs_that_say_no_name_have_different_ones_on_one_host():
    """The fault was met by whoever started two programs without a word of configuration."""
    program = "import peertalk; print(peertalk.Config().name)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PEERTALK_NAME")}
    names = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]
    assert names[0] != names[1] and all("python" in name for name in names)


def test_a_peer_is_not_lost_before_it_can_be_heard_again(monkeypatch):
    """peer_timeout below announce_interval was accepted: everybody was lost and found without
    end."""
    with pytest.raises(InvalidArgument, match=r"^argument peer_timeout=1: peer_timeout of 1 s is"):
        load_config(peer_timeout=1)
    with pytest.raises(InvalidArgument, match=r"^peer_timeout of 1 s is below announce_interval"):
        Config(peer_timeout=1)
    monkeypatch.setenv("PEERTALK_PEER_TIMEOUT", "1s")
    said = r"^PEERTALK_PEER_TIMEOUT=1s in the environment and argument announce_interval=2: "
    with pytest.raises(InvalidArgument, match=said):
        load_config(announce_interval=2)
    assert load_config(announce_interval=1).peer_timeout == 1.0


def test_discovery_needs_a_port_that_others_know():
    """Port 0 means any free one: nobody was ever found, and nobody said why."""
    with pytest.raises(InvalidArgument, match="discovery_port must be 1 to 65,535"):
        load_config(discovery_port=0)


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.booleans(),
        st.lists(st.text()),
    ),
    st.sampled_from(sorted(BY_NAME)),
)
def test_whatever_is_given_becomes_a_config_or_an_invalid_argument(value, name):
    """No other exception may come out of configuration, and no invalid Config may exist."""
    try:
        config = load_config(**{name: value})
    except InvalidArgument:
        return
    assert Config(**{field: getattr(config, field) for field in BY_NAME}) == config
    setting = BY_NAME[name]
    if setting.minimum is not None:
        assert setting.minimum <= getattr(config, name) <= setting.maximum


def test_a_config_cannot_be_changed_but_copied_replaced_and_pickled():
    """Threads share it; the sources of its values are no part of what it is."""
    config = load_config(port=1)
    with pytest.raises(AttributeError):
        config.port = 2
    assert (
        copy.copy(config)
        == config
        == pickle.loads(pickle.dumps(config))
        == Config(port=1, name=config.name)
    )
    assert msgspec.structs.replace(config, port=2).port == 2
    with pytest.raises(InvalidArgument):
        msgspec.structs.replace(config, port=-2)


def test_durations_and_sizes_given_directly_are_converted_too():
    """Config and load_config take the same values."""
    config = Config(peer_timeout="1m", send_queue_bytes="64KiB", interfaces=["lo"])
    assert (config.peer_timeout, config.send_queue_bytes, config.interfaces) == (
        60.0,
        65536,
        ("lo",),
    )
    assert isinstance(Config(peer_timeout=60).peer_timeout, float)


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.name)
def test_a_number_that_python_does_not_write_is_refused_in_our_own_words(setting: Setting):
    """The message shows the value, and a number of 5,000 digits cannot be shown."""
    with pytest.raises(InvalidArgument, match=f"^argument {setting.name}="):
        load_config(**{setting.name: 10**5000})
    with pytest.raises(InvalidArgument):
        Config(**{setting.name: 10**5000})


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.name)
def test_each_field_is_described(setting: Setting):
    """The command line and the documentation show nothing but this."""
    assert setting.description.endswith(".")
    assert setting.environment == f"PEERTALK_{setting.name.upper()}"
    if setting.kind in ("whole", "seconds", "bytes"):
        assert setting.unit
        assert setting.minimum <= setting.default <= setting.maximum
