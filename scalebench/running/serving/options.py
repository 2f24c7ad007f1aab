"""Where and how a model is served, checked before anything heavy is imported."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from scalebench.errors import InputError

LIBRARIES = ("fastapi", "uvicorn")
KEY_BYTES = 10_000  # of the file of a key


@dataclass(frozen=True)
class Options:
    """The options of ``scalebench serve``. ``port`` 0 is any free one; ``max_tokens`` None leaves it to the context."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 8
    max_tokens: int | None = None
    api_key_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def check(self) -> None:
        """Raise ``InputError`` where a library is missing, or with a line for each invalid option."""
        if missing := [name for name in LIBRARIES if find_spec(name) is None]:
            line = f"{' and '.join(missing)} not installed; install the extra with pip install '.[serve]'"
            raise InputError(f"scalebench serve: {line}")
        wrong = {
            f"--port: must be 0 (any free one) to 65535, given {self.port}": not 0 <= self.port <= 65535,
            f"--max-batch: must be at least 1, given {self.max_batch}": self.max_batch < 1,
            f"--max-tokens: must be at least 1, given {self.max_tokens}": self.max_tokens is not None
            and self.max_tokens < 1,
            "--tls-key: --tls-certificate is missing": self.tls_key is not None and self.tls_certificate is None,
        }
        if any(wrong.values()):
            raise InputError([line for line, is_wrong in wrong.items() if is_wrong])
        self.check_certificate()

    def check_certificate(self) -> None:
        """Raise ``InputError`` for a certificate or key that cannot be used; neither may need a password."""
        if self.tls_certificate is None:
            return
        for option, path in (("--tls-certificate", self.tls_certificate), ("--tls-key", self.tls_key)):
            if path is not None and not path.is_file():
                raise InputError(f"{option}: {path} is no file")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.tls_certificate, self.tls_key, password=lambda: "")
        except OSError as error:  # ssl.SSLError is one
            line = "is no PEM certificate with its key, without a password"
            raise InputError(f"--tls-certificate: {self.tls_certificate} {line} ({error.strerror or error})") from error

    def api_key(self) -> str | None:
        """Return the key that clients must have, None for none. Raises ``InputError`` for a file without one."""
        if (path := self.api_key_file) is None:
            return None
        try:
            with path.open("rb") as file:
                words = file.read(KEY_BYTES + 1)[:KEY_BYTES].decode().split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file: {path} cannot be read ({error})") from error
        if len(words) != 1 or not words[0].isascii():
            raise InputError(f"--api-key-file: {path} must hold one key, of ASCII characters without spaces")
        return words[0]

    def warnings(self) -> list[str]:
        """Return what is unsafe about the options."""
        lines = []
        if self.api_key_file is not None and self.api_key_file.stat().st_mode & 0o077:
            lines.append(f"--api-key-file: others can read {self.api_key_file}; chmod 600 makes it yours alone")
        if not is_loopback(self.host) and self.api_key_file is None:
            line = "whoever reaches this machine can use the model; --api-key-file asks for a key"
            lines.append(f"--host: {self.host} is open to the network, and {line}")
        elif not is_loopback(self.host) and self.tls_certificate is None:
            lines.append(f"--host: {self.host} without --tls-certificate: the key travels unencrypted")
        return lines


def is_loopback(host: str) -> bool:
    """Return whether a host is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
