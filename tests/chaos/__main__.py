"""`python -m tests.chaos --seed 7 --cases 1000`: pushes, pulls and copies under faults, with verified outcomes.

The seed and the number of a case determine its faults and the requests that meet them: `--only 123` replays a case.
The interleaving with the threads of a client and with the clock varies from run to run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.case import KINDS, draw, draw_copies
from tests.chaos.disk import NAMESPACE, can_mount
from tests.chaos.items import Counts
from tests.chaos.processes import Zygote
from tests.chaos.round import Round

if TYPE_CHECKING:
    from collections.abc import Sequence

WAYS = ("push", "pull", "copy")
OUTCOMES = ("done", "error", "killed", "interrupted")
FAULTS = {
    "push": ("silent proxy", "client forked", "registry killed"),
    "copy": ("client killed", "client terminated", "source killed", "target killed"),
}
DISKS = {"push": "registry's disk full", "pull": "client's disk full", "copy": "target's disk full"}
OTHERS = {
    "push": ("expired URLs",),
    "copy": ("item pushed again during a copy", "item pushed again between copies"),
}


def main() -> int:
    """Run the cases that the arguments select."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--cases", type=int, default=1000, help="number of cases: a push, a pull and maybe a copy, under faults"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run only this case, and print all of its events")
    parser.add_argument("--lanes", type=int, default=4, help="number of concurrent cases")
    parser.add_argument("--copies", action="store_true", help="push and pull without faults; copy in each case")
    parser.add_argument("--own-disks", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.own_disks and can_mount():
        command = [*NAMESPACE, sys.executable, "-m", "tests.chaos", *sys.argv[1:], "--own-disks"]
        os.execvp(command[0], command)
    return asyncio.run(run(arguments))


async def run(arguments: argparse.Namespace) -> int:
    """Run cases concurrently and return the exit code."""
    counts, failed = Counts(), []
    make, ways = (draw_copies, ("copy",)) if arguments.copies else (draw, WAYS)
    only = arguments.only
    numbers = [only] if only is not None else range(arguments.first, arguments.first + arguments.cases)
    left = iter(numbers)
    began = time.monotonic()

    async def lane(work: Path, zygote: Zygote) -> None:
        for number in left:
            one = Round(make(arguments.seed, number), zygote, work / str(number), counts, arguments.own_disks)
            try:
                await one.play()
            except Exception as error:  # noqa: BLE001 - the other cases continue
                one.complaints.append(f"the case raised {error!r}")
            if one.complaints:
                failed.append(number)
            if one.complaints or only is not None:
                options = f"--seed {arguments.seed} --only {number}{' --copies' if arguments.copies else ''}"
                print(f"case {number}: python -m tests.chaos {options}")
                print("\n".join([f"  {one.case}", *(f"  {line}" for line in one.story)]))
                print("\n".join(f"  COMPLAINT: {complaint}" for complaint in one.complaints), flush=True)

    with tempfile.TemporaryDirectory(prefix="chaos-") as work:
        async with Zygote() as zygote:
            await asyncio.gather(*(lane(Path(work), zygote) for _ in range(arguments.lanes)))
    print(report(counts, ways, f"Seed {arguments.seed}, {len(numbers)} cases, {time.monotonic() - began:.0f} s."))
    if not arguments.own_disks:
        print("No disk was filled: this process may not mount disks of a fixed size.")
    print(f"{len(failed)} of {len(numbers)} cases failed: {failed}" if failed else f"All {len(numbers)} cases passed.")
    missing = (
        [] if only is not None or len(numbers) < 200 else not_happened(counts, ways, own_disks=arguments.own_disks)
    )
    if missing:
        print(f"The run is too quiet: these events never happened: {missing}")
    if only is None and (not counts.faults or not any(counts.calls)):
        print("The run is too quiet: no fault and no call happened.")
        return 1
    return 1 if failed or missing else 0


def not_happened(counts: Counts, ways: Sequence[str] = WAYS, *, own_disks: bool) -> list[str]:
    """Return the events that a long run must contain and this run does not."""
    faults = [*KINDS, *(fault for way in ways for fault in FAULTS.get(way, ()))]
    disks = [DISKS[way] for way in ways] if own_disks else []
    outcomes = [f"{way} {outcome}" for way in ways for outcome in OUTCOMES]
    others = ["retries", *(f"{way}: resumed" for way in ways)]
    others += [other for way in ways for other in OTHERS.get(way, ())]
    return [
        *(fault for fault in (*faults, *disks) if not counts.faults[fault]),
        *(outcome for outcome in outcomes if not counts.calls[outcome]),
        *(other for other in others if not counts.others[other]),
    ]


def report(counts: Counts, ways: Sequence[str], title: str) -> str:
    """Return the counts as Markdown tables."""
    lines = [title, "", f"| | calls | {' | '.join(OUTCOMES)} |"]
    lines.append(f"| --- | ---: |{' ---: |' * len(OUTCOMES)}")
    for way in ways:
        figures = [counts.calls[f"{way} {outcome}"] for outcome in OUTCOMES]
        calls = sum(count for key, count in counts.calls.items() if key.startswith(way))
        lines.append(f"| {way} | {calls} | {' | '.join(map(str, figures))} |")
    for name, counter in (("error", counts.errors), ("fault", counts.faults), ("other", counts.others)):
        lines += ["", f"| {name} | times |", "| --- | ---: |"]
        lines += [f"| {key} | {count} |" for key, count in sorted(counter.items(), key=lambda pair: -pair[1])]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
