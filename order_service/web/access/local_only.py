"""Checks requests while authentication is off: only this machine or a known name, and no pages of unknown sites.

A browser on this machine reaches the loopback interface, and a page of any site can make it send requests. The browser
reveals the page's site: `Origin` with every unsafe method, `Sec-Fetch-Site` always. If the site's own name suddenly
resolves to this machine (DNS rebinding), the browser sees the same site, but `Host` holds that name.
Source: Fetch standard, "Origin header"; W3C Fetch Metadata Request Headers, 2.3.
"""

import ipaddress
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final

HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?", re.ASCII | re.IGNORECASE)
"""A `Host` header: an address or a name, and an optional port. Source: RFC 9110, 7.2."""


def is_from_here(headers: Mapping[str, str], hosts: Collection[str] = (), origins: Collection[str] = ()) -> bool:
    """Return whether a request is for this machine and was not sent by a page of another site.

    `hosts` are further names of this server, `origins` those of sites whose pages may send requests; in lower case.
    """
    host, origin = headers.get("Host", "").lower(), headers.get("Origin", "").lower()
    match = HOST.fullmatch(host)
    if match is None or not (is_loopback(match[1] or match[2]) or match[2] in hosts):
        return False
    if origin in origins:
        return True
    is_same = "Origin" not in headers or origin.partition("://")[2] == host
    return is_same and headers.get("Sec-Fetch-Site") != "cross-site"


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Return whether an address or a name is a loopback one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
