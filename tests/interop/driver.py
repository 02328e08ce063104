"""The real bentoml, called from tests: `python driver.py <path of a socket>`.

Each connection to the socket is served by a fork of this process, since the import of bentoml takes a second. The fork
sends its process id, receives a line of JSON with the calls, the environment and the directory, and sends the results
as JSON. A failed call has the result `{"error": ...}`, which `Home.calls` raises and `Home.try_calls` returns.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import runpy
import signal
import socket
import sys
import tarfile
from pathlib import Path

import attrs
import bentoml
from bentoml._internal.bento import BentoStore
from bentoml._internal.cloud import bento as cloud_bento, client as cloud_client, model as cloud_model
from bentoml._internal.cloud.config import CloudClientConfig, CloudClientContext
from bentoml._internal.cloud.schemas import schemasv1
from bentoml._internal.cloud.schemas.utils import schema_to_object
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.utils.cattr import bentoml_cattr
from bentoml._internal.utils.filesystem import safe_extract_tarfile

CORPUS = Path(__file__).resolve().parents[1] / "corpus"


def cloud():
    return BentoMLContainer.bentocloud_client.get()


def see(homes, name):
    """Return the latest version and the file digests of each version, for the bento stores of several homes."""
    found = []
    for home in homes:
        store = BentoStore(Path(home, "bentos"))
        items = {bento.tag.version: Path(bento.path) for bento in store.list(name)}
        digests = {
            version: {
                path.relative_to(item).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in item.rglob("*")
                if path.is_file()
            }
            for version, item in items.items()
        }
        found.append({"latest": store.get(name).tag.version, "items": digests})
    return found


def set_part_size(size):
    """Upload in parts of `size` bytes; those of BentoML have 100 MiB, too much for a test."""
    cloud_bento.FILE_CHUNK_SIZE = cloud_model.FILE_CHUNK_SIZE = size


def know_the_hub():
    """Replace the requests to the Hub by the answers of the corpus."""
    from huggingface_hub import HfApi

    HfApi.model_info = runpy.run_path(str(CORPUS / "hub.py"))["model_info"]


def push(tag, **options):
    cloud().bento.push(bentoml.bentos.get(tag), **options)


def push_model(tag, **options):
    cloud().model.push(bentoml.models.BentoModel(tag), **options)


def pull(tag, **options):
    return str(cloud().bento.pull(tag, **options).tag)


def build(project, version):
    return str(bentoml.bentos.build_bentofile(build_ctx=project, version=version).tag)


def export(tag, into):
    bentoml.bentos.export_bento(tag, into, output_format="folder")


def import_bento(path):
    return str(bentoml.bentos.import_bento(path, input_format="folder").tag)


def loaded_models(path):
    """Return the paths at which the service of a bento in a directory finds its models."""
    instance = bentoml.load(path).inner()
    return {name: instance.__getattribute__(name).path for name in ("small", "large")}


def create_model(tag, files, **options):
    with bentoml.models.create(tag, **options) as model:
        for name, text in files.items():
            Path(model.path_of(name)).write_text(text)
    return str(model.tag)


def delete(tag):
    bentoml.bentos.delete(tag)


def delete_model(tag):
    bentoml.models.delete(tag)


def get(tag):
    bento = bentoml.bentos.get(tag)
    return {
        "tag": str(bento.tag),
        "path": bento.path,
        "labels": bento.info.labels,
        "creation_time": bento.creation_time.isoformat(),
        "models": [str(model.tag) for model in bento.info.all_models],
        "size_bytes": bento.total_size(),
    }


def get_model(tag):
    model = bentoml.models.get(tag)
    return {
        "tag": str(model.tag),
        "path": model.path,
        "labels": model.info.labels,
        "creation_time": model.creation_time.isoformat(),
        "metadata": model.info.metadata,
        "size_bytes": model.file_size,
    }


def info(tag):
    return bentoml.bentos.get(tag).info.to_dict()


def info_of_model(tag):
    return bentoml.models.get(tag).info.to_dict()


def list_all():
    return {
        "bentos": [str(bento.tag) for bento in bentoml.bentos.list()],
        "models": [str(model.tag) for model in bentoml.models.list()],
    }


def list_remote():
    return {
        "bentos": [schema_to_object(bento) for bento in cloud().bento.list().items],
        "models": [schema_to_object(model) for model in cloud().model.list().items],
    }


def get_remote(name, version=None):
    return schema_to_object(cloud().bento.get(name, version))


def get_remote_model(name, version=None):
    return schema_to_object(cloud().model.get(name, version))


def store_context(**context):
    CloudClientContext(**context).save()


def contexts():
    config = CloudClientConfig.get_config()
    return {"current": config.current_context_name, "contexts": bentoml_cattr.unstructure(config.contexts)}


def credentials():
    context = CloudClientConfig.get_config().get_context(BentoMLContainer.cloud_context.get())
    return [context.endpoint, context.api_token]


def extract(tar, into):
    with tarfile.open(tar) as opened:
        safe_extract_tarfile(opened, into)


def parameters():
    """Return the kind and default of each parameter of the APIs and their client; `…` for defaults other than JSON."""

    def of(call):
        found = {}
        for name, parameter in inspect.signature(call).parameters.items():
            default = "none" if parameter.default is parameter.empty else parameter.default
            plain = default is None or isinstance(default, (bool, int, str))
            found[name] = [parameter.kind.name, default if plain else "…"]
        found.pop("self", None)
        return found

    found = {"RestApiClient": of(cloud_client.RestApiClient)}
    for api in (cloud_bento.BentoAPI, cloud_model.ModelAPI):
        found[api.__name__] = of(api)
        for name, call in inspect.getmembers(api, inspect.isfunction):
            if not name.startswith("_"):
                found[f"{api.__name__}.{name}"] = of(call)
    return found


def fields(*, names):
    """Return the fields of schemas."""
    return {name: [field.name for field in attrs.fields(getattr(schemasv1, name))] for name in names}


def requests():
    """Return the requests of BentoML's client for version 1 of the API."""
    return [name for name in dir(cloud_client.RestApiClientV1) if not name.startswith("_")]


def run(name, arguments):
    try:
        return globals()[name](**arguments)
    except Exception as error:  # noqa: BLE001 - the test receives the error
        return {"error": f"{type(error).__name__}: {error}"}


def answer(connection):
    with connection, connection.makefile("rw", encoding="utf-8") as file:
        print(os.getpid(), file=file, flush=True)
        request = json.loads(file.readline())
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        results = [run(name, arguments) for name, arguments in request["calls"]]
        file.write(json.dumps(results, default=str))


def listen(path):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps the children
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)  # noqa: PTH104 - the path exists only once the socket listens
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                return answer(connection)
            connection.close()


if __name__ == "__main__":
    listen(sys.argv[1])
