"""Clients on Windows and on Linux pull each other's pushes."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import BentoAPI, BentoStore, ModelStore
from tests.builders import MiB, contents, make_bento, make_model, random_bytes
from tests.windows.wine import windows_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.registry.server import LocalRegistry
    from tests.windows.wine import WindowsPython

pytestmark = [pytest.mark.windows, pytest.mark.processes, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
FILES = {
    "README.md": b"one\r\ntwo\n\x1athree\r\n",
    "every byte": bytes(range(256)),
    "empty": b"",
    "src/grüße, 日本.txt": "grüße\n".encode(),
    "src/deep/er/service.py": b"class Service: ...\n",
    "weights": random_bytes(MiB + 200_001),
}

# Ends its process, or interrupts it like Ctrl-C, after a part of the bytes.
TRANSFER = """
import os, signal, sys
from async_bento import BentoAPI, Config

call, how, share = sys.argv[1], sys.argv[2], float(sys.argv[3])
done = False

def stop(event):
    global done
    if event.bytes_total and event.bytes_done >= share * event.bytes_total and not done:
        done = True
        os._exit(9) if how == "kill" else signal.raise_signal(signal.SIGINT)

config = Config(transfer={"part_size": 5 << 20, "range_size": 64 << 10, "window": 1 << 20, "concurrency": 1})
with BentoAPI(config=config, progress=stop if share else False) as api:
    if call == "push":
        result = api.models.push("big:v1")
        print(result.bytes_sent)
    else:
        api.models.pull("big:v1")
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The home of the client on Windows."""
    home = tmp_path / "windows"
    home.mkdir()
    return home


def run(
    windows: WindowsPython, registry: LocalRegistry, home: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Windows' Python with a home and the credentials of a registry."""
    environment = {
        "BENTOML_HOME": windows_path(home),
        "BENTO_CLOUD_API_ENDPOINT": registry.endpoint,
        "BENTO_CLOUD_API_KEY": registry.api_token,
        "PYTHONPATH": windows_path(ROOT),
        "PYTHONPYCACHEPREFIX": windows_path(windows.directory / "bytecode"),
        "PYTHONUTF8": "1",
    }
    return windows.run(*arguments, env=environment, encoding="utf-8", timeout=300, **options)


def make(home: Path) -> None:
    directory = make_bento(home, files=FILES)
    (directory / "src" / "nothing").mkdir()
    (directory / "weights").chmod(0o755)


def in_store(home: Path) -> dict[str, bytes | str | None]:
    return contents(home / "bentos" / "svc" / "v1")


def test_windows_pulls_linux_push(windows: WindowsPython, served: LocalRegistry, home: Path, there: Path) -> None:
    make(home)
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")

    run(windows, served, there, "-m", "async_bento", "pull", "svc:v1")

    assert in_store(there) == in_store(home)
    assert sorted(path.name for path in (there / "tmp").iterdir()) == []


@pytest.mark.parametrize("item", ["svc:v1", "{store}\\bentos\\svc\\v1"])
def test_linux_pulls_windows_push(
    windows: WindowsPython, served: LocalRegistry, home: Path, there: Path, item: str
) -> None:
    make(there)

    done = run(windows, served, there, "-m", "async_bento", "push", "--json", item.format(store=windows_path(there)))

    assert json.loads(done.stdout.splitlines()[-1])["tag"] == "svc:v1"
    with BentoAPI(progress=False) as api:
        api.pull("svc:v1")
    assert in_store(home) == in_store(there)
    files = [path for path in (home / "bentos" / "svc" / "v1").rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & stat.S_IXUSR for path in files)  # Windows knows no modes, and scripts must start


def test_killed_push_resumes(windows: WindowsPython, served: LocalRegistry, home: Path, there: Path) -> None:
    make_model(there, "big:v1", files={"weights": random_bytes(20 * MiB)})

    killed = run(windows, served, there, "-c", TRANSFER, "push", "kill", "0.6", check=False)
    resumed = run(windows, served, there, "-c", TRANSFER, "push", "no", "0")

    assert killed.returncode == 9
    assert 0 < int(resumed.stdout) < 16 * MiB
    pull_on_linux(home)
    assert contents(home / "models" / "big" / "v1") == contents(there / "models" / "big" / "v1")


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_interrupted_pull_resumes(
    windows: WindowsPython, served: LocalRegistry, home: Path, there: Path, how: str
) -> None:
    make_model(home, "big:v1", files={"weights": random_bytes(40 * MiB)})
    with BentoAPI(progress=False) as api:
        api.models.push("big:v1")

    interrupted = run(windows, served, there, "-c", TRANSFER, "pull", how, "0.6", check=False)
    kept = [*(there / "tmp").rglob("weights")]
    run(windows, served, there, "-m", "async_bento", "models", "pull", "big:v1")

    assert (interrupted.returncode != 0, "KeyboardInterrupt" in interrupted.stderr) == (True, how == "interrupt")
    assert kept
    assert contents(there / "models" / "big" / "v1") == contents(home / "models" / "big" / "v1")


