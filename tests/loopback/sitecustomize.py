"""Keeps tests on this machine: refuses connections to other hosts, and lookups of their names.

The process of the tests imports this module. Each Python that the process starts has the module as its `sitecustomize`,
through `PYTHONPATH`, and records refusals in the file that `LOOPBACK_LOG` names: a parent may not check how a child
ends. An audit hook sees every library that uses Python's sockets. The hook does not see libraries with sockets of their
own, programs that are not Python, or Pythons that ignore the environment (`-I`, `-E`, `-S`).
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import sys

WHERE = {  # the audit events of the module socket that name a host, and the position of the host in their arguments
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
    """Not an OSError, which a client would retry."""


def is_here(host: object) -> bool:
    """Return whether a host is this machine, or an address to listen on."""
    if isinstance(host, (bytes, bytearray)):
        host = host.decode()
    if not isinstance(host, str) or host in {"", "localhost"}:
        return True  # no host is the machine's own; a number is no address of the internet
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(
    event: str, arguments: tuple[object, ...], where: dict[str, int] = WHERE
) -> None:  # globals are cleared earlier
    """Raise for an event that would leave this machine."""
    if event not in where:
        return
    target = arguments[where[event]]
    if isinstance(target, tuple):
        target = target[0]
    elif where[event]:  # a path, or the address that the socket is connected to already
        return
    if is_here(target):
        return
    line = f"{event} {target!r}"
    refused.append(line)
    if __name__ == "sitecustomize" and (log := os.environ.get("LOOPBACK_LOG")):
        with open(log, "a", encoding="utf-8") as file:  # noqa: PTH123 - avoids imports in each child
            file.write(f"{line} by {sys.orig_argv}\n")
    raise LeavesThisMachineError(f"{line}: a test must not leave this machine")


sys.addaudithook(refuse)

if __name__ == "sitecustomize" and {"MUTANTS_LINES", "PYTEST_CURRENT_TEST"} <= os.environ.keys():
    executed = importlib.import_module("executed")
    executed.report_to(executed.append)
