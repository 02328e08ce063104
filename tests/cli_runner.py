"""click's runner of commands, with stdout and stderr apart on every supported click."""

from __future__ import annotations

import inspect

from click.testing import CliRunner


def make_runner() -> CliRunner:
    """Make a runner; click before 8.2 mixes stderr into stdout unless it is asked not to."""
    if "mix_stderr" in inspect.signature(CliRunner).parameters:
        return CliRunner(mix_stderr=False)
    return CliRunner()
