"""Certificates of the cluster's own authority: made, judged and renewed.

An authority and a server's certificate are Secrets, whose values the engine fills in (`generate`).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
RENEWED_AFTER_DAYS = 90
"""A run makes a new certificate then. An alert tells of one that is renewed by no run, 30 days before its end."""

CLOCKS = datetime.timedelta(hours=1)
"""By how much a certificate is valid before it is made: clocks of a cluster differ."""

COMMON_NAME_LIMIT = 64
"""Characters, of RFC 5280's ub-common-name."""


def authority(name: str) -> dict[str, str]:
    """A new authority, as the keys of its Secret: `ca.crt` and `ca.key`, in PEM."""
    # Most runs make none, and the import costs them.
    from cryptography import x509

    key, subject = _new_key(), _name(name)
    builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    usage |= {"key_cert_sign": True, "crl_sign": True, "encipher_only": False, "decipher_only": False}
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    return {"ca.crt": _sign(builder, key, key), "ca.key": _private(key)}


def certificate(names: list[str], signed_by: Mapping[str, str] | None = None) -> dict[str, str]:
    """A new certificate of a server: `tls.crt` and `tls.key` of a Secret of type TLS, and `ca.crt`.

    :param names: DNS names, the first of them the common name.
    :param signed_by: the keys of its authority's Secret; without one it is signed by itself, and has no `ca.crt`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key, subject = _new_key(), _name(names[0])
    issuer, issuer_key = subject, key
    if signed_by:
        issuer = x509.load_pem_x509_certificate(signed_by["ca.crt"].encode()).subject
        issuer_key = serialization.load_pem_private_key(signed_by["ca.key"].encode(), None)
    builder = _builder(issuer, subject, key.public_key(), SERVER_DAYS if signed_by else AUTHORITY_DAYS)
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = builder.add_extension(alternatives, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = {"tls.crt": _sign(builder, key, issuer_key), "tls.key": _private(key)}
    return made | ({"ca.crt": signed_by["ca.crt"]} if signed_by else {})


def why_renewed(data: Mapping[str, str], names: Iterable[str], ca: str) -> str | None:
    """Why a server's certificate is to be made anew, or None where it is as wanted.

    :param data: the keys of its Secret, in PEM.
    :param names: the DNS names that it is to have.
    :param ca: its authority's certificate, in PEM.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    if data.get("ca.crt") != ca:
        return "its authority is another one"
    try:
        held = x509.load_pem_x509_certificate(data["tls.crt"].encode())
        held.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.encode()))
        if serialization.load_pem_private_key(data["tls.key"].encode(), None).public_key() != held.public_key():
            return "its key is another one's"
        alternatives = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception as error:  # whatever is wrong with it, a new one mends it
        return f"it cannot be used: {type(error).__name__}"
    if set(alternatives.get_values_for_type(x509.DNSName)) != set(names):
        return "its names have changed"
    if datetime.datetime.now(datetime.UTC) > made_at(held) + datetime.timedelta(days=RENEWED_AFTER_DAYS):
        return f"it is {RENEWED_AFTER_DAYS} days old"
    return None


def made_at(held: x509.Certificate) -> datetime.datetime:
    """When a certificate of this module was made."""
    return held.not_valid_before_utc + CLOCKS


def time_made(pem: str) -> str:
    """When a certificate of this module was made, as Kubernetes writes times.

    :param pem: the certificate.
    """
    from cryptography import x509

    return made_at(x509.load_pem_x509_certificate(pem.encode())).strftime("%Y-%m-%dT%H:%M:%SZ")


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text[:COMMON_NAME_LIMIT])])


def _builder(
    issuer: x509.Name, subject: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _sign(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    if issuer_key is not key:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _private(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    private, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, private, plain).decode()
