"""How a node is set up: one frozen struct, with unit, default, bounds and meaning of each field
beside the field.

The command line, the environment variables and the documentation are made from `settings()`, so
nothing about a field is written twice. Precedence: argument, then environment PEERTALK_<FIELD>,
then profile, then default. A value out of its bounds is an InvalidArgument that says the value, the
bound and where the value came from.

Invariant: every Config that exists is within its bounds and holds plain values (durations in float
seconds, sizes in int bytes). Never: reads anything but the environment and what a name is made of.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, NamedTuple, TypedDict, Unpack, get_args, get_type_hints

import msgspec
from msgspec import Meta

from ._numbers import NAME_MAX, PORT_DATAGRAMS, PORT_DISCOVERY, PORT_MESSAGES
from .errors import InvalidArgument, WrongType, shown
from .quantities import parse_duration, parse_size

CORES = ("standard", "lowmem", "reference")

PROFILES: Mapping[str, Mapping[str, object]] = {
    "embedded": {"core": "lowmem", "max_peers": 4, "pipeline_depth": 2}
}
"""What a profile sets. embedded: the core for little memory, and its limits."""

_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_FIT_TOGETHER = ("peer_timeout", "announce_interval")
_UNIQUE_BYTES = 3
"""Random bytes in a default name: of 100 programs of one name on one host two are alike once in
3,000 times."""
_NAME_ROOM = NAME_MAX - 2 * _UNIQUE_BYTES - 2
"""Bytes of a default name for host and program: all but their two hyphens and the random digits."""
_CONTROL = ("Cc", "Zl", "Zp", "Cs")
"""Categories of Unicode that do not belong into a line: controls, ends of lines, half
characters."""


def default_name() -> str:
    """A name that says host and program, and that no other call gives: `vm-chat-3f2a9c`. 1 to 31
    bytes of UTF-8.

    The host's part is the first label of its name, the program's is its script (of `python -m
    package` the package). Parts that are too long together are cut; the end, six random hexadecimal
    digits, is always whole: it keeps apart two programs of one host, and two hosts whose names
    begin alike.
    """
    script = PurePath(sys.argv[0] if sys.argv else "")
    program = script.parent.name if script.stem == "__main__" else script.stem
    if not program or program.startswith("-"):  # -c, standard input, by hand
        program = "python"
    host = _name_part(socket.gethostname().split(".")[0], _NAME_ROOM)
    program = _name_part(program, _NAME_ROOM - min(len(host.encode()), _NAME_ROOM // 2))
    host = _name_part(host, _NAME_ROOM - len(program.encode()))
    return "-".join(filter(None, (host, program, os.urandom(_UNIQUE_BYTES).hex())))


def _name_part(text: str, room: int) -> str:
    """What of it fits into so many bytes, and can stand in a line."""
    line_safe = "".join(each for each in text if is_line_safe(each))
    return line_safe.encode()[:room].decode("utf-8", "ignore")


def is_line_safe(name: str) -> bool:
    """Whether a name has no control character, and nothing that ends a line."""
    return not any(unicodedata.category(each) in _CONTROL for each in name)


def _port(description: str, low: int = 0) -> Meta:
    return Meta(ge=low, le=65535, description=description, extra={"unit": "port"})


def _seconds(low: float, high: float, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description, extra={"unit": "seconds"})


def _bytes(low: int, high: int, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description, extra={"unit": "bytes"})


def _count(low: int, high: int, unit: str, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description, extra={"unit": unit})


def _plain(description: str) -> Meta:
    return Meta(description=description)


class Config(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Settings of one node. Durations are in seconds, sizes in bytes; both may be given as text
    ("250ms", "64KiB").

    The profile "embedded" sets core, max_peers and pipeline_depth. A Config cannot tell a setting
    that was not given from one that was given and equals its default: the profile sets both.
    load_config(), which Node uses, can tell, and the profile sets only what was not given.

    Raises:
        InvalidArgument: a value out of its bounds.
        WrongType: a value of a type that the field cannot take.
    """

    name: Annotated[
        str,
        _plain(
            "Name that other peers see: 1 to 31 bytes of UTF-8. Default: host, script and six "
            "random digits."
        ),
    ] = msgspec.field(default_factory=lambda: None)  # type: ignore[assignment]  # by __post_init__
    port: Annotated[int, _port("TCP port to listen on; 0: any free port.")] = PORT_MESSAGES
    discovery_port: Annotated[
        int, _port("UDP port of discovery; the same for all peers of a network.", low=1)
    ] = PORT_DISCOVERY
    udp_port: Annotated[
        int,
        _port(
            "UDP port of datagrams; 0: any free port. Classic peers are written to at this port "
            "number too."
        ),
    ] = PORT_DATAGRAMS
    discovery: Annotated[
        bool, _plain("Announce this node and look for others; off: connect by address only.")
    ] = True
    local: Annotated[
        bool,
        _plain(
            "Speak with nodes of the same user and host over a socket of this host where discovery "
            "finds one (Linux); off: by TCP."
        ),
    ] = True
    bind: Annotated[
        str, _plain("IPv4 address of this machine to live on; empty or 0.0.0.0: all.")
    ] = ""
    interfaces: Annotated[
        tuple[str, ...],
        _plain("Names of the network interfaces that discovery uses; none given: all."),
    ] = ()
    core: Annotated[
        str,
        _plain(
            "Core to run on: standard, lowmem or reference; empty: standard if it was built, "
            "else reference."
        ),
    ] = ""
    profile: Annotated[
        str,
        _plain(
            "A set of defaults. embedded: the lowmem core with 4 peers and 2 slots; empty: none."
        ),
    ] = ""
    max_peers: Annotated[
        int, _count(1, 65535, "peers", "Peers known at the same time, connected or not.")
    ] = 1024
    pipeline_depth: Annotated[
        int,
        _count(
            1,
            64,
            "writes",
            "Slots of each connection, up to 64 KiB each. Lowmem core by default: 2 of 4 KiB.",
        ),
    ] = 8
    async_send: Annotated[
        bool,
        _plain(
            "Several writes in flight for each connection; off: each write ends before the "
            "next begins."
        ),
    ] = True
    send_queue_size: Annotated[
        int,
        _count(
            1, 1_000_000, "messages", "Messages that may wait for one peer before send() waits."
        ),
    ] = 1024
    send_queue_bytes: Annotated[
        int, _bytes(1024, 1024**3, "Payload that may wait for one peer before send() waits.")
    ] = 1024**2
    receive_queue_bytes: Annotated[
        int,
        _bytes(
            1024, 1024**3, "Payload that may wait for the application before senders are slowed."
        ),
    ] = 4 * 1024**2
    max_message: Annotated[
        int,
        _bytes(
            1,
            2**31 - 1,
            "Longest message; above 8 KiB between peertalk nodes only. Lowmem core: 1 KiB.",
        ),
    ] = 16 * 1024**2
    receive_large_bytes: Annotated[
        int,
        _bytes(1024, 1024**4, "Memory for messages above 256 KiB on their way here, or for one."),
    ] = 64 * 1024**2
    flags: Annotated[
        int,
        _count(
            0, 0xFFFF, "bits", "What this node announces of itself at first: a sum of PeerFlag."
        ),
    ] = 0
    announce_interval: Annotated[
        float,
        _seconds(
            0.1, 10.0, "Time between two announcements of this node; in a large room up to 10 s."
        ),
    ] = 5.0
    peer_timeout: Annotated[
        float,
        _seconds(
            0.1,
            86_400.0,
            "Silence after which an unconnected peer counts as lost; not below announce_interval.",
        ),
    ] = 30.0
    ping_interval: Annotated[
        float,
        _seconds(
            0.0,
            86_400.0,
            "Time between two measurements of the way to each connected peer; 0: none.",
        ),
    ] = 10.0
    connect_timeout: Annotated[
        float, _seconds(0.01, 3600.0, "Longest wait for a connection to open.")
    ] = 5.0
    link_timeout: Annotated[
        float,
        _seconds(
            0.1,
            3600.0,
            "Time without the answer that a peer owes, after which its link counts as broken.",
        ),
    ] = 15.0
    drain_timeout: Annotated[
        float,
        _seconds(0.0, 3600.0, "Longest wait for unsent messages when a link or the node closes."),
    ] = 5.0
    io_budget: Annotated[
        int, _count(1, 1_024, "links", "Ready links served in one turn of the loop.")
    ] = 16
    workers: Annotated[
        int, _count(0, 16, "threads", "Threads that move the bytes of connections; 0: none.")
    ] = 0

    def __post_init__(self) -> None:
        if self.name is None:
            msgspec.structs.force_setattr(self, "name", default_name())
            self.__dict__["_sources"] = {"name": "default"}
        for setting in settings():
            value = getattr(self, setting.name)
            checked = _checked(setting, value, f"argument {setting.name}={shown(value)}")
            if checked is not value:
                msgspec.structs.force_setattr(self, setting.name, checked)
        preset = PROFILES.get(self.profile, {})
        for setting in settings():
            if setting.name in preset and getattr(self, setting.name) == setting.default:
                msgspec.structs.force_setattr(self, setting.name, preset[setting.name])
        if self.peer_timeout < self.announce_interval:
            raise InvalidArgument(
                f"peer_timeout of {self.peer_timeout:g} s is below announce_interval, "
                f"{self.announce_interval:g} s: who announces itself so seldom would be lost "
                "before it is heard again; raise the one or lower the other"
            )

    def explain(self) -> dict[str, tuple[object, str]]:
        """Value and source of each field: "argument", "environment PEERTALK_<FIELD>", "profile" or
        "default".

        A Config that did not come from load_config() knows no environment: a field that equals its
        default counts as "default".
        """
        sources: Mapping[str, str] = self.__dict__.get("_sources", {})
        explained: dict[str, tuple[object, str]] = {}
        for setting in settings():
            value = getattr(self, setting.name)
            guess = "default" if value == setting.default else "argument"
            if PROFILES.get(self.profile, {}).get(setting.name) == value:
                guess = "profile"
            explained[setting.name] = (value, sources.get(setting.name, guess))
        return explained


