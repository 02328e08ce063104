"""click's CliRunner with separate stdout and stderr on every supported release."""

from __future__ import annotations

import inspect

from click.testing import CliRunner


def make_runner() -> CliRunner:
    """Make a runner; click before 8.2 needs an option for separate streams."""
    if "mix_stderr" in inspect.signature(CliRunner).parameters:
        return CliRunner(mix_stderr=False)
    return CliRunner()
