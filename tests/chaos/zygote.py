"""A process with all imports done that forks clients and registries: a fork takes a hundredth of a start.

The input has one JSON object per line: `{"id", "do", …}` forks a child for a job, `{"kill": id, "signal"}` sends a
signal to the child. The output has `{"id", "ended"}` for each ended child, and `{"id", …}` for each report of a child.
All processes write to the same pipe, and a line is shorter than PIPE_BUF, so that a kill leaves no partial line.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from async_bento import AsyncBentoAPI, BentoAPI, BentoError, Config, ProgressEvent
from async_bento.cli.main import main as main_command
from async_bento.registry.server import LocalRegistry

HANGS_AFTER = 60.0
"""Seconds; a call that runs for almost as long writes its traceback to its log."""


def report(job: dict[str, Any], **values: object) -> None:
    """Report the values of a job, in one line that is short enough for one atomic write."""
    os.write(1, json.dumps({"id": job["id"], **values})[:2000].encode() + b"\n")


async def call(job: dict[str, Any]) -> None:
    """Push, pull or copy once, and report the outcome."""
    seen = {"resumed": False, "retries": 0}

    def listen(event: ProgressEvent) -> None:
        if event.message.startswith("resuming"):
            seen["resumed"] = True

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen["retries"] += record.getMessage().startswith("retrying")

    log = logging.getLogger("async_bento")
    log.setLevel(logging.INFO)
    log.addHandler(Count())
    config = Config.model_validate(job["config"])
    result: dict[str, object]
    async with AsyncExitStack() as stack:
        bentos, *targets = [
            await stack.enter_async_context(
                AsyncBentoAPI(endpoint=endpoint, api_token=job["token"], config=config, progress=listen)
            )
            for endpoint in (job["endpoint"], *([job["target"]] if "target" in job else []))
        ]
        api = bentos if job["kind"] == "bento" else bentos.models
        try:
            await getattr(api, job["do"])(job["tag"], *targets, **job["options"])
            result = {"outcome": "done"}
        except BentoError as error:
            result = {"outcome": "error", "type": type(error).__name__, "message": str(error)[:600]}
        except Exception as error:  # noqa: BLE001 - the driver checks the outcome
            result = {"outcome": "crashed", "type": type(error).__name__, "message": repr(error)[:600]}
    report(job, **result, **seen)


def forked_call(job: dict[str, Any]) -> None:
    """Push or pull once by a blocking API in a thread; on SIGUSR1, fork a process that uses the API and exits."""
    asked: list[bool] = []  # not an Event, whose lock this thread may hold when the signal arrives
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))
    config = Config.model_validate(job["config"])
    result: dict[str, object] = {}
    children: list[int] = []
    with BentoAPI(endpoint=job["endpoint"], api_token=job["token"], config=config, progress=False) as bentos:
        api = bentos if job["kind"] == "bento" else bentos.models

        def transfer() -> None:
            try:
                getattr(api, job["do"])(job["tag"], **job["options"])
                result.update(outcome="done")
            except BentoError as error:
                result.update(outcome="error", type=type(error).__name__, message=str(error)[:600])
            except Exception as error:  # noqa: BLE001 - the driver checks the outcome
                result.update(outcome="crashed", type=type(error).__name__, message=repr(error)[:600])

        thread = threading.Thread(target=transfer)
        thread.start()
        while thread.is_alive():
            time.sleep(0.01)
            if not asked:
                continue
            asked.clear()
            children.append(os.fork())
            if not children[-1]:
                with contextlib.suppress(BentoError):
                    api.list(limit=1)
                sys.exit()
        thread.join()
    for child in children:
        if (status := exit_status(child)) != 0:
            result.update(outcome="crashed", message=f"a forked process ended with {status}")
    report(job, **result)


def exit_status(process: int) -> int | None:
    """Return the status of a child; None for a child that does not end."""
    until = time.monotonic() + HANGS_AFTER / 2
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def command(job: dict[str, Any]) -> None:
    """Push, pull or copy once by the command, and report the outcome by its exit code."""
    os.environ.update(BENTO_CLOUD_API_ENDPOINT=job["endpoint"], BENTO_CLOUD_API_KEY=job["token"])
    for group, settings in job["config"].items():
        os.environ.update({f"ASYNC_BENTO_{group}_{name}".upper(): str(value) for name, value in settings.items()})
    options = [f"--{name.replace('_', '-')}" for name, value in job["options"].items() if value is True]
    if threads := job["options"].get("threads"):
        options.append(f"--threads={threads}")
    if "target" in job:
        options += contexts_of(job)
    pipe = os.dup(1)
    os.dup2(2, 1)  # the output of the command goes to the log
    code: object = 0
    try:
        main_command([*(["models"] if job["kind"] == "model" else []), job["do"], job["tag"], *options])
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    os.dup2(pipe, 1)
    outcome = {0: "done", 128 + signal.SIGTERM: "interrupted"}.get(code if isinstance(code, int) else 1, "error")
    report(job, outcome=outcome, type=f"exit code {code}")


def contexts_of(job: dict[str, Any]) -> list[str]:
    """Write the contexts file of a copy, and return the options that name its contexts."""
    endpoints = {"source": job["endpoint"], "target": job["target"]}
    contexts = [{"name": name, "endpoint": url, "api_token": job["token"]} for name, url in endpoints.items()]
    home = Path(os.environ["BENTOML_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    (home / ".yatai.yaml").write_text(json.dumps({"contexts": contexts, "current_context_name": "source"}))
    return ["--from=source", "--to=target"]


async def serve(job: dict[str, Any]) -> None:
    """Run a registry until the process is killed."""
    async with LocalRegistry(job["root"], **job["options"]) as registry:
        report(job, endpoint=registry.endpoint, token=registry.api_token)
        await asyncio.Event().wait()


def work(job: dict[str, Any]) -> None:
    """Do the job of a child. The interpreter exits as usual, so that a leftover thread blocks the exit and shows."""
    os.environ.update(job.get("environment", {}))
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    if job["do"] == "serve":
        asyncio.run(serve(job))
        return
    if job["way"] == "forked":
        forked_call(job)  # without faulthandler: a forked process would wait for its thread at exit
        return
    faulthandler.dump_traceback_later(HANGS_AFTER - 5)
    if job["way"] == "command":
        command(job)
    else:
        asyncio.run(call(job))


def main() -> None:
    """Fork, kill and reap until the input ends."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    children: dict[int, int] = {}  # job id by process id
    rest = b""
    gc.collect()
    gc.freeze()
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
        while children:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            os.write(1, json.dumps({"id": children.pop(process), "ended": status}).encode() + b"\n")
        if 0 not in ready:
            continue
        read = os.read(0, 65536)
        if not read:
            break
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            job = json.loads(line)
            if "kill" in job:
                for process, number in children.items():  # a reaped child is no longer in `children`
                    if number == job["kill"]:
                        os.kill(process, job["signal"])
                continue
            process = os.fork()
            if not process:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (awake, wake):
                    os.close(descriptor)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                return work(job)
            children[process] = job["id"]
    for process in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return None


if __name__ == "__main__":
    main()
    sys.exit()
