"""The `async-bento` command, as a person and as a script meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click import Context, Group
from click.testing import CliRunner, Result

from async_bento import BentoAPI, __version__
from async_bento.cli import main
from async_bento.cli.output import fitted
from tests.builders import contents, make_bento, make_model

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento import ProgressEvent
    from async_bento.registry.server import LocalRegistry

NOWHERE = "http://127.0.0.1:1"


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "async_bento", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_pushed_bento_is_listed_shown_and_pulled(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bento = make_bento(home, "svc:v1", models=["mod:m1"], labels={"team": "nlp"})
    make_model(home, "mod:m1")
    before = contents(bento)
    assert done("push", "svc").startswith("Pushed the bento svc:v1: 10.0 KiB, ")
    assert done("push", "svc:v1") == "The registry has the bento svc:v1 already; --force pushes it anew.\n"
    head, row = done("list").splitlines()
    assert head.split() == ["TAG", "SIZE", "BUILT", "(UTC)", "UPLOAD"]
    assert row.split() == ["svc:v1", "1.3", "KiB", "2024-05-06", "07:08", "success"]
    shown = done("get", "svc")
    assert "Models:      mod:m1\n" in shown
    assert "Labels:      team=nlp\n" in shown
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    assert done("pull", "svc", "--with-models") == f"svc:v1 is in {tmp_path}/other/bentos/svc/v1\n"
    assert contents(tmp_path / "other" / "bentos" / "svc" / "v1") == before
    assert (tmp_path / "other" / "models" / "mod" / "m1" / "model.yaml").is_file()


def test_models_have_the_same_commands(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home, "mod:m1", labels={"stage": "prod"})
    make_model(home, "mod:m2", built="2025-01-01 00:00:00")
    assert done("models", "push", "mod:m1").startswith("Pushed the model mod:m1: ")
    done("models", "push", "mod:m2")
    assert [line.split()[0] for line in done("models", "list").splitlines()] == ["TAG", "mod:m2", "mod:m1"]
    assert [line.split()[0] for line in done("models", "list", "-n", "1").splitlines()] == ["TAG", "mod:m2"]
    assert done("models", "get", "mod").startswith("Tag:         mod:m2\n")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    pulled = done("models", "pull", "mod", "--query", "label:stage=prod")
    assert pulled == f"mod:m1 is in {tmp_path}/other/models/mod/m1\n"


def test_json_is_all_that_a_machine_reads(served: LocalRegistry, home: Path) -> None:
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


def test_force_bare_and_a_directory(served: LocalRegistry, home: Path, tmp_path: Path) -> None:
    bento = make_bento(tmp_path / "build", "svc:v1")
    assert done("push", str(bento), "--bare") == "Pushed the record of the bento svc:v1.\n"
    assert done("push", str(bento), "--force", "--threads", "2").startswith("Pushed the bento svc:v1")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("push", "svc:v1"), 3, "no bento svc:v1 in {home}/bentos"),
        (("push", "No Tag"), 2, "invalid name 'No Tag' in a tag"),
        (("pull", "svc:v1"), 3, "no bento svc:v1 on the registry at {endpoint}"),
        (("models", "pull", "mod"), 3, "no model mod on the registry at {endpoint}"),
        (("get", "svc"), 3, "`async-bento list` shows what is there"),
        (("models", "get", "mod"), 3, "`async-bento models list` shows what is there"),
        (("list", "--context", "prod"), 2, "no context 'prod' in {home}/.yatai.yaml"),
        (("push", "svc:v1", "--threads", "0"), 2, "0 is not in the range x>=1"),
        (("list", "--endpoint", "nowhere"), 2, "'nowhere' is no endpoint"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_a_code(
    served: LocalRegistry, home: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said.format(home=home, endpoint=served.endpoint) in result.stderr
    assert "Traceback" not in result.stderr


def test_no_token_is_said_with_what_to_do() -> None:
    result = run("list")
    assert result.exit_code == 2
    assert "BENTO_CLOUD_API_KEY" in result.stderr


def test_a_wrong_token_is_said_with_where_it_came_from(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "not-this-one")
    result = run("list")
    assert result.exit_code == 4
    assert "does not accept the API token from BENTO_CLOUD_API_KEY" in result.stderr
    assert "not-this-one" not in result.stderr


def test_a_registry_that_does_not_listen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "token")
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", NOWHERE)
    monkeypatch.setenv("ASYNC_BENTO_RETRY_ATTEMPTS", "1")
    result = run("list")
    assert result.exit_code == 5
    assert f"cannot reach the registry at {NOWHERE}: Connection refused" in result.stderr


def test_what_the_bars_have_told_is_not_said_once_more(
    served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[ProgressEvent] = []
    monkeypatch.setattr("async_bento.progress.listeners.choose_listener", lambda _: shown.append)
    result = run("pull", "nope")
    assert (result.exit_code, result.stderr) == (3, "")
    assert shown[-1].message.startswith("no bento nope on the registry at ")
    result = run("push", "nope")  # which no bar has begun
    assert result.stderr.startswith("Error: no bento nope in ")


def test_an_empty_registry_lists_nothing(served: LocalRegistry) -> None:
    result = run("list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "The registry has none.\n")


def test_the_version_is_said() -> None:
    assert done("--version") == f"async-bento, version {__version__}\n"


def test_help_names_the_exit_codes() -> None:
    assert "5    the registry cannot be reached" in done("--help")


def test_ctrl_c_ends_a_push_with_130_and_the_registry_knows(served: LocalRegistry, home: Path, tmp_path: Path) -> None:
    make_bento(home, "svc:v1")
    fifo = tmp_path / "there"
    os.mkfifo(fifo)
    # The push stops in its midst, says so, and waits to be interrupted.
    script = f"""
