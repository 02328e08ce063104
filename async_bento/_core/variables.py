"""The environment variables that async-bento reads, except those of the settings; docs/hooks.py lists them."""

from __future__ import annotations

PREFIX = "ASYNC_BENTO_"
"""The prefix of the variables that no other program reads."""

REGISTRY = {
    "BENTO_CLOUD_API_ENDPOINT": "URL of the registry. BentoML reads it, too.",
    "BENTO_CLOUD_API_KEY": "API token. BentoML reads it, too.",
    "ASYNC_BENTO_ENDPOINT": "URL of the registry; takes precedence over `BENTO_CLOUD_API_ENDPOINT`.",
    "ASYNC_BENTO_API_TOKEN": "API token; takes precedence over `BENTO_CLOUD_API_KEY`.",
    "BENTOML_CLOUD_CONTEXT": "Context to use instead of the current one. BentoML reads it, too.",
    "BENTOML_HOME": "Directory of the local stores and of the contexts; by default `~/bentoml`. BentoML reads it, too.",
}

BEHAVIOUR = {
    "ASYNC_BENTO_PROGRESS": "Progress of the command: `auto`, `bars`, `lines`, `json` or `none`, like `--progress`.",
    "ASYNC_BENTO_ACCELERATE": "`0` disables `async_bento.integrations.bentoml.accelerate`.",
}

SERVER = {
    "ASYNC_BENTO_REGISTRY_DATABASE": "URL of the PostgreSQL database, for `registry serve` and the other commands of "
    "`registry`, like `--database`.",
    "ASYNC_BENTO_REGISTRY_PUBLIC_URL": "URL at which clients reach `registry serve`, like `--public-url`.",
    "ASYNC_BENTO_REGISTRY_TOKEN_FILE": "File with the first token of `registry serve`, like `--token-file`.",
    "ASYNC_BENTO_REGISTRY_FORWARDED_ALLOW_IPS": "Proxies that `registry serve` trusts, like `--forwarded-allow-ips`.",
    "ASYNC_BENTO_REGISTRY_UPSTREAM": "URL of the registry that `registry serve` mirrors, like `--upstream`.",
    "ASYNC_BENTO_REGISTRY_UPSTREAM_TOKEN_FILE": "File with the token for it, like `--upstream-token-file`.",
}
"""Those of the registry that `async-bento registry` runs."""

HUGGING_FACE = {
    "HF_TOKEN": "Token of the Hugging Face Hub. It is sent to huggingface.co and to `HF_ENDPOINT` only.",
    "HF_ENDPOINT": "URL of a mirror of the Hugging Face Hub.",
    "BENTOML_HF_CACHE_DIR": "Directory for models of the Hub, instead of the Hugging Face cache.",
    "HF_HUB_OFFLINE": "`1` uses models of the Hub from the cache only.",
}
"""huggingface_hub reads these and others, such as `HF_HOME`."""

NETWORK = {
    "HTTPS_PROXY": "Proxy for https URLs. The names of proxy variables may be in small letters.",
    "HTTP_PROXY": "Proxy for http URLs.",
    "ALL_PROXY": "Proxy for URLs without a variable of their own.",
    "NO_PROXY": "Hosts to connect to directly, with commas between them.",
    "SSL_CERT_FILE": "File of the certificates to trust.",
}

OTHERS = tuple(name.removeprefix(PREFIX) for name in (*REGISTRY, *BEHAVIOUR, *SERVER) if name.startswith(PREFIX))
"""The variables of this package that are no settings, without the prefix."""
