"""The models of the bentos in this directory."""

from pathlib import Path

import bentoml
from bentoml.models import ModelContext


def shout(text):
    return text.upper()


bentoml.picklable_model.save_model(
    "pickled:v1",
    shout,
    signatures={"__call__": {"batchable": True, "batch_dim": 0}},
    labels={"stage": "dev", "team": "nlp"},
    metadata={"accuracy": 0.5, "shape": [1, 2], "nested": {"deep": True}, "note": "☃"},
    custom_objects={"words": ["a", "b"]},
)
with bentoml.models.create(
    "files:v1",
    module="",
    signatures={},
    context=ModelContext(framework_name="", framework_versions={}),
) as model:
    Path(model.path_of("weights.bin")).write_bytes(bytes(100))
