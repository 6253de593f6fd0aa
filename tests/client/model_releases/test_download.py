"""A repository behind a real HTTPS server: read in bounded bytes and bounded time, whatever the server does."""

import datetime
import http.server
import ipaddress
import os
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from triskele.errors import ConfigurationError, NotFound, TimedOut, Unavailable
from triskele.model_releases import DownloadLimits, verify_model

from .publisher import refused

IMPATIENT = DownloadLimits(connect_seconds=1, silence_seconds=1, seconds=1, bytes_per_second=1e6)


def write_server_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a web server")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    certificate, private = folder / "server.pem", folder / "server.key"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private


class WebServer:
    """Serves a folder; `misbehave`, if given, answers for the paths that end in `at` instead."""

    def __init__(self, folder: Path, tls: tuple[Path, Path] | None = None) -> None:
        self.folder = folder
        self.at: str | None = None
        self.misbehave = None
        self.over = threading.Event()
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args) -> None:
                super().__init__(*args, directory=str(outer.folder))

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                try:
                    if outer.at is not None and self.path.endswith(outer.at):
                        outer.misbehave(self)
                    else:
                        super().do_GET()
                except OSError:  # the client has gone, as it should
                    self.close_connection = True

            def log_message(self, *_) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.scheme = "https"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return write_server_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["https", "http"])
def web(request, publisher, tls):
    server = WebServer(publisher.place, tls if request.param == "https" else None)
    yield server
    server.close()


@pytest.fixture
def pull(web, device, tls):
    def pulled(address=None, limits=IMPATIENT):
        authority = tls[0] if web.scheme == "https" else None
        return device.pull(address or web.address, authority=authority, limits=limits)

    return pulled


def test_a_model_is_pulled_and_verified_over_the_network(web, pull, device, tls):
    assert pull(limits=DownloadLimits()).release.version == 2
    authority = tls[0] if web.scheme == "https" else None
    assert verify_model(device.output, device.trust, web.address + "/", authority=authority).release.version == 2
    web.close()
    assert verify_model(device.output, device.trust).release.version == 2
    with pytest.raises(Unavailable, match="cannot be reached"):
        pull()


def test_only_what_is_new_is_fetched_again(web, pull, publisher):
    pull(limits=DownloadLimits())
    web.asked.clear()
    publisher.publish(3, 5)
    pull(limits=DownloadLimits())
    assert not [path for path in web.asked if "versions/1" in path or "versions/2" in path]
    web.asked.clear()
    pull(limits=DownloadLimits())
    assert [path.rpartition("/")[2] for path in web.asked] == ["2.root.json", "timestamp.json"]


def test_an_address_below_a_path_is_kept(web, pull, publisher):
    web.folder = publisher.place.parent
    assert pull(f"{web.address}/repository", DownloadLimits()).release.version == 2


def test_a_redirection_is_followed_within_https(web, pull, publisher):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", "/metadata/./timestamp.json?moved")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.misbehave, web.at = elsewhere, "/metadata/timestamp.json"
    assert pull(limits=DownloadLimits()).release.version == 2


