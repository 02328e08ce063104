"""The `async-bento` command: output, exit codes and help."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click import Context, Group

from async_bento import BentoAPI, __version__
from async_bento._core.text import human_size
from async_bento.cli import main
from async_bento.cli.errors import print_message
from async_bento.cli.options import rate_option, transfer_config
from async_bento.cli.output import fit_widths, wrap
from tests.builders import contents, make_bento, make_model
from tests.cli_runner import make_runner
from tests.fault_proxy import PUT, refuse
from tests.platforms import IS_WINDOWS, REFUSED

if TYPE_CHECKING:
    from click.testing import Result

    from async_bento.registry.server import LocalRegistry
    from tests.fixtures import StartProxy

NOWHERE = "http://127.0.0.1:1"
SETTING = '$env:BENTO_CLOUD_API_ENDPOINT = "{}' if IS_WINDOWS else "export BENTO_CLOUD_API_ENDPOINT={}"


def run(*arguments: str) -> Result:
    result = make_runner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def in_words(message: str, served: LocalRegistry, home: Path) -> str:
    """A message with the paths of the test."""
    places = {"bentos": home / "bentos", "models": home / "models", "contexts": home / ".yatai.yaml"}
    return message.format(endpoint=served.endpoint, **places)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "async_bento", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_push_list_get_and_pull(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bento = make_bento(home, "svc:v1", models=["mod:m1"], labels={"team": "nlp"})
    make_model(home, "mod:m1")
    before = contents(bento)
    assert done("push", "svc").startswith("Pushed bento svc:v1: 10.0 KiB, ")
    assert done("push", "svc:v1") == ("Skipped bento svc:v1: already pushed. Use --force to push it again.\n")
    head, row = done("list").splitlines()
    assert head.split() == ["TAG", "SIZE", "WITH", "MODELS", "BUILT", "(UTC)", "UPLOAD"]
    assert row.split() == ["svc:v1", "1.3", "KiB", "2024-05-06", "07:08", "success"]
    shown = done("get", "svc")
    assert f"Registry:    {served.endpoint}\n" in shown
    assert "Size:        1.3 KiB with its models\n" in shown
    assert "Models:      mod:m1\n" in shown
    assert "Labels:      team=nlp\n" in shown
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    assert done("pull", "svc", "--with-models") == f"svc:v1 is in {tmp_path / 'other/bentos/svc/v1'}\n"
    assert contents(tmp_path / "other" / "bentos" / "svc" / "v1") == before
    assert (tmp_path / "other" / "models" / "mod" / "m1" / "model.yaml").is_file()


def test_models_push_list_get_pull(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home, "mod:m1", labels={"stage": "prod"})
    make_model(home, "mod:m2", built="2025-01-01 00:00:00")
    assert done("models", "push", "mod:m1").startswith("Pushed model mod:m1: ")
    done("models", "push", "mod:m2")
    assert [line.split()[0] for line in done("models", "list").splitlines()] == ["TAG", "mod:m2", "mod:m1"]
    assert [line.split()[0] for line in done("models", "list", "-n", "1").splitlines()] == ["TAG", "mod:m2"]
    assert done("models", "get", "mod").startswith("Tag:         mod:m2\n")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    pulled = done("models", "pull", "mod", "--query", "label:stage=prod")
    assert pulled == f"mod:m1 is in {tmp_path / 'other/models/mod/m1'}\n"


def test_json_output_is_only_json(served: LocalRegistry, home: Path) -> None:
    bento = make_bento(home, "svc:v1", models=["mod:m1"])
    make_model(home, "mod:m1")
    pushed = json.loads(done("push", "svc:v1", "--json"))
    assert (pushed["tag"], pushed["skipped"], pushed["parts"]) == ("svc:v1", False, 1)
    assert [model["tag"] for model in pushed["models"]] == ["mod:m1"]
    assert [item["version"] for item in json.loads(done("list", "--json"))] == ["v1"]
    record = json.loads(done("get", "svc:v1", "--json"))
    assert record["manifest"]["models"] == ["mod:m1"]
    assert not [name for name in record if name.startswith("presigned_") and name.endswith("_url")]
    assert json.loads(done("pull", "svc:v1", "--json")) == {"tag": "svc:v1", "path": str(bento)}


def test_push_bare_then_forced(served: LocalRegistry, home: Path, tmp_path: Path) -> None:
    bento = make_bento(tmp_path / "build", "svc:v1")
    assert done("push", str(bento), "--bare") == "Pushed the record of bento svc:v1.\n"
    assert done("push", str(bento), "--force", "--threads", "2").startswith("Pushed bento svc:v1")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("push", "svc:v1"), 3, "no bento svc:v1 in {bentos}"),
        (("push", "No Tag"), 2, "invalid name 'No Tag' in a tag"),
        (("pull", "svc:v1"), 3, "no bento svc:v1 in the registry at {endpoint}"),
        (("models", "pull", "mod"), 3, "no model mod in the registry at {endpoint}"),
        (("get", "svc"), 3, "`async-bento list` shows its bentos"),
        (("models", "get", "mod"), 3, "`async-bento models list` shows its models"),
        (("list", "--context", "prod"), 2, "no context 'prod' in {contexts}"),
        (("push", "svc:v1", "--threads", "0"), 2, "0 is not in the range x>=1"),
        (("list", "--endpoint", "nowhere"), 2, "invalid endpoint 'nowhere'"),
    ],
)
def test_error_is_one_line_with_code(
    served: LocalRegistry, home: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert in_words(message, served, home) in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_token_states_remedy() -> None:
    result = run("list")
    assert result.exit_code == 2
    assert "BENTO_CLOUD_API_KEY" in result.stderr


def test_rejected_token_names_source(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "not-this-one")
    result = run("list")
    assert result.exit_code == 4
    assert "Check the API token from BENTO_CLOUD_API_KEY" in result.stderr
    assert "not-this-one" not in result.stderr


@pytest.mark.parametrize("command", [("list",), ("push", "svc:v1"), ("models", "pull", "mod:m1")])
def test_unreachable_registry_exits_5(
    command: tuple[str, ...],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    waits: list[float],
) -> None:
    make_bento(home)
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "token")
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", NOWHERE)
    caplog.set_level("INFO", logger="async_bento")
    result = run(*command)
    assert result.exit_code == 5
    assert sum(record.getMessage().startswith("retrying") for record in caplog.records) == 1
    assert len(waits) == 1
    assert waits[0] <= 0.5
    assert f"cannot reach the registry at {NOWHERE}: {REFUSED}" in result.stderr


def test_error_is_printed_once(served: LocalRegistry, home: Path) -> None:
    result = run("pull", "nope")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: no bento nope in the registry at ")
    assert result.stderr.count("no bento nope") == 1
    result = run("push", "nope")
    assert result.stderr.startswith("Error: no bento nope in ")


def test_empty_registry_prints_note(served: LocalRegistry) -> None:
    result = run("list")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "",
        f"No bentos in the registry at {served.endpoint}.\n",
    )
    result = run("models", "list", "--search", "iris")
    assert (result.exit_code, result.stderr) == (0, f"No models in the registry at {served.endpoint} match.\n")
    assert json.loads(done("list", "--json")) == []


def test_version_is_printed() -> None:
    assert done("-V") == done("--version") == f"async-bento, version {__version__}\n"


def test_help_lists_exit_codes() -> None:
    help_text = done("--help")
    for code in (
        "0    success",
        "1    failure",
        "2    wrong usage",
        "3    bento or model not found",
        "130  interrupted",
    ):
        assert code in help_text
    assert "4    the registry does not accept the API token" in help_text
    assert "5    the registry cannot be reached" in help_text


def test_push_ctrl_c_fails_upload(served: LocalRegistry, home: Path, tmp_path: Path) -> None:
    make_bento(home, "svc:v1")
    fifo = tmp_path / "signal"
    os.mkfifo(fifo)
    # The push stops while it sends the body, opens the FIFO as a signal, and waits for the interrupt.
    script = f"""