class NodeOptions(TypedDict, total=False):
    """What a node can be told beside its name: the fields of Config, which says what each means.
    None counts as not given."""

    port: int | None
    discovery_port: int | None
    udp_port: int | None
    discovery: bool | None
    local: bool | None
    bind: str | None
    interfaces: Iterable[str] | None
    core: str | None
    profile: str | None
    max_peers: int | None
    pipeline_depth: int | None
    async_send: bool | None
    send_queue_size: int | None
    send_queue_bytes: int | str | None
    receive_queue_bytes: int | str | None
    max_message: int | str | None
    receive_large_bytes: int | str | None
    flags: int | None
    announce_interval: float | str | None
    peer_timeout: float | str | None
    ping_interval: float | str | None
    connect_timeout: float | str | None
    link_timeout: float | str | None
    drain_timeout: float | str | None
    io_budget: int | None
    workers: int | None


class Setting(NamedTuple):
    """One field of Config, described: what the command line and the documentation are made from.

    kind: text, whole (number), seconds, bytes, boolean or list. minimum and maximum: in the field's
    unit, None where there is none. unit: "" where there is none. environment: name of its variable.
    """

    name: str
    kind: str
    default: object
    minimum: float | None
    maximum: float | None
    unit: str
    description: str
    environment: str


