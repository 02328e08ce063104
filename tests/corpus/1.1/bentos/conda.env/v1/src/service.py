"""A service without runners, with models by name and an alias."""

import bentoml
from bentoml.io import Text

svc = bentoml.Service("conda", models=[bentoml.models.get("files:v1")])


@svc.api(input=Text(), output=Text())
def echo(text):
    return text