import asyncio
from async_bento.transfer.body import TarBody

async def stall(self, writer, content_length):
    await asyncio.to_thread(lambda: open({str(fifo)!r}, "w").close())
    await asyncio.sleep(60)

TarBody.write_with_length = stall
from async_bento.cli import main
main(["push", "svc:v1"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    fifo.read_text()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted. Run the same command again to resume.\n"
    with BentoAPI() as api:
        assert api.get("svc", "v1").upload_status == "failed"


@pytest.mark.posix("shell, and signals between processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_signal(tmp_path: Path, home: Path, number: signal.Signals) -> None:
    make_bento(home, "svc:v1")
    with start("registry", "serve", "--root", str(tmp_path / "root"), "--port", "0") as process:
        assert process.stdout is not None
        exports = process.stdout.readline() + process.stdout.readline()
        shown = 'echo "$BENTO_CLOUD_API_ENDPOINT" "$BENTO_CLOUD_API_KEY"'
        result = subprocess.run(["sh", "-c", exports + shown], capture_output=True, text=True, check=True)
        endpoint, token = result.stdout.split()
        with BentoAPI(endpoint=endpoint, api_token=token) as api:
            assert not api.push("svc:v1").skipped
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert token not in exports + out + err
    assert process.returncode == 0
    assert err.splitlines()[-1] == "The registry has stopped."


def test_serve_shows_token_once(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "async_bento",
        "registry",
        "serve",
        "--root",
        str(tmp_path / "root"),
        "--port",
        "0",
    ]
    shown = []
    for _ in range(2):
        import pty

        ours, theirs = pty.openpty()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
            os.close(theirs)
            assert process.stdout is not None
            printed = process.stdout.readline() + process.stdout.readline()
            process.terminate()
            process.wait(30)
        text = ""
        with suppress(OSError):  # Linux: the other end is closed
            while piece := os.read(ours, 10_000):
                text += piece.decode()
        os.close(ours)
        token = (tmp_path / "root" / "api_token").read_text().strip()
        assert token not in printed
        shown.append(token in text)
    assert shown == [True, False]


def test_serve_prints_absolute_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed lines work in every directory."""
    monkeypatch.chdir(tmp_path)
    with start("registry", "serve", "--root", "root", "--port", "0") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = process.stdout.readline() + process.stdout.readline()
        line = process.stderr.readline()
        process.terminate()
        process.communicate(timeout=30)
    assert str(Path.cwd() / "root" / "api_token") in lines
    assert line.startswith("Serving root on http://127.0.0.1:")


def test_serve_prints_public_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_BENTO_REGISTRY_PUBLIC_URL", "https://bentos.example/reg/")
    with start("registry", "serve", "--root", str(tmp_path / "root"), "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        process.communicate(timeout=30)
    assert line.rstrip('"\n') == SETTING.format("https://bentos.example/reg")


def test_serve_tls_prints_https(tmp_path: Path) -> None:
    files = Path(__file__).parents[1] / "tls"
    arguments = ("--tls-cert", str(files / "certificate.pem"), "--tls-key", str(files / "key.pem"))
    with start("registry", "serve", "--root", str(tmp_path / "root"), "--port", "0", *arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        process.communicate(timeout=30)
    assert line.startswith(SETTING.format("https://127.0.0.1:"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tls-cert", "none.pem"), "cannot read the TLS certificate none.pem: No such file or directory."),
        (("--tls-key", "none.pem"), "there is a TLS key, but no certificate"),
        (("--forwarded-allow-ips", "localhost"), "invalid forwarded_allow_ips"),
        (("--public-url", "bentos.example"), "invalid endpoint"),
    ],
)
def test_serve_invalid_option_exits_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("registry", "serve", "--root", str(tmp_path / "root"), "--port", "0", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_serve_used_port_exits_2(served: LocalRegistry, tmp_path: Path) -> None:
    port = served.endpoint.rpartition(":")[2]
    result = run("registry", "serve", "--root", str(tmp_path / "root"), "--port", port)
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


# Several items


@pytest.fixture
def three(home: Path) -> None:
    """Three bentos in the store."""
    for tag in ("iris:v1", "iris:v2", "fraud:v1"):
        make_bento(home, tag)


@pytest.mark.parametrize(
    ("arguments", "pushed"),
    [
        (("iris:v1", "fraud:v1"), ["iris:v1", "fraud:v1"]),
        (("iris:*",), ["iris:v1", "iris:v2"]),
        (("*:v1", "iris:v1"), ["fraud:v1", "iris:v1"]),
        (("--all",), ["fraud:v1", "iris:v1", "iris:v2"]),
    ],
)
def test_push_several_once_each(
    served: LocalRegistry, three: None, arguments: tuple[str, ...], pushed: list[str]
) -> None:
    assert [line.split()[2].rstrip(":") for line in done("push", *arguments).splitlines()] == pushed
    assert sorted(line.split()[0] for line in done("list").splitlines()[1:]) == sorted(pushed)


def test_push_archive_names_import(served: LocalRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "iris.bento").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    result = run("push", "iris.bento")
    assert result.exit_code == 1
    path = shlex.quote(str(tmp_path / "iris.bento"))
    assert f"it is an exported archive, run `bentoml import {path}` first." in result.stderr


def test_push_tag_like_file_name(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home, "iris:v1")
    make_bento(home, "my.bento:v1")
    (tmp_path / "iris").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert "Pushed bento iris:v1" in done("push", "iris")
    assert "Pushed bento my.bento:v1" in done("push", "my.bento")


def test_push_models_by_pattern(served: LocalRegistry, home: Path) -> None:
    for tag in ("mod:m1", "mod:m2"):
        make_model(home, tag)
    assert [result["tag"] for result in json.loads(done("models", "push", "mod*", "--json"))] == ["mod:m1", "mod:m2"]


def test_push_pattern_json_is_list(served: LocalRegistry, three: None) -> None:
    assert [result["tag"] for result in json.loads(done("push", "fraud:*", "--json"))] == ["fraud:v1"]
    assert json.loads(done("push", "iris:v1", "--json"))["tag"] == "iris:v1"


def test_push_failure_spares_others(served: LocalRegistry, three: None) -> None:
    result = run("push", "iris:v1", "gone:v1", "fraud:v1")
    assert result.exit_code == 1
    assert [line.split()[2] for line in result.stdout.splitlines()] == ["iris:v1:", "fraud:v1:"]
    assert "Error: gone:v1: no bento gone:v1 in" in result.stderr
    assert result.stderr.splitlines()[-1] == "Error: cannot push 1 of 3 bentos: gone:v1"


def test_push_no_match_spares_others(served: LocalRegistry, three: None) -> None:
    result = run("push", "rose*", "iris:*")
    assert result.exit_code == 1
    assert [line.split()[2] for line in result.stdout.splitlines()] == ["iris:v1:", "iris:v2:"]
    assert result.stderr.splitlines()[0].startswith("Error: rose*: no bento in ")
    assert result.stderr.splitlines()[-1] == "Error: cannot push 1 of 3 bentos: rose*"


@pytest.mark.parametrize(
    ("arguments", "pulled"),
    [
        (("iris:v1", "fraud"), ["iris:v1", "fraud:v1"]),
        (("iris*:*",), ["iris:v1", "iris:v2"]),
        (("--all",), ["fraud:v1", "iris:v1", "iris:v2"]),
    ],
)
def test_pull_several_once_each(
    served: LocalRegistry,
    three: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    pulled: list[str],
) -> None:
    done("push", "--all")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    lines = done("pull", *arguments).splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(pulled)
    assert sorted(item["tag"] for item in json.loads(done("store", "list", "--json"))) == sorted(pulled)


def test_pull_failure_spares_others(
    served: LocalRegistry, three: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("push", "--all")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    result = run("pull", "gone", "rose*", "iris:v1")
    assert result.exit_code == 1
    assert result.stdout.startswith("iris:v1 is in ")
    assert result.stderr.splitlines()[-1] == "Error: cannot pull 2 of 3 bentos: rose*, gone"
    assert run("pull", "gone", "rose*").exit_code == 3  # all failed with the same error
    assert run("pull", "gone", "No Tag").exit_code == 1
    as_json = run("pull", "gone", "iris:v1", "--json")
    assert [item["tag"] for item in json.loads(as_json.stdout)] == ["iris:v1"]
    assert [*json.loads(as_json.stderr)["error"]["failures"]] == ["gone"]


def test_models_pull_pattern(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tag in ("mod:m1", "mod:m2", "other:m1"):
        make_model(home, tag)
    done("models", "push", "--all")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    done("models", "pull", "mod:*")
    assert [item["tag"] for item in json.loads(done("store", "list", "--models", "--json"))] == ["mod:m1", "mod:m2"]


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("pull", "mod:m1"), "async-bento models pull mod:m1"),
        (("models", "pull", "svc"), "async-bento pull svc"),
        (("push", "mod"), "async-bento models push mod"),
        (("models", "push", "svc:v1"), "async-bento push svc:v1"),
    ],
)
def test_other_kind_names_command(served: LocalRegistry, home: Path, arguments: tuple[str, ...], command: str) -> None:
    make_bento(home, "svc:v1")
    make_model(home, "mod:m1")
    done("push", "--all")
    done("models", "push", "--all")
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.endswith(f"Run `{command}`.\n")


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_push_missing_names_local_list(served: LocalRegistry, home: Path, dry_run: tuple[str, ...]) -> None:
    make_bento(home, "svc:v1")
    result = run("push", "svc:v2", *dry_run)
    assert result.exit_code == 3
    assert result.stderr.endswith("svc has v1. `async-bento store list` shows the local bentos.\n")
    result = run("models", "push", "mod", *dry_run)
    assert result.stderr.endswith("is empty. `async-bento store list --models` shows the local models.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "hint"),
    [
        (("get", "svc"), 3, "NotFoundError", "`async-bento list` shows its bentos."),
        (("list", "--nope"), 2, "NoSuchOption", None),
        (("push",), 2, "UsageError", None),
        (("pull", "No Tag"), 2, "InvalidTagError", None),
        (("lst",), 2, "UsageError", "Did you mean"),
    ],
)
def test_json_error_is_one_object(
    served: LocalRegistry, arguments: tuple[str, ...], code: int, kind: str, hint: str | None
) -> None:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stdout) == (code, "")
    error = json.loads(result.stderr)["error"]
    assert error["type"] == kind
    assert error["message"]
    assert error["hint"] is None if hint is None else error["hint"].startswith(hint)


def test_json_hint_has_all_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    print_message("cannot write: no space. Free some space. Then try again.", OSError, as_json=True)
    assert json.loads(capsys.readouterr().err)["error"] == {
        "message": "cannot write: no space",
        "type": "OSError",
        "hint": "Free some space. Then try again.",
    }


@pytest.mark.parametrize("command", ["ls svc", "cat svc bento.yaml", "verify svc", "diff svc:v1 svc:v2"])
def test_interrupted_read_is_not_resumed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("async_bento.api.async_api.AsyncBentoAPI.__aenter__", interrupt)
    result = run(*command.split())
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_limit_rate_overrides_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[int | None] = []

    @click.command()
    @rate_option
    def transfer() -> None:
        rates.append(transfer_config().transfer.rate_limit)

    monkeypatch.setenv("ASYNC_BENTO_TRANSFER_RATE_LIMIT", "5000")
    for arguments in ([], ["--limit-rate", "2K"]):
        assert make_runner().invoke(transfer, arguments).exit_code == 0
    assert rates == [5000, 2048]


def test_terminal_json_is_indented(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(done("doctor", "--json").splitlines()) == 1
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 80)
    assert len(done("doctor", "--json").splitlines()) > 10


def test_dry_run_changes_nothing(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home, "svc:v1", models=["mod:m1"])
    make_model(home, "mod:m1")
    planned = done("push", "svc:v1", "--dry-run").splitlines()
    assert [line.partition(":m1")[0] for line in planned[:1]] == ["Would push model mod"]
    assert planned[1].startswith("Would push bento svc:v1: ")
    assert json.loads(done("list", "--json")) == json.loads(done("models", "list", "--json")) == []
    done("push", "svc:v1")
    assert done("push", "svc*", "--dry-run") == (
        "Would skip model mod:m1: already pushed.\nWould skip bento svc:v1: already pushed.\nWould push 0 of 2 items.\n"
    )
    assert done("models", "push", "mod", "--dry-run", "--force").startswith("Would push model mod:m1: ")
    assert done("pull", "svc", "-m", "--dry-run") == (
        "Would skip bento svc:v1: already pulled.\nWould skip model mod:m1: already pulled.\nWould pull 0 of 2 items.\n"
    )
    assert done("pull", "svc", "--dry-run") == "Would skip bento svc:v1: already pulled.\n"
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    bento, model = json.loads(done("pull", "svc", "-m", "--dry-run", "--json"))
    assert (bento["tag"], bento["kind"], bento["action"]) == ("svc:v1", "bento", "pull")
    assert (model["tag"], model["kind"], model["action"]) == ("mod:m1", "model", "pull")
    assert done("models", "pull", "mod", "--dry-run").startswith("Would pull model mod:m1: ")
    assert run("pull", "gone", "--dry-run").exit_code == 3
    assert not (tmp_path / "other").exists()


def test_dry_run_compares_versions(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1", built="2024-05-06 07:08:09")
    done("push", "svc:v1")
    shutil.rmtree(home / "bentos/svc/v1")
    make_bento(home, "svc:v10", built="2024-05-06 07:08:09")
    assert done("pull", "svc:v1", "--dry-run").startswith("Would pull bento svc:v1: ")
    assert done("pull", "svc", "--dry-run") == "Would skip bento svc:v10: already pulled.\n"
    shutil.rmtree(home / "bentos/svc/v10")
    make_bento(home, "svc:v0", built="2023-01-01 00:00:00")
    assert done("pull", "svc", "--dry-run").startswith("Would pull bento svc:v1: ")


def test_dry_run_size_is_not_negative(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a bento keeps the size that its models had at its push."""
    make_bento(home, "svc:v1", models=["mod:m1"])
    make_model(home, "mod:m1", {"weights": b"0"})
    done("push", "svc:v1")
    make_model(home, "mod:m1", {"weights": b"0" * 10_000})
    done("models", "push", "mod:m1", "--force")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    bento, model = json.loads(done("pull", "svc", "-m", "--dry-run", "--json"))
    assert (bento["size_bytes"], model["size_bytes"] > 10_000) == (0, True)


def test_dry_run_counts_shared_once(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_bento(home, f"svc:v{number}", models=["mod:m1"])
    make_model(home, "mod:m1", {"weights": b"0" * 300 * 1024})
    planned = done("push", "svc*", "--dry-run").splitlines()
    assert sum("model mod:m1" in line for line in planned) == 1
    *items, last = planned
    own = json.loads(done("push", "svc*", "--dry-run", "--json"))
    assert [each["tag"] for each in own] == ["mod:m1", "svc:v0", "svc:v1", "svc:v2"]
    total = human_size(sum(each["size_bytes"] for each in own))
    assert (len(items), last) == (4, f"Would push 4 of 4 items: {total}.")
    done("push", "svc*")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    *items, last = done("pull", "svc*", "--dry-run", "-m").splitlines()
    assert (len(items), last) == (4, f"Would pull 4 of 4 items: {total}.")
    *items, last = done("pull", "svc*", "--dry-run").splitlines()
    assert (len(items), last) == (3, "Would pull 3 of 3 items.")  # the sizes in the records include the model
    assert ": at most " in items[0]
    failed = run("pull", "svc*", "gone", "--dry-run", "--json")
    assert (len(json.loads(failed.stdout)), failed.exit_code) == (3, 1)
    assert run("pull", "svc*", "gone", "--dry-run").stdout.splitlines()[3:] == ["Would pull 3 of 3 items."]


def test_hints_are_shell_remedies(served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    garbled = make_runner().invoke(main, ["login", "--endpoint", served.endpoint, "--api-token-stdin"], input="a\tb\n")
    assert garbled.stderr.startswith("Error: invalid API token from the input: ")
    monkeypatch.delenv("BENTO_CLOUD_API_KEY")
    missing = run("list").stderr
    assert "`async-bento login`" in missing
    assert "api_token" not in garbled.stderr + missing


def test_push_stops_at_fatal_error(served: LocalRegistry, three: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "not-this-one")
    result = run("push", "--all")
    assert (result.exit_code, result.stderr.count("Error:")) == (4, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("push",), 2, "Name at least one bento to push, or use --all (not both)."),
        (("push", "iris:v1", "--all"), 2, "Name at least one bento to push, or use --all (not both)."),
        (("models", "push", "iris:v1", "--all"), 2, "Name at least one model to push, or use --all (not both)."),
        (("push", "rose*"), 3, "no bento in {bentos} matches 'rose*'"),
        (("pull", "rose*"), 3, "no bento in the registry matches 'rose*'"),
        (("pull",), 2, "Name at least one bento to pull, or use --all (not both)."),
        (("models", "pull"), 2, "Name at least one model to pull, or use --all (not both)."),
        (("models", "pull", "iris:v1", "--all"), 2, "Name at least one model to pull, or use --all (not both)."),
        (("models", "push"), 2, "Name at least one model to push, or use --all (not both)."),
        (("models", "push", "--all"), 3, "no model in {models}"),
        (("get",), 2, "Pass either TAG, or --search or --label."),
        (("get", "iris", "--search", "iris"), 2, "Pass either TAG, or --search or --label."),
        (("get", "--search", "rose"), 3, "no bento in the registry at {endpoint} matches"),
        (("list", "--limit", "0"), 2, "0 is not in the range x>=1."),
        (("push", "iris:v1", "--threads", "0"), 2, "0 is not in the range x>=1."),
        (("list", "--label", "team"), 2, "'team' does not have the form KEY=VALUE without spaces."),
        (("list", "--label", "team!=a"), 2, "use `async-bento list --query '-label:team=a'`"),
        (("list", "--label", "team=a b"), 2, "'team=a b' does not have the form KEY=VALUE without spaces."),
    ],
)
def test_invalid_arguments_reported(
    served: LocalRegistry, three: None, home: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert in_words(message, served, home) in result.stderr


# Search


def test_list_and_get_filter(served: LocalRegistry, home: Path) -> None:
    for tag, labels, year in (
        ("iris:v1", {"team": "nlp", "stage": "prod"}, 2021),
        ("iris:v2", {"team": "nlp"}, 2022),
        ("rose:v1", {"team": "vision"}, 2023),
    ):
        make_bento(home, tag, labels=labels, built=f"{year}-01-01 00:00:00")
    done("push", "--all")

    def tags(*arguments: str) -> list[str]:
        return [line.split()[0] for line in done("list", *arguments).splitlines()[1:]]

    assert tags() == ["rose:v1", "iris:v2", "iris:v1"]
    assert tags("--search", "ris") == ["iris:v2", "iris:v1"]
    assert tags("--label", "team=nlp") == ["iris:v2", "iris:v1"]
    assert tags("--label", "team=nlp", "--label", "stage=prod") == ["iris:v1"]
    assert tags("--label", "team=nlp", "--query", "sort:build_at-asc") == ["iris:v1", "iris:v2"]
    assert done("get", "--label", "team=nlp").startswith("Tag:         iris:v2\n")
    assert done("get", "--search", "iris", "--label", "stage=prod").startswith("Tag:         iris:v1\n")


def test_json_record_has_readme_once(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1", {"README.md": b"# What it does"}, models=["mod:m1"])
    make_model(home)
    done("push", "svc:v1")
    for command in ("get svc:v1", "get svc", "list"):
        text = done(*command.split(), "--json")
        assert text.count("# What it does") == 1
        assert "latest_" not in text
        assert "load_url" not in text
    assert [model["version"] for model in json.loads(done("get", "svc:v1", "--json"))["models"]] == ["m1"]


@pytest.mark.parametrize("command", ["list", "models list", "models pull mod"])
def test_unknown_query_term_warns(
    served: LocalRegistry, home: Path, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(home)
    done("models", "push", "mod:m1")
    known = "mod label:a=b,c=d -label:e=f in:name in:description sort:size-desc sort:created_at-asc"
    for query in (known, "mod"):
        run(*command.split(), "--query", query)
    run(*command.split(), "--query", "foo:bar", "--json")
    assert caplog.messages == []
    assert run(*command.split(), "--query", "foo:bar sort:what label:").exit_code == 0
    (warning,) = caplog.messages
    assert warning.startswith("the registry may ignore foo:bar, sort:what, label: in the query: unknown. Known are ")


def test_list_paging_counts_omitted(served: LocalRegistry, three: None, monkeypatch: pytest.MonkeyPatch) -> None:
    done("push", "--all")
    monkeypatch.setattr("async_bento.cli.list_get._NEWEST", 2)
    piped = run("list")
    assert len(piped.stdout.splitlines()) == 3
    assert piped.stderr == "2 of 3; --all for the rest\n"
    as_json = run("list", "--json")
    assert (len(json.loads(as_json.stdout)), as_json.stderr) == (2, "2 of 3; --all for the rest\n")
    every = run("list", "--all")
    assert (len(every.stdout.splitlines()), every.stderr) == (4, "")
    assert run("list", "--limit", "1").stderr == "1 of 3; --all for the rest\n"
    assert run("list", "--limit", "1", "--all").exit_code == 2
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 80)
    monkeypatch.setattr("async_bento.cli.list_get.terminal_width", lambda: 80)
    shown = run("list")
    assert (shown.stdout.splitlines()[-1], shown.stderr) == ("2 of 3; --all for the rest", "")
    as_json = run("list", "--json")
    assert (len(json.loads(as_json.stdout)), as_json.stderr) == (2, "2 of 3; --all for the rest\n")


def test_exists_sets_exit_code(served: LocalRegistry, home: Path, three: None) -> None:
    done("push", "iris:v1")
    assert done("exists", "iris:v1") == done("exists", "iris") == ""
    assert json.loads(done("exists", "iris:v1", "--json")) == {"tag": "iris:v1", "exists": True}
    missing = run("exists", "iris:v2")
    assert (missing.exit_code, missing.stdout) == (3, "")
    assert run("models", "exists", "iris:v1").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (("lst",), "async-bento list"),
        (("pusj",), "async-bento push"),
        (("rm",), "async-bento delete"),
        (("version",), "async-bento --version"),
        (("prune",), "async-bento store prune"),
        (("models", "show"), "async-bento models get"),
        (("store", "rm"), "async-bento store delete"),
        (("context", "ls"), "async-bento context list"),
    ],
)
def test_typo_suggests_command(arguments: tuple[str, ...], suggested: str) -> None:
    result = make_runner().invoke(main, arguments, prog_name="async-bento")
    assert result.exit_code == 2
    assert f"No such command {arguments[-1]!r}. Did you mean `{suggested}`?" in result.stderr


def test_unlike_name_suggests_none() -> None:
    assert "No such command 'xyzzy'.\n" in run("xyzzy").stderr
    assert "--version" not in run("models", "version").stderr
    assert "No such command 'serve'.\n" in run("models", "serve").stderr
    assert "--force" in run("push", "--forse").stderr


def test_output_is_cut_on_terminal(served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a" * 63
    models = [f"model-with-a-long-name-{number}:v1" for number in range(6)]
    make_bento(home, f"{name}:v1", models=models)
    for model in models:
        make_model(home, model)
    done("push", name)
    whole = done("list")
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 80)
    heading, *table = done("list").splitlines()
    record = done("get", name).splitlines()
    assert heading == f"Bentos in the registry at {served.endpoint}:"
    assert f"{name}:v1" in whole
    assert max(map(len, table)) == 80
    assert "…" in table[1]
    assert "success" in table[1]
    assert max(map(len, record)) <= 80
    assert " ".join(" ".join(record).split()).endswith(", ".join(models))
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 40)
    _, *table = done("list").splitlines()
    assert max(map(len, table)) <= 40
    assert [line.split()[-1] for line in table] == ["MODELS", "KiB"]  # no date and no status


@pytest.mark.parametrize(
    ("widths", "columns", "fitting"),
    [
        ([10, 5], 17, [10, 5]),
        ([30, 20, 5], 49, [20, 20, 5]),
        ([50, 40], 20, [20]),
        ([50], 10, [16]),
        ([45, 16, 16, 7], 80, [35, 16, 16, 7]),
        ([45, 16, 16, 7], 40, [22, 16]),
    ],
)
def test_fit_widths_narrows_columns(widths: list[int], columns: int, fitting: list[int]) -> None:
    assert fit_widths(widths, columns) == fitting


def test_wrapped_path_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path or a tag that is longer than a line, or that has hyphens, can still be copied."""
    path = "/home/ada/a-store/bentos/iris-classifier"
    text = f"is in {path} by my-user"
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 20)
    assert wrap("store:  ", text) == f"store:  is in\n        {path}\n        by my-user"
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: None)
    assert wrap("store:  ", text) == f"store:  {text}"


def test_help_has_examples() -> None:
    def commands(group: Group, *path: str) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        context = Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            found += commands(command, *path, name) if isinstance(command, Group) else [(*path, name)]
        return found

    every = commands(main)
    assert {("push",), ("models", "pull"), ("context", "use"), ("registry", "serve"), ("completion",)} <= {*every}
    for path in every:
        assert "..." not in done(*path[:-1], "--help").partition("Commands:")[2], path  # a summary that does not fit
        text = done(*path, "--help")
        assert f"async-bento {' '.join(path)}" in text.partition("Examples:")[2], path


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("push", ["[default: 10; x>=1]", "[env var: ASYNC_BENTO_PROGRESS]"]),
        ("copy", ["[default: 10; x>=1]"]),
        ("list", ["The size of a bento includes its models."]),
        ("delete", ["The models of a bento are kept.", "delete iris_classifier:v1"]),
        ("models delete", ["that a bento in the registry names is kept,", "delete iris_weights:v1"]),
        (
            "registry serve",
            [
                "[env var: ASYNC_BENTO_REGISTRY_DATABASE]",
                "[env var: ASYNC_BENTO_REGISTRY_UPSTREAM]",
                "[env var: ASYNC_BENTO_REGISTRY_UPSTREAM_TOKEN_FILE]",
            ],
        ),
    ],
)
def test_help_states_defaults(command: str, texts: list[str]) -> None:
    shown = " ".join(done(*command.split(), "--help").split())
    assert [text for text in texts if text not in shown] == []


async def test_storage_failure_names_item(start_proxy: StartProxy, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault(PUT, refuse(403, code="AccessDenied"), times=None)
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", proxy.endpoint)
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", proxy.registry.api_token)

    result = await asyncio.to_thread(run, "push", "svc:v1")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: svc:v1: http://")