@pytest.mark.parametrize("target", ["http://models.example/timestamp.json", "file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_a_redirection_away_from_https_is_refused(web, pull, target):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.misbehave, web.at = elsewhere, "timestamp.json"
    with pytest.raises(Unavailable, match="redirects"):
        pull()


def test_a_redirection_without_end_is_refused(web, pull):
    def round_and_round(handler):
        handler.send_response(302)
        handler.send_header("Location", handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.misbehave, web.at = round_and_round, "timestamp.json"
    with pytest.raises(Unavailable, match="redirections"):
        pull()


def endless(handler):
    """As fast as it goes, without a length."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def endless_chunks(handler):
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"4000\r\n" + b" " * 0x4000 + b"\r\n")


@pytest.mark.parametrize("server", [endless, endless_chunks])
@pytest.mark.parametrize("at", ["timestamp.json", "4.snapshot.json", "round-1.proof.json", "model.npz"])
def test_an_answer_without_end_is_cut_off(web, pull, device, server, at):
    web.misbehave, web.at = server, at
    with refused("too_large"):
        pull(limits=DownloadLimits())
    assert not device.output.exists()


def test_a_server_that_says_nothing_is_given_up(web, pull):
    web.misbehave, web.at = lambda _: web.over.wait(60), "timestamp.json"
    with pytest.raises(TimedOut):
        pull()


def test_a_head_that_never_ends_is_given_up(web, pull):
    """A line of it now and then: no silence is long, no line is long."""

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not web.over.wait(0.1):
            handler.wfile.write(f"X-{os.urandom(4).hex()}: 1\r\n".encode())
            handler.wfile.flush()

    web.misbehave, web.at = drip, "timestamp.json"
    with pytest.raises(TimedOut, match="no answer"):
        pull()


def test_a_body_that_comes_in_drops_is_given_up(web, pull):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        while not web.over.wait(0.1):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    web.misbehave, web.at = drip, "timestamp.json"
    with pytest.raises(TimedOut, match="slower than"):
        pull()


def test_trailers_that_never_end_are_given_up(web, pull):
    def trailers(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"1\r\n \r\n0\r\n")
        while not web.over.wait(0.1):
            handler.wfile.write(b"X: 1\r\n")
            handler.wfile.flush()

    web.misbehave, web.at = trailers, "timestamp.json"
    with pytest.raises(TimedOut, match="slower than"):
        pull()


def test_an_answer_that_breaks_off_is_told_and_leaves_no_file(web, pull, device):
    def half(handler):
        content = Path(handler.translate_path(handler.path)).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.close_connection = True

    web.misbehave, web.at = half, "model.npz"
    with pytest.raises(Unavailable, match="broke off"):
        pull(limits=DownloadLimits())
    assert [path.name for path in device.folder.iterdir()] == ["trust"]


def test_a_compressed_answer_is_not_unpacked(web, pull):
    """What is counted is what came over the wire; nothing can swell."""

    def compressed(handler):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b\x08\x00")

    web.misbehave, web.at = compressed, "timestamp.json"
    with refused("malformed"):
        pull()


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (403, NotFound), (500, Unavailable), (206, Unavailable)])
def test_a_status_that_is_no_success_is_told(web, pull, status, kind):
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.misbehave, web.at = answer, "timestamp.json"
    with pytest.raises(kind, match=str(status)):
        pull()


@pytest.mark.parametrize(
    "address",
    [
        "http://models.example/",
        "http://10.0.0.1/",
        "ftp://127.0.0.1/",
        "file:///repository",
        "https:///nowhere",
        "https://[::1",
        "https://user:secret@127.0.0.1/",
        "https://models.example/?a=b",
        "https://models.example/#a",
    ],
)
def test_an_address_that_is_not_read_over_https_is_refused(device, address):
    with pytest.raises(ConfigurationError) as caught:
        device.pull(address)
    assert "secret" not in str(caught.value)


def test_a_server_whose_certificate_is_not_trusted_is_refused(publisher, device, tls):
    server = WebServer(publisher.place, tls)
    try:
        with pytest.raises(Unavailable, match="SSLError"):
            device.pull(server.address, limits=IMPATIENT)
    finally:
        server.close()


def test_an_authority_that_is_no_certificate_is_named(device, tmp_path):
    (tmp_path / "a.pem").write_text("no")
    for name in ("a.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match=name):
            device.pull("https://127.0.0.1:1", authority=tmp_path / name)


def test_a_folder_leads_nowhere_else(publisher, device, tmp_path):
    """A link in a mounted repository, to a file that is none of its business."""
    (tmp_path / "elsewhere").write_bytes(b"secret")
    (publisher.metadata / "timestamp.json").unlink()
    (publisher.metadata / "timestamp.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="not inside"):
        device.pull(publisher.place)
