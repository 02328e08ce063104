"""A CPython 3.11 for Windows under Wine: made from wheels, and run as a child process.

    python/python.exe            compiled from python.c
    python/python311.dll, DLLs   from the wheel of panda3d, which needs them to freeze programs
    python/Lib                   the pure part of the running CPython's standard library
    python/Lib/site-packages     wheels for Windows
    prefix/                      Wine's drive C

Paths of Linux are on drive Z: `/srv` is `Z:\\srv`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

HERE = Path(__file__).parent
PROGRAMS = {  # Debian's package of each program
    "/usr/lib/wine/wine64": "wine64",
    "/usr/lib/wine/wineserver64": "wine64",
    "/usr/bin/x86_64-w64-mingw32-gcc": "gcc-mingw-w64-x86-64-win32",
}
WINE, WINESERVER, COMPILER = PROGRAMS
INTERPRETER = "panda3d==1.10.16"  # holds CPython 3.11.9
NO_LIBRARY = {"__pycache__", "site-packages", "lib-dynload", "test", "idlelib", "tkinter", "ensurepip", "turtledemo"}


def windows_path(path: Path) -> str:
    """Return the Windows path of a file on Linux."""
    return "Z:" + str(path.absolute()).replace("/", "\\")


@dataclass(frozen=True)
class WindowsPython:
    """The interpreter in a directory."""

    directory: Path

    @property
    def program(self) -> Path:
        return self.directory / "python" / "python.exe"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "WINEPREFIX": str(self.directory / "prefix"), "WINEDEBUG": "-all"}

    def command(self, *arguments: str) -> list[str]:
        return [WINE, str(self.program), *arguments]

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter until it ends; with files instead of pipes as streams, it does not start."""
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(
            self.command(*arguments),
            env=self.environment | (env or {}),
            check=check,
            **({"text": True} | streams | options),
        )

    @contextmanager
    def started(self) -> Generator[None]:
        """Run Wine's services in this block: otherwise they hold the pipes of the first program open."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for stop in ("--kill", "--wait"):  # those of a run that was killed
            subprocess.run([WINESERVER, stop], env=self.environment, check=False, **quiet)
        subprocess.run([WINESERVER, "--persistent"], env=self.environment, check=True, **quiet)
        try:
            subprocess.run(self.command("-c", ""), env=self.environment, check=True, **quiet)
            yield
        finally:
            subprocess.run([WINESERVER, "--kill"], env=self.environment, check=False, **quiet)


def install_programs() -> None:
    """Install Wine and a compiler by apt, or raise an error that names the missing packages."""
    missing = sorted({package for program, package in PROGRAMS.items() if not Path(program).exists()})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise SystemExit(f"Wine and MinGW are missing. On Debian, they are in the packages {', '.join(missing)}.")
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    subprocess.run([*sudo, "apt-get", "update", "-qq"], check=True)
    install = ["apt-get", "install", "-qq", "--no-install-recommends", "-y", "wine", *missing]
    subprocess.run([*sudo, *install], check=True, stdout=subprocess.DEVNULL)


def make_python(directory: Path, packages: Sequence[str]) -> WindowsPython:
    """Make the interpreter with the packages in a directory, unless the directory has it already."""
    python = WindowsPython(directory)
    wanted, made = "\n".join([INTERPRETER, *packages]), directory / "packages.txt"
    if made.exists() and made.read_text() == wanted:
        return python
    install_programs()
    shutil.rmtree(directory, ignore_errors=True)
    home, temporary = python.program.parent, directory / "downloads"
    site = home / "Lib" / "site-packages"
    _install(temporary, "--no-deps", INTERPRETER)
    _copy_interpreter(temporary / "deploy_libs", home)
    _copy_library(home / "Lib")
    # forbiddenfruit, which blockbuster needs, has no wheel for Windows; its pure part is enough.
    override = directory / "override.txt"
    override.write_text("forbiddenfruit; sys_platform == 'linux'\n")
    _install(site, "--override", str(override), *packages)
    shutil.copytree(Path(sysconfig.get_path("purelib"), "forbiddenfruit"), site / "forbiddenfruit")
    shutil.rmtree(temporary)
    for arguments in (["wineboot", "--init"], ["winecfg", "-v", "win10"]):
        subprocess.run(
            [WINE, *arguments],
            env=python.environment,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    made.write_text(wanted)
    return python


def refuse_links(python: WindowsPython) -> None:
    """Let every process of the interpreter import `links.py` when it starts."""
    site = python.program.parent / "Lib" / "site-packages"
    shutil.copy(HERE / "links.py", site / "refuse_links.py")
    (site / "refuse_links.pth").write_text("import refuse_links\n")


def _install(target: Path, *arguments: str) -> None:
    """Install wheels for Windows into a directory."""
    target_platform = ["--python-platform", "windows", "--python-version", "3.11", "--only-binary", ":all:"]
    command = ["uv", "pip", "install", "--quiet", "--python", sys.executable, "--target", str(target)]
    subprocess.run([*command, *target_platform, *arguments], check=True)


def _copy_interpreter(libraries: Path, home: Path) -> None:
    modules = home / "DLLs"
    modules.mkdir(parents=True)
    for path in libraries.iterdir():
        # Wine has a runtime of its own.
        if path.suffix in {".pyd", ".dll"} and not path.name.lower().startswith(("api-ms-", "vcruntime", "t", "_tk")):
            shutil.copy(path, modules)
    shutil.move(modules / "python311.dll", home)
    resource = home / "manifest.o"
    subprocess.run(
        [COMPILER.replace("gcc", "windres"), "-O", "coff", "-o", str(resource)],
        input=f'1 24 "{HERE / "python.manifest"}"',
        text=True,
        check=True,
    )
    build = [COMPILER, "-O2", "-s", "-o"]
    subprocess.run([*build, str(home / "python.exe"), "-municode", str(HERE / "python.c"), str(resource)], check=True)
    library, source = home / "bcryptprimitives.dll", HERE / "bcryptprimitives.c"
    subprocess.run([*build, str(library), "-shared", str(source), "-ladvapi32"], check=True)


def _copy_library(target: Path) -> None:
    def ignored(directory: str, names: list[str]) -> set[str]:
        return {name for name in names if name in NO_LIBRARY or name.startswith(("_sysconfigdata", "config-"))}

    shutil.copytree(sysconfig.get_path("stdlib"), target, ignore=ignored)
