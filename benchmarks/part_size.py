"""Compare part sizes: push one file over the loopback and over links, one size after the other.

    python -m benchmarks.part_size --mib 512 --rounds 5

The registry, the link and each push are separate processes. The output has the medians relative to the default size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from async_bento import Config
from benchmarks.cases import FAR, NEAR, MiB
from benchmarks.servers import BIN, linked, read_token, running

SIZES = (8, 16, 32, 64, 128)
LINKS = {"loopback": None, "40 ms, 20 MB/s": NEAR, "100 ms, 5 MB/s": FAR}

MODEL_YAML = """\
{name: weights, version: v1, module: "", labels: {}, metadata: {}, api_version: v1,
 context: {framework_name: none, framework_versions: {}}, creation_time: 2026-01-02 03:04:05+00:00}
"""

PUSH = """
import json, resource, sys, time
from async_bento import BentoAPI
began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
with BentoAPI() as api:
    api.models.push("weights:v1", force=True)
now = resource.getrusage(resource.RUSAGE_SELF)
cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
print(json.dumps({"wall": time.monotonic() - began, "cpu": cpu}))
"""


def push(home: Path, endpoint: str, token: str, part_size: int) -> dict[str, float]:
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTO_CLOUD_API_ENDPOINT": endpoint,
        "BENTO_CLOUD_API_KEY": token,
        "ASYNC_BENTO_TRANSFER_PART_SIZE": str(part_size * MiB),
    }
    done = subprocess.run([sys.executable, "-c", PUSH], env=environment, check=True, capture_output=True, text=True)
    took: dict[str, float] = json.loads(done.stdout)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    default = Config().transfer.part_size // MiB
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch, "home")
        model = home / "models" / "weights" / "v1"
        model.mkdir(parents=True)
        (model / "model.yaml").write_text(MODEL_YAML)
        with (model / "weights.bin").open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(MiB))
        serve = [str(BIN / "async-bento"), "registry", "serve", "--root", f"{scratch}/registry", "--port", "0"]
        with running(serve, 2, Path(scratch, "registry.log")) as lines:
            endpoint, token = lines[0].partition("=")[2], read_token(Path(scratch, "registry"))
            for name, link in LINKS.items():
                with linked(endpoint, link, Path(scratch, "link.log")) as where:
                    runs: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
                    push(home, where, token, default)
                    for _ in range(options.rounds):
                        for size in SIZES:
                            runs[size].append(push(home, where, token, size))
                medians = {
                    size: {kind: statistics.median(run[kind] for run in done) for kind in ("wall", "cpu")}
                    for size, done in runs.items()
                }
                print(f"\n{options.mib} MiB, {name}: ratio to parts of {default} MiB")
                for size, median in medians.items():
                    wall, cpu = (median[kind] / medians[default][kind] for kind in ("wall", "cpu"))
                    print(f"  {size:4} MiB  wall {wall:5.2f}  CPU {cpu:5.2f}")


if __name__ == "__main__":
    main()
