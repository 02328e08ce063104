"""The models of the bentos in this directory."""

from pathlib import Path

import bentoml


def shout(text):
    return text.upper()


bentoml.picklable_model.save_model("pickled:v1", shout, signatures={"__call__": {"batchable": True}})
with bentoml.models.create(
    "files:v1",
    labels={"stage": "dev", "year": 2024, "ok": True, "none": None},
    metadata={"accuracy": 0.5, "shape": [1, 2], "nested": {"deep": True}, 3: "three", "note": "☃"},
) as model:
    Path(model.path_of("weights.bin")).write_bytes(bytes(100))
with bentoml.models.create("files:v2") as model:
    Path(model.path_of("weights.bin")).write_bytes(bytes(200))
