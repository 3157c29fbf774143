"""base64url without padding (RFC 4648, section 5), as a browser's script makes it of text."""

import base64
import binascii


def decoded(coded: bytes) -> bytes:
    """The bytes; b"" for what is none, or was coded in another way than the one."""
    try:
        found = base64.b64decode(coded + b"=" * (-len(coded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
    return found if base64.urlsafe_b64encode(found).rstrip(b"=") == coded else b""
