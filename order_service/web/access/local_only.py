"""Which requests are ours while nobody is asked for a token.

A browser on this machine reaches what nobody else can, and a page of any site may have it send something. It says whose
page that is: `Origin` with all that changes something, `Sec-Fetch-Site` always. To a page whose name leads here all of
a sudden (DNS rebinding) we are its own site, but then `Host` is that name.
Source: Fetch standard, "Origin header"; W3C Fetch Metadata Request Headers, 2.3.
"""

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?", re.ASCII | re.IGNORECASE)
"""An address or a name, and a port. Source: RFC 9110, 7.2."""


def is_from_here(headers: Mapping[str, str]) -> bool:
    """Tell whether a request is for this machine, and no page of another site has sent it."""
    host, origin = headers.get("Host", ""), headers.get("Origin")
    match = HOST.fullmatch(host)
    is_for_us = match is not None and is_loopback(match[1] or match[2])
    is_same = origin is None or origin.lower().partition("://")[2] == host.lower()
    return is_for_us and is_same and headers.get("Sec-Fetch-Site") != "cross-site"


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Tell whether an address or name is one that only this machine has."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
