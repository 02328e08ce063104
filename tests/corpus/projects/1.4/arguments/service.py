"""A service that is built with arguments."""

import bentoml

arguments = bentoml.use_arguments()


@bentoml.service(name=f"sized_{arguments.size}", workers=int(arguments.size))
class Sized:
    files = bentoml.models.BentoModel("files:v1")

    @bentoml.api
    def double(self, number: int) -> int:
        return 2 * number
