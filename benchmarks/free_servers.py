"""nginx as a storage that costs next to nothing, and a registry that presigns URLs for it.

nginx reads the body of a PUT, discards it and responds with an ETag that is no MD5. It serves files by ranges. Its
directory and the bodies that it buffers should be in memory (/dev/shm).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection, create_server
from typing import TYPE_CHECKING

from benchmarks.servers import BUCKET, NoServerError, Site, running

if TYPE_CHECKING:
    from collections.abc import Iterator

REGISTRY = Path(__file__).with_name("free_registry.py")
TLS = Path(__file__).parent.parent / "tests" / "tls"
CERTIFICATE = TLS / "certificate.pem"
START_TIMEOUT = 10.0

CONFIGURATION = """
daemon off;
user root;
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format sizes '$request_method $status $content_length $request_length';
    access_log {log} sizes;
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    keepalive_requests 1000000;
    sendfile on;
    tcp_nopush on;
    map $args $multipart {{
        ~^uploads '<InitiateMultipartUploadResult><UploadId>upload</UploadId></InitiateMultipartUploadResult>';
        default '<CompleteMultipartUploadResult><ETag>"free-1"</ETag></CompleteMultipartUploadResult>';
    }}
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{https} ssl;
        ssl_certificate {tls}/certificate.pem;
        ssl_certificate_key {tls}/key.pem;
        root {files};
        location /{bucket}/ {{
            if ($request_method = PUT) {{ rewrite ^ /discard last; }}
            if ($request_method = POST) {{ rewrite ^ /multipart last; }}
        }}
        location = /discard {{
            internal;
            proxy_request_buffering on;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_pass http://unix:{directory}/discard.sock;
        }}
        location = /multipart {{
            internal;
            default_type application/xml;
            return 200 $multipart;
        }}
    }}
    server {{
        listen unix:{directory}/discard.sock;
        access_log off;
        add_header ETag '"free"';
        return 200;
    }}
}}
"""


class WrongUploadError(Exception):
    """The storage received fewer bytes than the item has, or refused a request."""


@dataclass(frozen=True)
class Received:
    """What the storage received in uploads: the bytes of requests, and the bytes that the clients announced."""

    total: int
    announced: int


class Storage:
    """A running nginx."""

    def __init__(self, directory: Path, http: int, https: int) -> None:
        self.files = directory / "files"
        self.urls = {False: f"http://127.0.0.1:{http}", True: f"https://127.0.0.1:{https}"}
        self._log = directory / "access.log"

    def path(self, key: str) -> Path:
        """Return the path of the file of a key, in an existing directory."""
        path = self.files / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def requests(self) -> int:
        """Return the length of the log of requests, from which `received` counts."""
        return self._log.stat().st_size

    def received(self, since: int, at_least: int) -> Received:
        """Count the uploads since a length of the log; raise WrongUploadError if they have too few bytes."""
        deadline = time.monotonic() + 2
        while True:  # nginx writes its log after its response
            found = count_uploads(self._log.read_text()[since:])
            if found.total >= at_least:
                return found
            if time.monotonic() > deadline:
                raise WrongUploadError(f"the storage received {found.total} bytes instead of {at_least}")
            time.sleep(0.05)


def count_uploads(log: str) -> Received:
    """Count the uploads in a log of requests; raise WrongUploadError if one of them was refused."""
    total = announced = 0
    for line in log.splitlines():
        method, status, length, request = line.split()
        if method == "PUT":
            if status != "200":
                raise WrongUploadError(f"the storage refused an upload: {status}")
            total += int(request)
            announced += int(length) if length != "-" else 0
    return Received(total, announced)


def nginx() -> str:
    """Return the path of nginx."""
    path = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        raise NoServerError("there is no nginx. Install it, on Debian by `apt-get install nginx`.")
    return path


def nginx_version() -> str:
    """Return the version of nginx."""
    shown = subprocess.run([nginx(), "-v"], capture_output=True, text=True, check=True).stderr
    return shown.strip().rpartition("/")[2]


def _free_port() -> int:
    with create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def storage(directory: Path) -> Iterator[Storage]:
    """Run nginx in a directory."""
    http, https = _free_port(), _free_port()
    here = Storage(directory, http, https)
    here.files.mkdir()
    configuration = directory / "nginx.conf"
    paths = {"directory": directory, "files": here.files, "log": directory / "access.log", "tls": TLS}
    configuration.write_text(CONFIGURATION.format(http=http, https=https, bucket=BUCKET, **paths))
    log = directory / "nginx.log"
    command = [nginx(), "-p", str(directory), "-c", str(configuration), "-e", str(log)]
    with subprocess.Popen(command) as process:
        try:
            _wait_for(process, http, log)
            yield here
        finally:
            process.terminate()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            create_connection(("127.0.0.1", port)).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoServerError(f"nginx: {log.read_text()[-2000:]}") from error
            time.sleep(0.05)
        else:
            return


@contextmanager
def free_site(directory: Path, *, tls: bool) -> Iterator[tuple[Site, Storage]]:
    """Run nginx and a registry that presigns URLs for it; `tls` is for the storage only."""
    with ExitStack() as stack:
        here = stack.enter_context(storage(directory))
        command = [sys.executable, str(REGISTRY), "--storage", f"{here.urls[tls]}/{BUCKET}"]
        command += ["--directory", str(directory)]
        endpoint, token = stack.enter_context(running(command, 2, directory / "registry.log"))
        yield Site(endpoint, token, here.urls[tls], None, CERTIFICATE if tls else None), here
