"""A fixed answer of the Hub for every model: `HfApi.model_info` for builds and pushes of the corpus."""

from __future__ import annotations

COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"


def model_info(hub, repo_id, *, revision=None, **options):
    from huggingface_hub.hf_api import ModelInfo

    siblings = [{"rfilename": "config.json", "size": 1000}, {"rfilename": "weights.bin", "size": 20_000}]
    return ModelInfo(id=repo_id, sha=COMMIT, siblings=siblings)
