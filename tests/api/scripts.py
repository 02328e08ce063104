"""Programs that fork, start threads and exit, each in a new Python process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 60
"""Seconds until a program counts as hung; even on a busy machine, a program takes only a few."""

PRELUDE = """
import atexit
last = []
atexit.register(lambda: [function() for function in last])  # after what the package registers
import asyncio, gc, logging, multiprocessing, os, signal, sys, threading, time, traceback
from async_bento import AsyncBentoAPI, BentoAPI, BentoStore, ClosedError, Config, ModelStore

def outcome(pid, seconds=30):
    "How a child ended: its exit code, or that it hangs."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

def in_child(function):
    "Run a function in a forked child, which ends without the clean-up of the interpreter."
    pid = os.fork()
    if pid:
        return outcome(pid)
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
"""


@dataclass
class Ended:
    """The end of a program."""

    code: int | str
    output: str
    errors: str


def run_program(program: str, *options: str, environ: Mapping[str, str] | None = None) -> Ended:
    """Run a program after the prelude. Warnings are errors, except the one of Python about forks with threads."""
    # Unbuffered: a forked child would write the buffered output of its parent again.
    command = [sys.executable, "-u", "-W", "error", "-W", "ignore:This process:DeprecationWarning", *options]
    process = subprocess.Popen(
        [*command, "-c", PRELUDE + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # including the children, which hold the pipes
        output, errors = process.communicate()
        return Ended("hangs", output, errors)
    return Ended(process.returncode, output, errors)