@functools.cache
def settings() -> tuple[Setting, ...]:
    """All fields of Config, described, in their order."""
    annotations = get_type_hints(Config, include_extras=True)
    described = []
    for field in msgspec.structs.fields(Config):
        kind, meta = get_args(annotations[field.name])
        unit = (meta.extra or {}).get("unit", "")
        default = (
            field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        )
        kinds = {
            str: "text",
            bool: "boolean",
            float: "seconds",
            int: "bytes" if unit == "bytes" else "whole",
        }
        described.append(
            Setting(
                field.name,
                kinds.get(kind, "list"),
                default,
                meta.ge,
                meta.le,
                unit,
                meta.description,
                f"PEERTALK_{field.name.upper()}",
            )
        )
    return tuple(described)


def _bounds(setting: Setting) -> str:
    unit = setting.unit if setting.unit != "port" else ""
    low, high = (f"{bound:,}".removesuffix(".0") for bound in (setting.minimum, setting.maximum))
    return f"{low} to {high} {unit}".rstrip()


def _checked(setting: Setting, value: object, origin: str) -> object:
    """The value as Config holds it. origin: where it came from, for the message.

    Raises:
        InvalidArgument, WrongType: with value, bound and origin.
    """
    match setting.kind:
        case "seconds" | "bytes":
            return _checked_quantity(setting, value, origin)
        case "whole":
            if isinstance(value, bool) or not isinstance(value, int):
                raise WrongType(
                    f"{origin}: {setting.name} must be a whole number, {_bounds(setting)}"
                )
            return _within(setting, value, origin)
        case "boolean":
            if not isinstance(value, bool):
                raise WrongType(f"{origin}: {setting.name} must be True or False")
        case "list":
            return _checked_list(setting, value, origin)
        case _:
            if not isinstance(value, str):
                raise WrongType(f"{origin}: {setting.name} must be text")
            _check_text(setting, value, origin)
            if setting.name == "bind" and value == "0.0.0.0":
                return ""  # what other programs call all addresses
    return value


