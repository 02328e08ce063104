"""Services with an image, that depend on each other and on what runs elsewhere, with models of the Hub."""

from __future__ import annotations

import bentoml

image = (
    bentoml.images.Image(python_version="3.11", lock_python_packages=False)
    .system_packages("git", "curl")
    .run("echo before")
    .build_include("setup.sh")
    .python_packages("numpy", "pandas>=2")
    .run("echo after")
    .run_script("setup.sh")
)


@bentoml.service(resources={"cpu": "2"}, workers=2)
class Embedder:
    bert = bentoml.models.HuggingFaceModel(
        "google-bert/bert-base-uncased", revision="v1.0", include=["*.json"], exclude=["*.bin"]
    )
    files = bentoml.models.BentoModel("files:v2")

    @bentoml.api(batchable=True)
    def embed(self, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]


@bentoml.service(
    name="Front-Desk",
    image=image,
    resources={"gpu": 1, "gpu_type": "nvidia-l4"},
    traffic={"timeout": 30, "concurrency": 32},
    envs=[{"name": "FROM_SERVICE", "value": "1"}, {"name": "AT_BUILD", "value": "2", "stage": "build"}],
    labels={"team": "desk", "owner": "service"},
)
class Front:
    embedder = bentoml.depends(Embedder)
    by_url = bentoml.depends(url="http://elsewhere:3000")
    by_deployment = bentoml.depends(deployment="d-1", cluster="c-1")
    bert = bentoml.models.HuggingFaceModel("google-bert/bert-base-uncased")

    @bentoml.api
    def classify(self, text: str) -> dict[str, float]:
        return {}
