"""Build the corpus: bentos and models, written by releases of BentoML.

    nox -s corpus              every release
    nox -s corpus -- 1.0 1.4   these releases

Each release of BentoML is installed in a separate environment, saves the models of `projects/<line>/models.py`, and
builds each directory there by `bentoml build --version v1`. The results are copied byte for byte to `<line>/bentos` and
`<line>/models`, except API documents, which are not sent. Then BentoML 1.4.39 writes the request body of every item to
`<line>/sent.json` (see `sent.py`).

The script needs uv, Python 3.10 and a package index with upload times. A new run differs only in creation times and in
names of random directories. `$CORPUS_ENVIRONMENTS` names a directory that keeps the environments for the next run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

CORPUS = Path(__file__).resolve().parent
PROJECTS = CORPUS / "projects"
NEWEST = "1.4"
BY_HAND = "by_hand"

LEFT_OUT = ("openapi.yaml", "__pycache__", "latest")
"""Files that no request body depends on: API documents, half of a bento's bytes; bytecode; the store's `latest`."""

BENTOML = "import runpy; runpy.run_module('bentoml', run_name='__main__', alter_sys=True)"

WITHOUT_HUB = f"""
import runpy
from huggingface_hub import HfApi
HfApi.model_info = runpy.run_path({str(CORPUS / "hub.py")!r})["model_info"]
{BENTOML}
"""


@dataclass(frozen=True)
class Release:
    """A release of BentoML.

    Attributes:
        version: The version: the last patch of its line, or the first release of all.
        until: The last upload day of dependencies, so that every run installs the same files. Releases before 1.4 do
            not start with later ones: `fs` imports pkg_resources, which setuptools has removed, and 1.2 imports
            private modules of pydantic that are gone.
        needs: Additional requirements of the projects.
        variables: The environment variables of a build, by the project's name.
        options: Additional arguments of a build, by the project's name.
    """

    version: str
    until: str
    needs: tuple[str, ...] = ()
    variables: dict[str, dict[str, str]] = field(default_factory=dict)
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)


CONFIGURED = {"runners": {"BENTOML_CONFIG": "configuration.yaml"}}
HUGGINGFACE = ("huggingface_hub",)  # for models of the Hub, which BentoML supports since 1.3
NO_IMAGE = {"BENTOML_ENABLE_FEATURES": "no_image"}

RELEASES = {
    "1.0.0": Release("1.0.0", "2022-07-31", variables=CONFIGURED),
    "1.0": Release("1.0.25", "2023-08-31", variables=CONFIGURED),
    "1.1": Release("1.1.11", "2023-12-31", variables=CONFIGURED),
    "1.2": Release("1.2.20", "2024-07-31"),
    "1.3": Release("1.3.22", "2025-02-15", HUGGINGFACE, {"no_image": NO_IMAGE}),
    "1.4": Release(
        "1.4.39",
        "2026-11-01",
        HUGGINGFACE,
        {**CONFIGURED, "no_image": NO_IMAGE},
        {"arguments": ("--arg", "size=3", "--arg", "name=from-the-command")},
    ),
}


def install(line: str, into: Path) -> Path:
    """Install a release and return its Python."""
    release = RELEASES[line]
    python = into / line / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "--quiet", "--python", "3.10", into / line], check=True)
        wanted = [f"bentoml=={release.version}", *release.needs]
        command = ["uv", "pip", "install", "--quiet", "--python", python, "--exclude-newer", release.until, *wanted]
        subprocess.run(command, check=True)
    return python


def run(home: Path, command: list[str | Path], **variables: str) -> str:
    """Run a command in a home of BentoML and return its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BENTO")}
    own = {"HOME": str(home), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, env={**kept, **own, **variables}, cwd=home, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    return done.stdout


def build(line: str, python: Path, home: Path) -> None:
    """Save the models and build the projects of a release."""
    release = RELEASES[line]
    run(home, [python, PROJECTS / line / "models.py"])
    for project in sorted(path for path in (PROJECTS / line).iterdir() if path.is_dir()):
        # A copy, so that the build leaves no files in the project.
        context = home / project.name
        shutil.copytree(project, context)
        code = WITHOUT_HUB if "HuggingFaceModel" in (project / "service.py").read_text() else BENTOML
        command = [python, "-c", code, "build", "--version", "v1", *release.options.get(project.name, ()), context]
        variables = dict(release.variables.get(project.name, {}))
        if "BENTOML_CONFIG" in variables:
            variables["BENTOML_CONFIG"] = str(context / variables["BENTOML_CONFIG"])
        run(home, command, **variables)


def keep(line: str, home: Path) -> None:
    """Copy the items of a release into the corpus."""
    for kind in ("bentos", "models"):
        target = CORPUS / line / kind
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(home / kind, target, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))


def describe(line: str, newest: Path, home: Path) -> None:
    """Write the request bodies of BentoML 1.4 for the items of a line."""
    for kind in ("bentos", "models"):
        shutil.copytree(CORPUS / line / kind, home / kind)
    (CORPUS / line / "sent.json").write_text(run(home, [newest, CORPUS / "sent.py"]), encoding="utf-8")


def main(lines: list[str], environments: Path) -> None:
    """Build these lines, or all lines."""
    newest = install(NEWEST, environments)
    for line in lines or [*RELEASES, BY_HAND]:
        if line != BY_HAND:
            with tempfile.TemporaryDirectory() as home:
                build(line, install(line, environments), Path(home))
                keep(line, Path(home))
        with tempfile.TemporaryDirectory() as home:
            describe(line, newest, Path(home))


if __name__ == "__main__":
    kept = os.environ.get("CORPUS_ENVIRONMENTS")
    with tempfile.TemporaryDirectory() as made:
        main(sys.argv[1:], Path(kept or made))
