"""participant.toml and its files: what cannot be used is named, by file and by key; keys are never quoted."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from triskele.config import ParticipantConfig
from triskele.credentials import Credentials
from triskele.errors import ConfigurationError

from .certificates import cert_pem, key_pem, write_participant


@pytest.fixture
def config(tmp_path, authority):
    return write_participant(tmp_path / "alice", authority, "alice", "127.0.0.1:7000")


def load(config) -> Credentials:
    return Credentials.load(ParticipantConfig.load(config))


def rewrite(config, old, new):
    text = config.read_text(encoding="utf-8")
    assert old in text
    config.write_text(text.replace(old, new), encoding="utf-8")


def test_provisioned_participant_is_read(config):
    loaded = ParticipantConfig.load(str(config))
    assert loaded.identity.uri == "spiffe://demo/participant/alice"
    assert loaded.coordinator == "127.0.0.1:7000"
    assert loaded.tls.key == config.parent / "tls.key"
    assert load(config).signing_certificate.public_key() == load(config).signing_key.public_key()


def test_absolute_paths_are_kept(config, tmp_path):
    elsewhere = tmp_path / "elsewhere.crt"
    rewrite(config, '"ca.crt"', f'"{elsewhere.as_posix()}"')
    assert ParticipantConfig.load(config).tls.authority == elsewhere


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('federation = "demo"\n', "", "federation: Field required"),
        ('federation = "demo"', 'federation = "Demo!"', "federation: "),
        ('participant = "alice"', "participant = 7", "participant: "),
        ("127.0.0.1:7000", "127.0.0.1", "coordinator: .*host:port"),
        ("127.0.0.1:7000", "127.0.0.1:99999", "coordinator: .*host:port"),
        ('[tls]\nauthority = "ca.crt"\n', "[tls]\n", r"tls\.authority: Field required"),
        ("[signing]", "surprise = 1\n[signing]", r"tls\.surprise: "),
        ('key = "tls.key"', 'key = ["tls.key"]', r"tls\.key: "),
        ("[tls]", "[tls", "is not TOML"),
        ("[tls]", f"long = {'9' * 5000}\n[tls]", "is not TOML"),  # more digits than Python turns into a number
        ("[tls]", f"deep = {'[' * 5000}\n[tls]", "is not TOML"),  # deeper than Python's stack
    ],
    ids=lambda value: value[:40],
)
def test_wrong_setting_is_named(config, old, new, named):
    rewrite(config, old, new)
    with pytest.raises(ConfigurationError, match=rf"participant\.toml: {named}"):
        ParticipantConfig.load(config)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere.*cannot be read"):
        ParticipantConfig.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("ca.crt", "tls.authority"),
        ("tls.crt", "tls.certificate"),
        ("tls.key", "tls.key"),
        ("signing.crt", "signing.certificate"),
        ("signing.key", "signing.key"),
    ],
)
def test_missing_key_or_certificate_is_named(config, file, setting):
    (config.parent / file).unlink()
    with pytest.raises(ConfigurationError) as caught:
        load(config)
    assert str(caught.value).startswith(f"{setting} (")
    assert file in str(caught.value)


@pytest.mark.parametrize("file", ["ca.crt", "tls.crt", "signing.crt", "signing.key"])
def test_damaged_file_is_named_and_not_quoted(config, file):
    (config.parent / file).write_text("-----BEGIN PRIVATE KEY-----\nMY SECRET\n")
    with pytest.raises(ConfigurationError, match=file) as caught:
        load(config)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None or "SECRET" not in str(caught.value.__cause__)


def test_key_pasted_into_the_configuration_is_not_quoted(config):
    rewrite(config, 'key = "tls.key"', 'key = ["MY SECRET"]')
    with pytest.raises(ConfigurationError) as caught:
        ParticipantConfig.load(config)
    assert "SECRET" not in str(caught.value)


def test_signing_key_of_another_certificate_is_refused(config):
    (config.parent / "signing.key").write_bytes(key_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigurationError, match="does not belong"):
        load(config)


def test_signing_key_of_another_kind_is_refused(config):
    (config.parent / "signing.key").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ConfigurationError, match="Ed25519"):
        load(config)


@pytest.mark.parametrize("file", ["tls.crt", "signing.crt"])
def test_certificate_of_somebody_else_is_refused(config, authority, file):
    bob = authority.issue(authority.identity("participant", "bob"), Ed25519PrivateKey.generate().public_key())
    (config.parent / file).write_bytes(cert_pem(bob))
    with pytest.raises(ConfigurationError, match="speaks for spiffe://demo/participant/bob"):
        load(config)


def test_credentials_are_not_printed(config):
    assert repr(load(config)) == "Credentials()"
