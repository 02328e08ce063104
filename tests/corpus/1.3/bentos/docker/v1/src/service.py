"""A service on its own, built as before there were images."""

import bentoml


@bentoml.service
class Plain:
    @bentoml.api
    def double(self, number: int) -> int:
        return 2 * number
