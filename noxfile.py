"""The sessions of nox: `nox` runs the default ones, `nox -s lint` runs one. CONTRIBUTING.md lists all sessions."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Sequence

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # test those that are installed
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
NEWEST = next((version for version in reversed(PYTHONS) if shutil.which(f"python{version}")), PYTHONS[-1])
# By default, the suite runs on the newest installed Python, and `wheel` runs a part of it on the oldest. `nox -s tests`
# and hosted CI run all Pythons.
TESTS = f"tests-{NEWEST}"
nox.options.sessions = [
    "lint",
    "types",
    TESTS,
    "endurance",
    "backends",
    "interop",
    "notebook",
    "docs",
    "wheel",
    "coverage",
]
ROOT = Path(__file__).parent

# The tests start hundreds of Pythons, and each would compile the package and its dependencies again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def install_group(session: nox.Session, group: str, *, package: bool = True) -> None:
    if package:
        session.install("-e", ".")
    session.install(*nox.project.dependency_groups(PYPROJECT, group))


def run_pytest(session: nox.Session, *selection: str, measured: bool, parallel: bool = True) -> None:
    """Run pytest on all cores, under coverage if `measured`; arguments of the command line select tests instead."""
    if session.posargs:
        session.run("pytest", *selection, *session.posargs)
        return
    workers = ["-n", "auto"] if parallel else []
    if not measured:
        session.run("pytest", *workers, *selection)
        return
    # One data file per session, so that a second run replaces the first.
    data = {"COVERAGE_FILE": str(ROOT / f".coverage.{session.name}")}
    session.run("coverage", "erase", env=data, silent=True)
    session.run("coverage", "run", "-m", "pytest", *workers, *selection, env=data)
    session.run("coverage", "combine", "--quiet", env=data)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, import layers, workflows, declared dependencies and excluded words."""
    install_group(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")
    workflows = sorted(str(path) for path in Path(".github/workflows").glob("*.yml"))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml")
    session.run("deptry", "async_bento")
    session.run("pytest", "-q", "-c", os.devnull, "--rootdir=.", "--noconftest", "tests/test_language.py")


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy and pyright, both strict: on the package for each system, and on a program that uses it as installed."""
    session.install("--reinstall-package", "async-bento", ".")
    install_group(session, "types", package=False)
    session.run("mypy")
    session.run("pyright")
    for mypy_name, pyright_name in (("win32", "Windows"), ("darwin", "Darwin")):
        session.run("mypy", "--platform", mypy_name, "--cache-dir", f".mypy_cache/{mypy_name}", "async_bento")
        session.run("pyright", "--pythonplatform", pyright_name)
    elsewhere = Path(session.create_tmp())  # without the checkout's package and settings
    shutil.copy("tests/typing/user.py", elsewhere)
    (elsewhere / "pyrightconfig.json").write_text("{}")
    session.chdir(elsewhere)
    session.run("mypy", "--config-file=", "--strict", "user.py")
    session.run("pyright", "--project", "pyrightconfig.json")


# The arguments of every session that runs the whole suite; `docs` runs its own tests.
SUITE = ["-m", "not long and not proxies and not pages and not windows", "--ignore=tests/docs"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suite, without the long tests of `endurance`."""
    install_group(session, "test")
    # Measured on the newest Python only: before 3.12, coverage doubles the time of the tests.
    measured = session.python == NEWEST
    run_pytest(session, *([] if session.posargs else SUITE), measured=measured)


@nox.session(name="free-threading", python="3.14t", default=False)
def free_threading(session: nox.Session) -> None:
    """Run a part of the suite on a free-threaded Python."""
    install_group(session, "test")
    part = ["tests/core", "tests/tar", "tests/store", "tests/api", "tests/transfer"]
    run_pytest(session, *SUITE, *part, measured=False)


@nox.session
def endurance(session: nox.Session) -> None:
    """Run the long tests on one Python: kills at each step, cancellation at each await, random faults."""
    install_group(session, "test")
    run_pytest(session, "-m", "long", "--maxschedchunk=1", measured=True)  # one test at a time: each takes minutes


@nox.session(name="every-await", default=False)
def every_await(session: nox.Session) -> None:
    """Cancel pushes, pulls and copies at every await; `tests` samples a few of them."""
    install_group(session, "test")
    tests = ["tests/transfer/test_every_await.py", "tests/transfer/test_copy_every_await.py"]
    session.run("pytest", *tests, *session.posargs, env={"EVERY_AWAIT": "1"})


BENTOML = ("1.2.0", "1.2.20", "1.3.0", "1.3.22", "1.4.0", "1.4.40")
"""The oldest and the newest release of each minor version of BentoML, in order."""

BENTOML_BETWEEN = (
    *("1.2.5", "1.2.10", "1.2.15", "1.3.4.post1", "1.3.7", "1.3.11", "1.3.15", "1.3.19"),
    *("1.4.5", "1.4.10", "1.4.15", "1.4.19", "1.4.20", "1.4.25", "1.4.30", "1.4.35", "1.4.38"),
)


def install_releases(session: nox.Session, releases: Sequence[str]) -> None:
    """Install releases of BentoML, each with async-bento in an environment of its own, and list their Pythons."""
    pythons = []
    for release in releases:
        environment = Path(session.virtualenv.location, f"bentoml-{release}")
        python = environment / "bin" / "python"
        version = tuple(map(int, release.split(".")[:3]))
        # The release was made for these older versions.
        older = ["setuptools<80"] if version < (1, 4, 20) else []
        older += ["pydantic<2.8"] if version < (1, 3, 20) else []
        interpreter = str(Path(session.bin, "python")) if release == BENTOML[-1] else "3.11"
        session.run("uv", "venv", "--quiet", "--clear", "--python", interpreter, str(environment))
        packages = [f"bentoml=={release}", "uv", "-e", "."]
        session.run("uv", "pip", "install", "--quiet", "--python", str(python), *packages, *older)
        pythons.append(str(python))
    session.env["BENTOML_PYTHONS"] = os.pathsep.join(pythons)


@nox.session
def interop(session: nox.Session) -> None:
    """Run with the real BentoML: each client pulls the other's pushes. The newest releases run on every storage."""
    install_group(session, "interop")
    install_releases(session, BENTOML)
    run_pytest(session, "-m", "interop", measured=True)


@nox.session(name="bentoml-releases", default=False)
def bentoml_releases(session: nox.Session) -> None:
    """Run the commands of more releases of BentoML; `interop` has the oldest and newest of each minor version."""
    install_group(session, "interop")
    install_releases(session, BENTOML_BETWEEN)
    run_pytest(session, "-m", "interop", "tests/interop/test_releases.py", measured=False)


@nox.session
def backends(session: nox.Session) -> None:
    """Test the registry with SeaweedFS (S3) and PostgreSQL, which the tests start on this machine."""
    install_group(session, "backends")
    run_pytest(session, "-m", "s3 or postgres", measured=True)


@nox.session(default=False)
def proxies(session: nox.Session) -> None:
    """Test the registry behind nginx and Caddy, with the configurations of the guide; both must be installed."""
    install_group(session, "test")
    run_pytest(session, "-m", "proxies", measured=False)


@nox.session(python="3.11", default=False)
def windows(session: nox.Session) -> None:
    """Run the suite on a CPython for Windows under Wine, built in the environment: `-- tests/store --reasons`."""
    install_group(session, "test")
    session.install("uv", "-e", ".[registry]")
    extras = PYPROJECT["project"]["optional-dependencies"]["registry"]
    packages = [*PYPROJECT["project"]["dependencies"], *extras, *nox.project.dependency_groups(PYPROJECT, "test")]
    arguments = [f"--package={package}" for package in packages]
    directory = str(Path(session.virtualenv.location, "windows"))
    session.run("python", "-m", "tests.windows", directory, *arguments, *session.posargs)
    if not session.posargs:
        session.run("pytest", "-m", "windows", "tests/windows", env={"WINDOWS_PYTHON": directory})


@nox.session(default=False)
def stores(session: nox.Session) -> None:
    """Push and pull with moto, rclone's `serve s3` and s3rver as storages; npm must be installed."""
    install_group(session, "stores")
    directory = str(Path(session.virtualenv.location, "s3rver"))
    session.run("npm", "install", "--silent", "--no-audit", "--prefix", directory, "s3rver@3.7.1", external=True)
    session.env["S3RVER"] = directory
    run_pytest(session, "tests/registry/test_stores.py", "-m", "stores", measured=False, parallel=False)


@nox.session(default=False)
def pages(session: nox.Session) -> None:
    """Test the pages of the registry in Chromium, which must be installed."""
    install_group(session, "pages")
    run_pytest(session, "-m", "pages", measured=False, parallel=False)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site strictly, and run the code, commands and messages of its pages and the examples."""
    install_group(session, "docs")
    session.run("pytest", "-n", "auto", "--dist", "loadfile", "tests/docs", *session.posargs)


@nox.session
def notebook(session: nox.Session) -> None:
    """Run notebooks in a real kernel: the example, progress bars, interrupted cells, killed kernels."""
    install_group(session, "notebook")
    run_pytest(session, "-m", "notebook", measured=False)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks against BentoML and tools that copy a tar: three hours; `-- --help` lists the options."""
    install_group(session, "bench")
    session.run("python", "-m", "benchmarks.run", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "benchmarks.free")
        session.run("python", "-m", "benchmarks.scale")
        session.run("python", "-m", "benchmarks.where")
        session.run("python", "-m", "benchmarks.records")
        session.run("python", "-m", "benchmarks.remote")
        session.run("python", "-m", "benchmarks.table", "--write")
        session.run("python", "-m", "benchmarks.chart")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Run a coverage-guided fuzzer on the extractor, with the arguments of libFuzzer. Linux only."""
    install_group(session, "fuzz")
    session.run("python", "tests/fuzz/extractor.py", *(session.posargs or ["-max_total_time=60"]))


@nox.session(python=NEWEST, default=False)
def mutants(session: nox.Session) -> None:
    """Small changes of the package, and whether its tests see them: `nox -s mutants -- --count 50 --seed 7`."""
    install_group(session, "backends")
    lines = str(Path(session.virtualenv.location, "lines.json"))
    session.run("python", "-m", "tests.mutants", "--lines", lines, *session.posargs)


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Run 1,000 pushes and pulls with random faults; `nox -s chaos -- --seed 7 --only 123` replays one case."""
    install_group(session, "test")
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session(default=False)
def kills(session: nox.Session) -> None:
    """Kill a registry 200 times under load: `nox -s kills -- --kills 50 --seed 7 --copies`."""
    install_group(session, "backends")
    session.run("python", "-m", "tests.registry.kills", *session.posargs)


@nox.session(default=False)
def corpus(session: nox.Session) -> None:
    """Rebuild the corpus with releases of BentoML; needs Python 3.10. See `tests/corpus/generate.py`."""
    session.install("uv")
    session.run("python", "tests/corpus/generate.py", *session.posargs)


@nox.session(python=PYTHONS[0], default=False)
def minimum(session: nox.Session) -> None:
    """Run the suite on the oldest Python with the oldest dependencies that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "-e", ".", *nox.project.dependency_groups(PYPROJECT, "test"))
    run_pytest(session, *([] if session.posargs else SUITE), measured=False)


@nox.session(python=PYTHONS[0], reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Run the quickstart and a part of the suite with the built wheel, on the oldest Python, in the extracted sdist."""
    tmp = Path(session.create_tmp()).resolve()
    shutil.rmtree(tmp)
    session.run("uv", "build", "--quiet", "--out-dir", str(tmp), external=True)  # the wheel from the sdist
    (built,) = tmp.glob("*.whl")
    (source,) = tmp.glob("*.tar.gz")

    held = {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    package = {path.as_posix() for path in Path("async_bento").rglob("*") if path.suffix in {".py", ".typed"}}
    pages = Path("async_bento/registry/pages")
    package |= {path.as_posix() for directory in ("templates", "static") for path in (pages / directory).iterdir()}
    if held != package or "async_bento/py.typed" not in held:
        session.error(f"the wheel and async_bento/ differ in {sorted(held ^ package)}")

    with tarfile.open(source) as tar:
        tar.extractall(tmp)  # noqa: S202 - this session built it
    session.chdir(tmp / source.name.removesuffix(".tar.gz"))
    shutil.rmtree("async_bento")
    session.install(str(built), *nox.project.dependency_groups(PYPROJECT, "test"))
    session.run("python", "examples/quickstart.py")
    part = [
        "tests/api/test_push.py",
        "tests/api/test_pull.py",
        "tests/api/test_sync_api.py",
        "tests/registry/test_local.py",
    ]
    session.run("pytest", "-n", "auto", *(session.posargs or part))


@nox.session
def coverage(session: nox.Session) -> None:
    """Combine the coverage of all sessions that measure it, or of the named files; fail below the floor."""
    install_group(session, "coverage", package=False)
    data = {"COVERAGE_FILE": str(ROOT / ".coverage")}
    paths = session.posargs or sorted(str(path) for path in ROOT.glob(".coverage.*") if path.is_file())
    if not paths:
        session.error(f"no coverage data: run `nox -s {TESTS} backends endurance interop` first")
    session.run("coverage", "combine", "--keep", "--quiet", *paths, env=data)
    with (ROOT / "coverage.md").open("w", encoding="utf-8") as file:
        session.run("coverage", "report", "--format=markdown", "--fail-under=0", env=data, stdout=file)
    session.run("coverage", "report", env=data)
