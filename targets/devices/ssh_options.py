"""Options of OpenSSH's client that a device profile may set.

None of them runs a program or writes a file on this machine.
"""

from __future__ import annotations

import re

#: Options of the connection and of trust, whose values are plain words.
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
#: Options with a single safe value: the others write to known_hosts, or accept an unknown key.
_FIXED = {
    "stricthostkeychecking": ("StrictHostKeyChecking", "yes"),
    "updatehostkeys": ("UpdateHostKeys", "no"),
}
_KNOWN = {name.lower() for name in _FREE}
_OPTION = re.compile(r"(?:-o\s*)?([A-Za-z0-9]+)(?:\s*=\s*|\s+)(\S.*)")
#: No characters that a shell interprets: commands of the user's ssh config may contain user and
#: host, as %r and %h.
_WORDS = re.compile(r"[A-Za-z0-9_.,:+%@~^*/ -]+")


def known_option(text: str) -> str:
    """Return the option; ValueError, with the way out, unless it is one of these."""
    match = _OPTION.fullmatch(text)
    if match is None:
        raise ValueError("an option of ssh is written Name=value")
    name, value = match[1].lower(), match[2]
    if name in _FIXED and value.lower() != _FIXED[name][1]:
        allowed = "=".join(_FIXED[name])
        raise ValueError(
            f"a profile may only set {allowed}; anything else belongs in your ssh config"
        )
    if name not in _KNOWN and name not in _FIXED:
        allowed = ", ".join((*_FREE, *(name for name, _ in _FIXED.values())))
        raise ValueError(
            f"a profile cannot set {match[1]}, which may run programs or write files here: put it"
            f" in your ssh config; allowed are {allowed}"
        )
    if not _WORDS.fullmatch(value):
        raise ValueError(
            "its value has characters that a shell may interpret; put it in your ssh config"
        )
    return text