# Presses Ctrl-Break once a file of the transfer exists.
BREAK = """
import os, signal, sys, threading, time
from pathlib import Path
from async_bento.cli.main import main

def press():
    while not any(path.stat().st_size for path in Path(os.environ["BENTOML_HOME"], "tmp").rglob(sys.argv[1])):
        time.sleep(0.02)
    signal.raise_signal(signal.SIGBREAK)

threading.Thread(target=press, daemon=True).start()
main(["models", *sys.argv[2:], "big:v1", "--limit-rate", "5M"])
"""


@pytest.mark.parametrize(("call", "file"), [("push", "async-bento-kept-push+*"), ("pull", "weights")])
def test_ctrl_break_allows_resume(
    windows: WindowsPython, served: LocalRegistry, home: Path, there: Path, call: str, file: str
) -> None:
    make_model(home if call == "pull" else there, "big:v1", files={"weights": random_bytes(40 * MiB)})
    if call == "pull":
        with BentoAPI(progress=False) as api:
            api.models.push("big:v1")

    stopped = run(windows, served, there, "-c", BREAK, file, call, check=False)
    run(windows, served, there, "-m", "async_bento", "models", call, "big:v1")

    assert stopped.returncode == 128 + 21  # SIGBREAK
    assert stopped.stderr.endswith("Interrupted. Run the same command again to resume.\n")
    if call == "push":
        pull_on_linux(home)
    assert contents(there / "models" / "big" / "v1") == contents(home / "models" / "big" / "v1")


def test_quickstart_runs(windows: WindowsPython, served: LocalRegistry, there: Path) -> None:
    done = run(windows, served, there, str(ROOT / "examples" / "quickstart.py"))
    assert done.stdout.count("are identical, bytes and modes") == 2


SERVE = """
import os, signal, sys, threading
from async_bento.cli.main import main

class Output:
    def __init__(self, stream): self.stream = stream
    def __getattr__(self, name): return getattr(self.stream, name)
    def write(self, text):
        self.stream.write(text)
        if "API_KEY" in text:
            threading.Timer(0, signal.raise_signal, [getattr(signal, sys.argv[1])]).start()

sys.stdout = Output(sys.stdout)
main(["registry", "serve", "--root", sys.argv[2], "--port", "0"])
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGBREAK"])
def test_server_stops_by_signal(windows: WindowsPython, served: LocalRegistry, there: Path, number: str) -> None:
    done = run(windows, served, there, "-c", SERVE, number, windows_path(there / "registry"))
    assert "$env:BENTO_CLOUD_API_ENDPOINT = " in done.stdout
    assert done.stderr.endswith("The registry has stopped.\n")


@contextmanager
def serving(windows: WindowsPython, root: Path) -> Iterator[None]:
    """Run the command's registry on Windows with the variables that lead to it, and kill it after the block."""
    served = ["-m", "async_bento", "registry", "serve", "--root", windows_path(root), "--port", "0"]
    environment = windows.environment | {"PYTHONPATH": windows_path(ROOT), "PYTHONUNBUFFERED": "1"}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(windows.command(*served), env=environment, text=True, **streams)
    assert process.stdout is not None
    try:
        with pytest.MonkeyPatch.context() as patch:
            for line in process.stdout:
                if found := re.search(r'ENDPOINT = "(.*)"', line):
                    patch.setenv("BENTO_CLOUD_API_ENDPOINT", found[1])
                    patch.setenv("BENTO_CLOUD_API_KEY", (root / "api_token").read_text().strip())
                    break
            yield
    finally:
        process.kill()
        process.communicate()


def test_registry_serves_linux(windows: WindowsPython, home: Path, tmp_path: Path) -> None:
    make(home)
    new = random_bytes(20 * MiB)
    make_model(home, "big:v1", files={"weights": new[::-1]})

    with serving(windows, tmp_path / "registry"), BentoAPI(progress=False) as api:
        api.push("svc:v1")
        api.models.push("big:v1")
        (home / "models" / "big" / "v1" / "weights").write_bytes(new)
        api.models.push("big:v1", force=True)
        api.pull("svc:v1", path=tmp_path / "first")
        api.delete("svc:v1")
    with serving(windows, tmp_path / "registry"), BentoAPI(progress=False) as api:
        api.models.pull("big:v1", path=tmp_path / "big")
        assert not api.list().items
        api.push("svc:v1")
        api.pull("svc:v1", path=tmp_path / "second")

    assert contents(tmp_path / "first") == contents(tmp_path / "second") == in_store(home)
    assert contents(tmp_path / "big") == contents(home / "models" / "big" / "v1")


def pull_on_linux(home: Path) -> None:
    with BentoAPI(
        progress=False, bento_store=BentoStore(home / "bentos"), model_store=ModelStore(home / "models")
    ) as api:
        api.models.pull("big:v1")