import asyncio
from async_bento.transfer.http import TarBody

async def stall(self, writer, content_length):
    await asyncio.to_thread(lambda: open({str(fifo)!r}, "w").close())
    await asyncio.sleep(60)

TarBody.write_with_length = stall
from async_bento.cli import main
from async_bento.cli.output import fitted
main(["push", "svc:v1"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    fifo.read_text()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == (
        "Interrupted; nothing is half-done. "
        "The same command goes on with the parts that have arrived, or starts again if none has.\n"
    )
    with BentoAPI() as api:
        assert api.get("svc", "v1").upload_status == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_registry_serves_until_it_is_stopped(tmp_path: Path, home: Path, number: signal.Signals) -> None:
    make_bento(home, "svc:v1")
    with start("registry", "serve", "--root", str(tmp_path / "root"), "--port", "0") as process:
        assert process.stdout is not None
        variables = dict(process.stdout.readline().strip().removeprefix("export ").split("=", 1) for _ in range(2))
        assert set(variables) == {"BENTO_CLOUD_API_ENDPOINT", "BENTO_CLOUD_API_KEY"}
        with BentoAPI(
            endpoint=variables["BENTO_CLOUD_API_ENDPOINT"], api_token=variables["BENTO_CLOUD_API_KEY"]
        ) as api:
            assert not api.push("svc:v1").skipped
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err.splitlines()[-1] == "The registry has stopped."


def test_a_port_in_use_is_said(served: LocalRegistry, tmp_path: Path) -> None:
    port = served.endpoint.rpartition(":")[2]
    result = run("registry", "serve", "--root", str(tmp_path / "root"), "--port", port)
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


# Several at once


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
def test_several_are_pushed_each_once(
    served: LocalRegistry, three: None, arguments: tuple[str, ...], pushed: list[str]
) -> None:
    assert [line.split()[3].rstrip(":") for line in done("push", *arguments).splitlines()] == pushed
    assert sorted(line.split()[0] for line in done("list").splitlines()[1:]) == sorted(pushed)


def test_several_models_are_pushed(served: LocalRegistry, home: Path) -> None:
    for tag in ("mod:m1", "mod:m2"):
        make_model(home, tag)
    assert [result["tag"] for result in json.loads(done("models", "push", "mod*", "--json"))] == ["mod:m1", "mod:m2"]


def test_a_machine_reads_a_list_where_several_may_have_been_meant(served: LocalRegistry, three: None) -> None:
    assert [result["tag"] for result in json.loads(done("push", "fraud:*", "--json"))] == ["fraud:v1"]
    assert json.loads(done("push", "iris:v1", "--json"))["tag"] == "iris:v1"


def test_one_that_fails_does_not_stop_the_others(served: LocalRegistry, three: None) -> None:
    result = run("push", "iris:v1", "gone:v1", "fraud:v1")
    assert result.exit_code == 3
    assert [line.split()[3] for line in result.stdout.splitlines()] == ["iris:v1:", "fraud:v1:"]
    assert "Error: gone:v1: no bento gone:v1 in" in result.stderr
    assert result.stderr.splitlines()[-1] == "Error: 1 of 3 bentos were not pushed: gone:v1"


def test_what_the_next_push_would_fail_with_as_well_ends_it(
    served: LocalRegistry, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "not-this-one")
    result = run("push", "--all")
    assert (result.exit_code, result.stderr.count("Error:")) == (4, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("push",), 2, "it needs what to push, or --all"),
        (("push", "iris:v1", "--all"), 2, "it needs what to push, or --all"),
        (("push", "rose*"), 3, "no bento in {home}/bentos matches 'rose*'"),
        (("models", "push", "--all"), 3, "no model in {home}/models matches '*'"),
        (("get",), 2, "it needs either a tag, or --search or --label"),
        (("get", "iris", "--search", "iris"), 2, "it needs either a tag, or --search or --label"),
        (("get", "--search", "rose"), 3, "nothing on the registry matches"),
        (("list", "--label", "team"), 2, "'team' is no KEY=VALUE without spaces"),
        (("list", "--label", "team=a b"), 2, "'team=a b' is no KEY=VALUE without spaces"),
    ],
)
def test_what_cannot_be_meant_is_said(
    served: LocalRegistry, three: None, home: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said.format(home=home) in result.stderr


# Looking for records


def test_records_are_looked_for_by_name_and_labels(served: LocalRegistry, home: Path) -> None:
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


def test_a_list_and_a_record_fit_the_terminal_and_a_pipe_has_all(
    served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a" * 63
    models = [f"model-with-a-long-name-{number}:v1" for number in range(6)]
    make_bento(home, f"{name}:v1", models=models)
    for model in models:
        make_model(home, model)
    done("push", name)
    whole = done("list")
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 80)
    table, record = done("list").splitlines(), done("get", name).splitlines()
    assert f"{name}:v1" in whole
    assert max(map(len, table)) == 80
    assert "…" in table[1]
    assert "success" in table[1]
    assert max(map(len, record)) <= 80
    assert " ".join(" ".join(record).split()).endswith(", ".join(models))


@pytest.mark.parametrize(
    ("widths", "room", "fitting"),
    [([10, 5], 17, [10, 5]), ([30, 20, 5], 49, [20, 20, 5]), ([50, 40], 20, [12, 12])],
)
def test_the_widest_columns_give_way(widths: list[int], room: int, fitting: list[int]) -> None:
    assert fitted(widths, room) == fitting


def test_every_command_has_an_example() -> None:
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
        text = done(*path, "--help")
        assert f"async-bento {' '.join(path)}" in text.partition("Examples:")[2], path
