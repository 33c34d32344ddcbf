"""A classic peer as a program: `python -m classic --help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading

from classic.formats import CRITICAL, DISCOVERY_PORT, TCP_PORT, UDP_PORT, Refused
from classic.peer import ClassicPeer
from classic.sockets import Sockets


def main(arguments: list[str]) -> None:
    """Be a classic peer until the input ends, and tell what happens, one line of JSON for each
    event and each packet that was heard."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--name", default="classic")
    parser.add_argument(
        "--host", required=True, help="its own address: packets from there are its own"
    )
    parser.add_argument("--broadcast", default="255.255.255.255")
    parser.add_argument("--discovery-port", type=int, default=DISCOVERY_PORT)
    parser.add_argument("--tcp-port", type=int, default=TCP_PORT)
    parser.add_argument("--udp-port", type=int, default=UDP_PORT)
    parser.add_argument("--dial", action="store_true", help="dial who is discovered")
    parser.add_argument("--say", help="say this on each connection")
    options = parser.parse_args(arguments)
    peer = ClassicPeer(
        options.name,
        host=options.host,
        tcp_port=options.tcp_port,
        discovery_port=options.discovery_port,
        udp_port=options.udp_port,
        dials=options.dial,
    )
    told = heard = 0
    with Sockets(peer, broadcast=options.broadcast) as sockets:
        print(json.dumps(["ready", options.host, peer.tcp_port]), flush=True)
        over = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
        while not over.is_set():
            sockets.turn(0.01)
            for kind, known, detail in peer.events[told:]:
                text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else None
                print(
                    json.dumps(
                        [
                            kind,
                            known.host if known else "",
                            text or (known.name.decode("utf-8", "replace") if known else ""),
                        ]
                    ),
                    flush=True,
                )
                if kind == "connected" and options.say:
                    # of two that crossed one may be over by now: it is said on the other
                    with contextlib.suppress(Refused):
                        peer.send(detail, options.say.encode(), CRITICAL)
            told = len(peer.events)
            for packet, source in peer.packets[heard:]:
                print(
                    json.dumps(
                        [
                            ("announce", "query", "goodbye")[packet.kind - 1],
                            source[0],
                            packet.name.decode("utf-8", "replace"),
                        ]
                    ),
                    flush=True,
                )
            heard = len(peer.packets)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(sys.argv[1:])
