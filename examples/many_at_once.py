"""Push every bento of the store concurrently, with one budget of connections and memory.

    python examples/many_at_once.py

All calls of one API share its budget, so forty pushes open no more connections than one. A small bento does not wait
for a large one, and a failed push does not stop the others.
"""

import asyncio
import sys

from async_bento import AsyncBentoAPI, Bento, BentoStore, Config, PushResult, Transfer

BUDGET = Config(transfer=Transfer(concurrency=16))


async def main(bentos: list[Bento]) -> int:
    async with AsyncBentoAPI(config=BUDGET, progress=False) as api:
        results = await asyncio.gather(*(api.push(bento) for bento in bentos), return_exceptions=True)
    failed = 0
    for bento, result in zip(bentos, results, strict=True):
        if isinstance(result, PushResult):
            print(f"{bento.tag}: {'already pushed' if result.skipped else f'{result.bytes_sent:,} bytes'}")
        else:
            failed += 1
            print(f"{bento.tag}: {result}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(list(BentoStore().list()))))
