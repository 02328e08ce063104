"""`async-bento doctor`: what a push and a pull need, one line each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from async_bento.cli.exits import exit_code
from async_bento.cli.options import asynchronous, connection
from async_bento.cli.table import wrapped

if TYPE_CHECKING:
    from async_bento.doctor import Finding


@click.command()
@connection
@asynchronous
async def doctor(endpoint: str | None, context: str | None, as_json: bool) -> None:
    """Look at all that a push and a pull need, and say what to do about what is wrong.

    These are the registry, the token, this machine's clock, the local store, the room on its disk, and the versions at
    work. The exit code is that of the first fault.

    \b
    Examples:
      async-bento doctor
      async-bento doctor --context staging
    """
    from async_bento.doctor import examine

    findings: list[Finding] = []
    async for finding in examine(endpoint, context):
        findings.append(finding)
        if not as_json:
            word, colour = ("ok  ", "green") if finding.error is None else ("FAIL", "red")
            line = wrapped(f"{word}  {finding.name + ':':10}", finding.said)
            click.echo(click.style(word, fg=colour) + line[len(word) :])
    if as_json:
        looked_at = [{"name": one.name, "ok": one.error is None, "said": one.said} for one in findings]
        click.echo(json.dumps(looked_at))
    wrong = next((one.error for one in findings if one.error is not None), None)
    if wrong is not None:
        click.get_current_context().exit(exit_code(wrong))