def _within(setting: Setting, value: float, origin: str) -> float:
    assert setting.minimum is not None and setting.maximum is not None
    if not setting.minimum <= value <= setting.maximum:
        raise InvalidArgument(f"{origin}: {setting.name} must be {_bounds(setting)}")
    return value


def _checked_quantity(setting: Setting, value: object, origin: str) -> float:
    try:
        quantity = parse_size(value) if setting.kind == "bytes" else parse_duration(value)
    except InvalidArgument as error:
        raise type(error)(f"{origin}: {setting.name} must be {_bounds(setting)}; {error}") from None
    return _within(setting, quantity, origin)


def _checked_list(setting: Setting, value: object, origin: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise WrongType(f"{origin}: {setting.name} must be a list of names")
    try:
        names = tuple(value)
    except (TypeError, ValueError) as error:  # a view that was released
        raise WrongType(f"{origin}: {setting.name} must be a list of names: {error}") from None
    for name in names:
        if not isinstance(name, str):
            raise WrongType(
                f"{origin}: {setting.name} must be a list of names, and {shown(name)} is none"
            )
        if not name:
            raise InvalidArgument(f"{origin}: {setting.name} holds an empty name")
    return names


def _check_text(setting: Setting, value: str, origin: str) -> None:
    if setting.name == "name":
        check_name(value, origin)
    elif setting.name == "core" and value not in ("", *CORES):
        raise InvalidArgument(
            f"{origin}: core must be {', '.join(CORES[:-1])} or {CORES[-1]}, or empty for the "
            "best that was built"
        )
    elif setting.name == "profile" and value not in ("", *PROFILES):
        raise InvalidArgument(
            f"{origin}: profile must be {' or '.join(PROFILES)}, or empty for none"
        )
    elif setting.name == "bind" and value:
        try:
            address = ipaddress.IPv4Address(value)
            fits = not address.is_multicast and value != "255.255.255.255"
        except ValueError:
            fits = False
        if not fits:
            raise InvalidArgument(
                f"{origin}: bind must be an IPv4 address of this machine such as 192.168.1.5, "
                "or empty for all"
            )


def check_name(name: str, origin: str = "name") -> bytes:
    """The name as bytes of UTF-8, 1 to 31 of them.

    Raises:
        InvalidArgument: empty, too long, holding a control character or the end of a line, or not
            encodable. origin begins its message.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{origin}: name has a character that UTF-8 cannot hold") from None
    if not 1 <= len(encoded) <= NAME_MAX:
        empty = "empty, 0 bytes" if not encoded else f"{len(encoded):,} bytes of UTF-8"
        raise InvalidArgument(f"{origin}: name is {empty}; it must be 1 to {NAME_MAX} bytes")
    if not is_line_safe(name):
        raise InvalidArgument(
            f"{origin}: name {shown(name)} holds a control character or the end of a line; names "
            "stand in lines of logs and terminals: leave it out"
        )
    return encoded


def _from_text(setting: Setting, text: str, origin: str) -> object:
    """What the text of an environment variable stands for, not yet held against its bounds."""
    match setting.kind:
        case "whole":
            try:
                return int(text.strip(), 10)
            except ValueError:
                raise InvalidArgument(
                    f"{origin}: {setting.name} must be a whole number, {_bounds(setting)}"
                ) from None
        case "boolean":
            value = _BOOLEANS.get(text.strip().lower())
            if value is None:
                raise InvalidArgument(
                    f"{origin}: {setting.name} must be one of {', '.join(_BOOLEANS)}"
                )
            return value
        case "list":
            return tuple(name.strip() for name in text.split(",") if name.strip())
        case _:
            return text


def _check_names(given: Iterable[str]) -> None:
    """Refuse a name that is no setting, and say which was meant."""
    names = Config.__struct_fields__
    for each in given:
        if each not in names:
            import difflib  # it takes long to load, and hardly anybody meets this

            close = difflib.get_close_matches(each, names, n=1, cutoff=0.0)
            raise InvalidArgument(f"there is no setting {each!r}; the closest one is {close[0]!r}")


def choose_config(config: Config | None, name: str | None, options: NodeOptions) -> Config:
    """The Config that a node was given, or one of the name and options that it was given instead.

    Raises:
        InvalidArgument: both, or as load_config(). WrongType: config is no Config.
    """
    if config is None:
        return load_config(name, **options)
    if not isinstance(config, Config):
        raise WrongType(
            f"config={shown(config)}: it is a peertalk.Config; make one of a dictionary"
        )
    if options or name is not None:
        raise InvalidArgument("give a Config or options, not both")
    return config


def load_config(name: str | None = None, **options: Unpack[NodeOptions]) -> Config:
    """A Config from arguments, the environment, the profile that these choose and the defaults, in
    this order of precedence.

    Args:
        name, options: fields of Config. None counts as not given. Durations may be text ("250ms"),
            sizes too ("64KiB").

    An environment variable that is empty counts as not set. In the environment a boolean is one of
    1, 0, true, false, yes, no, on, off, and a list is separated by commas. A variable that an
    argument overrules is not looked at.

    Raises:
        InvalidArgument: a value out of its bounds, or two that do not fit together (the message
            says value, bound and source), or an argument that is no field.
        WrongType: an argument of a type that its field cannot take.
    """
    arguments: dict[str, object] = {"name": name, **options}
    _check_names(arguments)
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}
    for setting in settings():
        given = arguments.get(setting.name)
        text = os.environ.get(setting.environment, "")
        if given is not None:
            origin = origins[setting.name] = f"argument {setting.name}={shown(given)}"
            values[setting.name] = _checked(setting, given, origin)
            sources[setting.name] = "argument"
        elif text:
            origin = (
                f"{setting.environment}={text if len(text) <= 60 else text[:57] + '...'} in the "
                "environment"
            )
            origins[setting.name] = origin
            values[setting.name] = _checked(setting, _from_text(setting, text, origin), origin)
            sources[setting.name] = f"environment {setting.environment}"
    try:
        config = Config(**values)  # type: ignore[arg-type]
    except InvalidArgument as error:  # each alone has been looked at
        given_here = [origins[name] for name in _FIT_TOGETHER if name in origins]
        raise InvalidArgument(f"{' and '.join(given_here)}: {error}") from None
    preset = PROFILES.get(config.profile, {})
    for each in Config.__struct_fields__:
        if each not in values:
            sources[each] = "profile" if each in preset else "default"
        elif each in preset:  # given, though it may equal the default
            msgspec.structs.force_setattr(config, each, values[each])
    config.__dict__["_sources"] = sources
    return config
