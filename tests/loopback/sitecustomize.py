"""What the tests run stays on this machine: who would connect elsewhere, or resolve a name, is refused.

The process of the tests imports this module. Each Python that it starts has it for its `sitecustomize`, by way of
`PYTHONPATH`, and notes what it refused in the file that `LOOPBACK_LOG` names, since a parent may not look at how a
child ends. An audit hook sees every library that uses Python's sockets. It does not see a library that has sockets of
its own, a program that is no Python, or a Python that was told to ignore its environment (`-I`, `-E`, `-S`).
"""

from __future__ import annotations

import ipaddress
import os
import sys

WHERE = {  # the audit events of the module socket that name a host, and where in their arguments they do
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "socket.getnameinfo": 0,
}

refused: list[str] = []


class LeavesThisMachineError(RuntimeError):
    """No OSError, which a client would take for bad weather and try again."""


def is_here(host: object) -> bool:
    """Whether a host is this machine. Any address of it will do to listen on, and so will none."""
    if isinstance(host, (bytes, bytearray)):
        host = host.decode()
    if not isinstance(host, str) or host in {"", "localhost"}:
        return True  # no host is the machine's own; a number is no address of the internet
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Raise for what would leave this machine."""
    if event not in WHERE:
        return
    target = arguments[WHERE[event]]
    if isinstance(target, tuple):
        target = target[0]
    elif WHERE[event]:  # a path, or the address that the socket is connected to already
        return
    if is_here(target):
        return
    line = f"{event} {target!r}"
    refused.append(line)
    if __name__ == "sitecustomize" and (log := os.environ.get("LOOPBACK_LOG")):
        with open(log, "a", encoding="utf-8") as file:  # noqa: PTH123 - nothing more is imported into each child
            file.write(f"{line} by {sys.orig_argv}\n")
    raise LeavesThisMachineError(f"{line}: a test must not leave this machine")


sys.addaudithook(refuse)
