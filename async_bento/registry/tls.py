"""The certificate with which the registry serves https."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from async_bento._core.concurrency import run_in_new_thread
from async_bento.errors import ConfigError

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class TlsFiles:
    """The PEM files of a certificate and of its private key, which may be one file."""

    cert: Path
    key: Path

    @classmethod
    def of(cls, cert: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None) -> TlsFiles | None:
        """Return the files, or None without a certificate; raise `ConfigError` for a key only."""
        if cert is None:
            if key is not None:
                raise ConfigError("cannot serve https: there is a TLS key, but no certificate. Pass both.")
            return None
        return cls(Path(cert), Path(cert if key is None else key))

    async def load(self) -> ssl.SSLContext:
        """Read the files in a thread; raise `ConfigError` if they are unusable."""
        return await run_in_new_thread(self._load)

    def _load(self) -> ssl.SSLContext:
        for subject, path in (("certificate", self.cert), ("key", self.key)):
            try:
                text = path.read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"cannot read the TLS {subject} {path}: {error.strerror or error}. Check the path."
                ) from error
            if b"-----BEGIN " not in text:
                raise ConfigError(f"cannot use the TLS {subject} {path}: it is not a PEM file. Convert it to PEM.")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # Without a password, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
        except OSError as error:
            reason = getattr(error, "reason", None) or "they are not a certificate and its key"
            raise ConfigError(
                f"cannot use the TLS certificate {self.cert} with the key {self.key}: {reason}. "
                "Pass a certificate and its own key without a password."
            ) from error
        return context
