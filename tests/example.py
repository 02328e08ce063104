"""The example of BentoML's `BentoAPI`, and its versions with changed imports and with `await`."""

from __future__ import annotations

import re
from textwrap import indent

EXAMPLE = """\
from bentoml._internal.cloud.bento import BentoAPI
from bentoml._internal.cloud.client import RestApiClient

# Create API instance
rest_client = RestApiClient(endpoint="https://cloud.bentoml.com", api_token="xxx")
bento_api = BentoAPI(client=rest_client)

# Push a bento
bento = bentoml.get("my_service:latest")
bento_api.push(bento, force=True, threads=10)

# Pull a bento
pulled = bento_api.pull("my_service:v1", with_models=True)

# List remote bentos
bentos = bento_api.list()

# Get specific bento info
info = bento_api.get("my_service", "v1")
"""

CLOSE = """
await bento_api.aclose()
await rest_client.aclose()
"""

BENTOML = "import bentoml"
WITHOUT_BENTOML = "from async_bento import BentoStore\nbentoml = BentoStore()"


def blocking(bentoml: str, *, before_the_pull: str = "", after: str = "") -> str:
    """Return the example as a script that takes the endpoint and the token as arguments.

    `bentoml` is the statement that defines the name `bentoml`, which the example does not import. The other arguments
    are statements to insert.
    """
    text = re.sub(r"^from bentoml\..* import", "from async_bento import", EXAMPLE, flags=re.MULTILINE)
    text = text.replace('"https://cloud.bentoml.com"', "sys.argv[1]").replace('"xxx"', "sys.argv[2]")
    text = text.replace("# Pull a bento\n", before_the_pull + "# Pull a bento\n")
    return f"import sys\n{bentoml}\n{text}{after}"


def asynchronous(bentoml: str, *, before_the_pull: str = "", after: str = "") -> str:
    """Return the same script with `AsyncBentoAPI`, awaited and closed on its event loop."""
    text = blocking(bentoml, before_the_pull=before_the_pull, after=after)
    text = re.sub(r"\bBentoAPI\b", "AsyncBentoAPI", text)
    text = re.sub(r"\bbento_api\.", "await bento_api.", text) + CLOSE
    return f"import asyncio\n\nasync def main():\n{indent(text, '    ')}\nasyncio.run(main())\n"
