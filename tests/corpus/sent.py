"""Print the request bodies of BentoML 1.4.39 for all items of `$BENTOML_HOME`; run by `generate.py` and by tests.

The bodies are built as in `bentoml/_internal/cloud/bento.py` and `cloud/model.py`.
"""

from __future__ import annotations

import json

import bentoml
from bentoml._internal.cloud.schemas.schemasv1 import CreateBentoSchema, LabelItemSchema
from bentoml._internal.cloud.schemas.utils import schema_to_object
from bentoml.models import BentoModel


def of_bento(bento):
    return {
        "body": schema_to_object(
            CreateBentoSchema(
                description=bento.doc,
                version=bento.tag.version,
                build_at=bento.info.creation_time,
                manifest=bento.get_manifest(dev=False),
                labels=[LabelItemSchema(key=key, value=value) for key, value in bento.info.labels.items()],
            )
        ),
        "models": [
            {"tag": str(model.tag), "registry": model.registry, "alias": model.alias, "metadata": model.metadata}
            for model in bento.info.all_models
        ],
    }


def of_model(model):
    return {"body": schema_to_object(BentoModel(model.tag).to_create_schema())}


if __name__ == "__main__":
    sent = {
        "bentos": {str(bento.tag): of_bento(bento) for bento in bentoml.bentos.list()},
        "models": {str(model.tag): of_model(model) for model in bentoml.models.list()},
    }
    print(json.dumps(sent, indent=1, allow_nan=False))  # noqa: T201
