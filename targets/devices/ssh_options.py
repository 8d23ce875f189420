"""Options of OpenSSH's client that a device profile may hold: none of them runs a program or writes a file on this machine."""

from __future__ import annotations

import re

#: Options that say how to connect and whom to trust, with values that are words.
_FREE = (
    "AddressFamily",
    "BindAddress",
    "BindInterface",
    "CASignatureAlgorithms",
    "CheckHostIP",
    "Ciphers",
    "Compression",
    "ConnectTimeout",
    "ConnectionAttempts",
    "FingerprintHash",
    "GSSAPIAuthentication",
    "GlobalKnownHostsFile",
    "HostKeyAlgorithms",
    "HostKeyAlias",
    "HostName",
    "HostbasedAuthentication",
    "IPQoS",
    "IdentitiesOnly",
    "IdentityFile",
    "KbdInteractiveAuthentication",
    "KexAlgorithms",
    "LogLevel",
    "MACs",
    "NumberOfPasswordPrompts",
    "PasswordAuthentication",
    "Port",
    "PreferredAuthentications",
    "PubkeyAcceptedAlgorithms",
    "PubkeyAuthentication",
    "RekeyLimit",
    "RequiredRSASize",
    "ServerAliveCountMax",
    "ServerAliveInterval",
    "TCPKeepAlive",
    "User",
)
#: Options of which one value alone is safe: others write to known_hosts, or take a key that nobody
#: has seen.
_FIXED = {
    "stricthostkeychecking": ("StrictHostKeyChecking", "yes"),
    "updatehostkeys": ("UpdateHostKeys", "no"),
}
_KNOWN = {name.lower() for name in _FREE}
_OPTION = re.compile(r"(?:-o\s*)?([A-Za-z0-9]+)(?:\s*=\s*|\s+)(\S.*)")
#: No characters of a shell: user and host come into commands of the user's ssh config, as %r and
#: %h.
_WORDS = re.compile(r"[A-Za-z0-9_.,:+%@~^*/ -]+")


def known_option(text: str) -> str:
    """The option; ValueError, with the way out, for one that is none of these."""
    found = _OPTION.fullmatch(text)
    if found is None:
        raise ValueError("an option of ssh is written Name=value")
    name, value = found[1].lower(), found[2]
    if name in _FIXED and value.lower() != _FIXED[name][1]:
        allowed = "=".join(_FIXED[name])
        raise ValueError(
            f"a profile may say {allowed} alone; anything else belongs into your ssh config"
        )
    if name not in _KNOWN and name not in _FIXED:
        allowed = ", ".join((*_FREE, *(name for name, _ in _FIXED.values())))
        raise ValueError(
            f"a profile cannot set {found[1]}, for it may run programs or write files here: put it"
            f" into your ssh config; allowed are {allowed}"
        )
    if not _WORDS.fullmatch(value):
        raise ValueError(
            "its value holds characters that a shell may take for its own; put it into your ssh"
            " config"
        )
    return text
