"""Services that depend on each other and on what runs elsewhere, with models of the Hub."""

from __future__ import annotations

import bentoml


@bentoml.service(resources={"cpu": "2"}, workers="cpu_count")
class Embedder:
    bert = bentoml.models.HuggingFaceModel("google-bert/bert-base-uncased")
    files = bentoml.models.BentoModel("files:v1")

    @bentoml.api(batchable=True)
    def embed(self, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]


@bentoml.service(
    resources={"gpu": 1, "gpu_type": "nvidia-l4"},
    traffic={"timeout": 30, "concurrency": 32, "external_queue": True},
    workers=1,
    envs=[{"name": "FROM_SERVICE", "value": "1"}],
)
class Front:
    embedder = bentoml.depends(Embedder)
    by_url = bentoml.depends(url="http://elsewhere:3000")
    by_deployment = bentoml.depends(deployment="d-1", cluster="c-1")
    files = bentoml.models.BentoModel("files:latest")

    @bentoml.task
    def classify(self, text: str) -> dict[str, float]:
        return {}
