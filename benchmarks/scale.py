"""Measure the growth of the cost of a push and a pull with the size, the number of files and the number of models.

    python -m benchmarks.scale                     # everything: about 20 minutes on two cores, and 50 GB of disk
    python -m benchmarks.scale --largest .01       # a quick check: cases of at most this share of the largest

The cases run async-bento only, over the loopback, on SeaweedFS, and verify the bytes as `benchmarks.run` does.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.cases import OURS, steps
from benchmarks.items import Items
from benchmarks.measured import RESULTS, SCALE
from benchmarks.peers import FLOORS
from benchmarks.run import directory_for, given, keep, machine, run_round, start

ROUNDS = 3
PATIENCE = 60.0
"""Seconds; a step that took longer has no further round."""


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=float, default=1.0, help="skip cases above this share of the largest")
    parser.add_argument(
        "--results",
        type=Path,
        help="the output directory; default: benchmarks/results, or build/benchmarks for a quick check",
    )
    parser.add_argument("--scratch", type=Path, help="the directory for the data; needs 50 GB")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    results = options.results or (RESULTS if options.largest >= 1 else Path("build/benchmarks"))
    taken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        content = {
            "command": given("benchmarks.scale"),
            "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "floor": start(["-c", FLOORS[OURS]], Path(scratch)).peak_memory,
            "taken": taken,
        }
        for axis, much, case in steps(options.largest):
            print(f"{axis}: {much}", flush=True)
            with directory_for(case, Path(scratch)) as directory:
                items = Items(case, directory)
                began = time.monotonic()
                for number in range(1, ROUNDS + 1):
                    if number > 1 and time.monotonic() - began > PATIENCE:
                        break
                    load = round(os.getloadavg()[0], 2)
                    step = {"axis": axis, "much": much, "round": number, "load_before": load}
                    taken += [{**step, **each} for each in run_round(items, Path(scratch), case.peers)]
                    keep(results, SCALE, content)


if __name__ == "__main__":
    main()
