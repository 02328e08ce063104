"""Services that depend on each other, with resources, workers, traffic and models."""

from __future__ import annotations

import bentoml


@bentoml.service(resources={"cpu": "2", "memory": "1Gi"}, workers=2)
class Embedder:
    files = bentoml.models.get("files:v1")

    @bentoml.api(batchable=True, max_batch_size=32)
    def embed(self, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]


@bentoml.service
class Splitter:
    files = bentoml.models.get("files:v1")

    @bentoml.api
    def split(self, text: str) -> list[str]:
        return text.split()


@bentoml.service(
    name="Front-Desk",
    resources={"gpu": 1, "gpu_type": "nvidia-l4"},
    traffic={"timeout": 30, "max_concurrency": 32},
    metrics={"enabled": True, "namespace": "desk"},
)
class Front:
    embedder = bentoml.depends(Embedder)
    splitter = bentoml.depends(Splitter)
    files = bentoml.models.get("files:v2")

    @bentoml.api
    def classify(self, text: str, top: int = 3) -> dict[str, float]:
        return {}
