"""The items of the benchmarks: random bytes, generated once per case and verified after each transfer."""

from __future__ import annotations

import hashlib
import os
import tarfile
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from tests.builders import make_bento, make_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases import Case

MiB = 1024 * 1024
FILES_A_DIRECTORY = 500
SOURCE = {"README.md": b"Random.\n"}
SERVICE = {"src/service.py": b"pass\n"}


class WrongBytesError(Exception):
    """The received bytes differ from the sent bytes."""


class Items:
    """The item of a case in any number of versions with the same bytes."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.case = case
        self.kind = "bentos" if case.models else "models"
        self.name = "svc" if case.models else "weights"
        self.models = [f"m{number}" for number in range(case.models)] or [self.name]
        self._directory = directory
        self._digests = {model: dict(self._fill(directory / model)) for model in self.models}

    def _fill(self, directory: Path) -> Iterator[tuple[str, str]]:
        for number in range(self.case.files):
            name = f"data/{number // FILES_A_DIRECTORY:03}/{number:06}.bin"
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with path.open("wb") as file:
                left = self.case.size
                while left:
                    piece = os.urandom(min(left, MiB))
                    digest.update(piece)
                    left -= file.write(piece)
            yield name, digest.hexdigest()

    @property
    def total(self) -> int:
        """The bytes of all files."""
        return self.case.size * self.case.files * len(self.models)

    def lay_out(self, home: Path, version: str) -> None:
        """Add a version to the store in `$BENTOML_HOME`, with hard links, which take no time and no disk space."""
        if self.case.models:
            make_bento(home, f"{self.name}:{version}", SERVICE, models=[f"{name}:{version}" for name in self.models])
        for model in self.models:
            target = make_model(home, f"{model}:{version}", SOURCE, options={})
            for name in self._digests[model]:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self._directory / model / name, target / name)

    @cached_property
    def tar(self) -> Path:
        """A tar of the files, for the tools that copy a tar."""
        path = self._directory / "bare.tar"
        with tarfile.open(path, "w:") as tar:
            tar.add(self._directory / self.models[0] / "data", "data")
        return path

    def prefixes(self, version: str) -> list[tuple[str, str]]:
        """Return each model of a version and the prefix of its tar in the bucket."""
        return [(model, f"blobs/models/{model}/{version}/") for model in self.models]

    def check_tar(self, file: IO[bytes], model: str | None = None) -> None:
        """Raise WrongBytesError unless a tar holds the files of a model; the only model by default."""
        found: dict[str, str] = {}
        with tarfile.open(fileobj=file, mode="r|", bufsize=4 * MiB) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    found[member.name.removeprefix("./")] = _digest(content)
        self._compare(found, model or self.models[0])

    def check_store(self, home: Path, version: str) -> None:
        """Raise WrongBytesError unless the store in `$BENTOML_HOME` holds all files of a version."""
        if self.case.models and not (home / "bentos" / self.name / version / "src" / "service.py").is_file():
            raise WrongBytesError(f"there is no {self.name}:{version} in {home}")
        for model in self.models:
            directory = home / "models" / model / version
            found: dict[str, str] = {}
            for path in directory.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        found[path.relative_to(directory).as_posix()] = _digest(file)
            self._compare(found, model)

    def _compare(self, found: dict[str, str], model: str) -> None:
        data = {name: digest for name, digest in found.items() if name.startswith("data/")}
        if data != self._digests[model]:
            raise WrongBytesError(f"{model}: {len(data)} files have come, and {len(self._digests[model])} were sent")


def _digest(file: IO[Any]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(MiB):
        digest.update(piece)
    return digest.hexdigest()
