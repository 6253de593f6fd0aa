"""Where a repository is read from: https, a folder, or what a device has seen last. Bounded in bytes and in time."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from triskele.errors import ConfigurationError

METADATA, TARGETS = "metadata/", "targets/"
_PIECE: Final = 1 << 16
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_HTTP_OK: Final = 200
_NOT_FOUND: Final = 404


@dataclass(frozen=True)
class DownloadLimits:
    """How long a source may take and how much it may send. A file of n bytes has `seconds` + n / `bytes_per_second`."""

    connect_seconds: float = 10.0
    silence_seconds: float = 30.0  # between two pieces
    seconds: float = 60.0  # for an answer to begin, and for small files
    bytes_per_second: float = 10_000.0  # slower than that is given up
    redirects: int = 5
    model_bytes: int = 16 << 30  # of a model's file
    evidence_bytes: int = 8 << 20  # of a certificate, of a proof


DEFAULT_DOWNLOAD_LIMITS: Final = DownloadLimits()


def source(place: str, *, authority: Path | None = None, limits: DownloadLimits) -> FetcherInterface:
    """The source at an https:// address or in a folder. Raises ConfigurationError for anything else.

    authority: a PEM file with the certificates to trust instead of the system's.
    """
    if "://" in place:
        return _HttpSource(place, authority=authority, limits=limits)
    folder = Path(place)
    if not (folder / METADATA).is_dir():
        raise ConfigurationError(f"{place}: no repository of models: there is no folder {METADATA} in it")
    return _FolderSource(folder)


class _Source(FetcherInterface):
    """Closes what it has opened, also where a download is broken off."""

    def __init__(self) -> None:
        self._opened = ExitStack()

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class has it."""
        with self._opened, super().download_file(url, max_length) as file:
            yield file

    def _closed_later(self, pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
        self._opened.callback(pieces.close)
        return pieces


class _FolderSource(_Source):
    """A repository in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder.joinpath(*url.split("/"))
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise DownloadError(f"{url} is not inside the repository")
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise DownloadHTTPError(f"there is no {url}", _NOT_FOUND) from None
        return self._closed_later(_pieces(file))


class LastSeen(_Source):
    """The metadata that a device has accepted before, and nothing that is newer."""

    def __init__(self, metadata: Path) -> None:
        super().__init__()
        self._metadata = metadata

    def _fetch(self, url: str) -> Iterator[bytes]:
        role = url.removeprefix(METADATA).removesuffix(".json").rpartition(".")[2]
        kept = self._metadata / f"{role}.json"
        if role not in ("timestamp", "snapshot", "targets") or not kept.exists():
            raise DownloadHTTPError(f"{url} was not brought here by an earlier pull", _NOT_FOUND)
        return self._closed_later(_pieces(kept.open("rb")))


class _HttpSource(_Source):
    """A repository behind https, or behind http on this machine. Redirections lead to such addresses only."""

    def __init__(self, address: str, *, authority: Path | None, limits: DownloadLimits) -> None:
        super().__init__()
        parts = _checked(address)
        if parts.query or parts.fragment:
            raise ConfigurationError(f"{address}: the address of a repository has no ? and no #")
        self._base = address if address.endswith("/") else f"{address}/"
        self._limits = limits
        self._seconds = limits.seconds
        self._pools = _pools(parts, authority, limits)

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class has it, with a time that is as bounded as the length."""
        self._seconds = self._limits.seconds + max_length / self._limits.bytes_per_second
        with super().download_file(url, max_length) as file:
            yield file

    def _fetch(self, url: str) -> Iterator[bytes]:
        address = urljoin(self._base, url)
        for _ in range(self._limits.redirects + 1):
            response = self._get(address)
            if response.status not in _REDIRECTS or "location" not in response.headers:
                break
            response.close()
            address = urljoin(address, response.headers["location"])
            try:
                _checked(address)
            except ConfigurationError as error:
                raise DownloadError(f"redirects to where models are not read from: {error}") from error
        else:
            raise DownloadError(f"more than {self._limits.redirects} redirections")
        if response.status != _HTTP_OK:
            response.close()
            raise DownloadHTTPError(f"answers {url} with HTTP {response.status}", response.status)
        return self._closed_later(self._body(response))

    def _get(self, address: str) -> urllib3.BaseHTTPResponse:
        try:
            return self._pools.request("GET", address, redirect=False, preload_content=False, decode_content=False)
        except urllib3.exceptions.MaxRetryError as error:
            late = isinstance(error.reason, urllib3.exceptions.TimeoutError)
            if late and not isinstance(error.reason, urllib3.exceptions.NewConnectionError):
                raise SlowRetrievalError("no answer in time") from error
            raise DownloadError(f"cannot be reached ({type(error.reason).__name__})") from error
        except HTTPError as error:
            raise DownloadError(f"does not answer in HTTP, or was cut off ({type(error).__name__})") from error

    def _body(self, response: urllib3.BaseHTTPResponse) -> Generator[bytes, None, None]:
        with _cut_off(self._seconds, lambda: _shut(response)) as late:
            try:
                yield from response.stream(_PIECE, decode_content=False)
            except urllib3.exceptions.TimeoutError as error:
                raise SlowRetrievalError("it fell silent") from error
            except HTTPError as error:
                if not late.is_set():
                    raise DownloadError(f"the answer broke off ({type(error).__name__})") from error
            finally:
                response.close()
        if late.is_set():  # cut off, which may look like the end of the file
            raise SlowRetrievalError(f"slower than {self._limits.bytes_per_second:.0f} bytes a second")


def _checked(address: str) -> SplitResult:
    """Raise ConfigurationError unless this is https, or http on this machine, and carries no password."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError as error:
        raise ConfigurationError(f"{address!r} is no address") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("the address of a repository carries no user and no password")
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _local(host))):
        raise ConfigurationError(f"{address}: models are read over https, or from a folder; http only on localhost")
    return parts


def _local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pools(parts: SplitResult, authority: Path | None, limits: DownloadLimits) -> urllib3.PoolManager:
    if authority is None:
        context = ssl.create_default_context()
    else:
        try:
            context = ssl.create_default_context(cafile=str(authority))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{authority}: is no PEM file of certificates ({error.strerror})") from error
    options: dict[str, Any] = {
        "headers": {"User-Agent": "triskele", "Accept-Encoding": "identity"},
        "timeout": urllib3.Timeout(connect=limits.connect_seconds, read=limits.silence_seconds),
        "retries": urllib3.Retry(total=2, read=0, other=0, status=0, redirect=0, backoff_factor=0.2),
        "ssl_context": context,
    }
    proxy = urllib.request.getproxies().get(parts.scheme)
    host = parts.hostname or ""
    if proxy is None or _local(host) or urllib.request.proxy_bypass(host):
        pools = urllib3.PoolManager(**options)
    else:
        pools = urllib3.ProxyManager(proxy, **options)
    pools.pool_classes_by_scheme = _pool_classes(limits.seconds)
    return pools


def _pool_classes(seconds: float) -> dict[str, type[HTTPConnectionPool]]:
    """Connections on which the head of an answer is cut off after a while: a drop now and then is no answer either."""

    class Plain(HTTPConnection):
        def getresponse(self) -> Any:
            return _prompt(super().getresponse, self, seconds)

    class Secure(HTTPSConnection):
        def getresponse(self) -> Any:
            return _prompt(super().getresponse, self, seconds)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _prompt(getresponse: Callable[[], Any], connection: HTTPConnection, seconds: float) -> Any:
    response = None
    with _cut_off(seconds, lambda: _shut_socket(connection.sock)) as late:
        try:
            response = getresponse()
        except (OSError, HTTPException):
            if not late.is_set():
                raise
    if late.is_set():
        if response is not None:  # a head that was cut off looks like one that has ended
            response.close()
        raise SlowRetrievalError("no answer in time")
    return response


@contextmanager
def _cut_off(seconds: float, cut: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `cut` if what is inside takes longer; the event says that it was called."""
    late = threading.Event()

    def run() -> None:
        late.set()
        cut()

    timer = threading.Timer(seconds, run)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _shut(response: urllib3.BaseHTTPResponse) -> None:
    try:
        response.shutdown()
    except (OSError, RuntimeError, ValueError):  # it has ended by itself in the meantime
        return


def _shut_socket(connection: socket.socket | None) -> None:
    if connection is not None:
        try:
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        except OSError:  # closed in the meantime
            return


def _pieces(file: IO[bytes]) -> Generator[bytes, None, None]:
    with file:
        while piece := file.read(_PIECE):
            yield piece
