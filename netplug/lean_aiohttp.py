"""aiohttp without the host's certificate authorities, which it loads twice when it is imported.

Nothing here trusts them by aiohttp's own contexts: the store has a context of its own (`store.gateway`), and Docker is
asked by a Unix socket. A connection that took one of aiohttp's after all would trust nobody.
"""

import ssl
import sys

if "aiohttp" in sys.modules:
    import aiohttp
else:
    setattr(ssl.SSLContext, "set_default_verify_paths", lambda self: None)  # noqa: ARG005, B010
    try:
        import aiohttp
    finally:
        delattr(ssl.SSLContext, "set_default_verify_paths")  # its base class has it

__all__ = ["aiohttp"]
