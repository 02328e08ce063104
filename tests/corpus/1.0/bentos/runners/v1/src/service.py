"""A service with runners: of a framework, and of one's own with and without a model and resources."""

import bentoml
from bentoml.io import JSON, Text


class Upper(bentoml.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)
    SUPPORTS_CPU_MULTI_THREADING = True

    @bentoml.Runnable.method(batchable=False)
    def upper(self, text):
        return text.upper()


class Lower(Upper):
    @bentoml.Runnable.method(batchable=False)
    def lower(self, text):
        return text.lower()


pickled = bentoml.picklable_model.get("pickled:v1").to_runner()
upper = bentoml.Runner(Upper, name="upper", models=[bentoml.models.get("files:v1")])
lower = bentoml.Runner(Lower, name="lower", embedded=True)
svc = bentoml.Service("runners", runners=[pickled, upper, lower])


@svc.api(input=Text(), output=JSON())
async def shout(text):
    return await pickled.async_run(text)
