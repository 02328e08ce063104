"""A service on its own, in a conda environment."""

import bentoml


@bentoml.service
class Plain:
    @bentoml.api
    def double(self, number: int) -> int:
        return 2 * number
