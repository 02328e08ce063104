"""Trace every request of a push with OpenTelemetry's instrumentation of aiohttp.

    pip install opentelemetry-sdk opentelemetry-instrumentation-aiohttp-client
    python examples/opentelemetry_spans.py iris_classifier:v3

Instrument aiohttp before the first call of async-bento, which opens the sessions. A presigned URL grants access to its
object, so pass a `url_filter` that removes the query. Otherwise the traces contain signatures.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from async_bento import AsyncBentoAPI

if TYPE_CHECKING:
    from yarl import URL


def without_query(url: URL) -> str:
    return str(url.with_query(None))


async def main(tag: str) -> None:
    provider = TracerProvider()
    provider.add_span_processor(
        SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.to_json(None) + "\n"))
    )
    trace.set_tracer_provider(provider)
    AioHttpClientInstrumentor().instrument(url_filter=without_query)
    with trace.get_tracer("examples").start_as_current_span("push"):
        async with AsyncBentoAPI(progress=False) as api:
            await api.push(tag)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
