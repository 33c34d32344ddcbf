"""`peertalk info`: version, build, limits and settings."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

from .. import errors
from .._core import CORES, load
from ..config import Config, load_config, settings
from ..protocol.neighbours import MAX_PER_ADDRESS
from ..runtime.world import World
from .options import Json, console, node_options, print_json, print_rows


@node_options(*(setting.name for setting in settings()))
def command(json: Json = False, *, options: dict[str, Any]) -> None:
    """Print the version, the cores, the settings, and whom a node refuses.

    Each setting is printed with where its value came from: an argument, the environment, the
    profile or the default.
    """
    gathered = gather(options)
    if json:
        print_json(gathered, indent=1)
        return
    screen = console()
    screen.print(
        f"peertalk {gathered['version']} on Python {gathered['python']}, {gathered['platform']}",
        style="bold",
    )
    screen.print(", ".join(f"{name} {version}" for name, version in gathered["packages"].items()))
    screen.print("traffic is neither encrypted nor authenticated")
    for name, core in gathered["cores"].items():
        screen.print()
        if "missing" in core:
            screen.print(f"core {name}: {core['missing']}")
            continue
        screen.print(
            f"core {name}{', in use' if core['in_use'] else ''}: CRC-16 by {core['crc']}",
            style="bold",
        )
        limits = ", ".join(f"{key} {value:,}" for key, value in core["limits"].items())
        screen.print(f"  limits that were compiled in (no settings): {limits}")
    rows = [
        (name, ",".join(value) if isinstance(value, list) else f"{value}", one["from"])
        for name, one in gathered["settings"].items()
        for value in [one["value"]]
    ]
    screen.print()
    print_rows(screen, rows, heading=("setting", "value", "from"))
    screen.print()
    screen.print("whom this node refuses, and the counter that counts them", style="bold")
    for bound in gathered["bounds"]:
        screen.print(f"  more than {bound['most']:,} {bound['of']}: stats().{bound['counter']}")


def gather(options: dict[str, Any]) -> dict[str, Any]:
    """Everything that the command prints, as JSON has it."""
    config = load_config(**options)
    in_use = load(config.core or None).name
    cores: dict[str, Any] = {}
    for name in CORES:
        try:
            core = load(name)
        except errors.NotSupported as error:
            cores[name] = {"missing": str(error)}
        else:
            cores[name] = {
                "in_use": name == in_use,
                "crc": core.crc_name,
                "limits": core.limits._asdict(),
            }
    explained = {
        name: {"value": list(value) if isinstance(value, tuple) else value, "from": source}
        for name, (value, source) in config.explain().items()
    }
    return {
        "version": _version("peertalk-lan"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": f"{sys.platform} {platform.machine()}",
        "encrypted": False,
        "packages": {
            name: _version(name) for name in ("cffi", "msgspec", "uvloop", "typer", "rich")
        },
        "cores": cores,
        "settings": explained,
        "bounds": bounds(config),
    }


def bounds(config: Config) -> list[dict[str, Any]]:
    """What has no room for more: how many of what there may be, and the counter of NodeStatistics
    that tells of those who were refused."""
    return [
        {"most": most, "of": of, "counter": counter}
        for most, of, counter in (
            (config.max_peers, "peers known (max_peers)", "peers_refused"),
            (
                MAX_PER_ADDRESS,
                "peers known at one address of another machine",
                "peers_refused",
            ),
            (config.max_peers, "peers connected (max_peers)", "links_refused"),
            (
                World().max_connections(config),
                "connections, those included that have not said who they are (max_peers + 64)",
                "links_refused",
            ),
        )
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
