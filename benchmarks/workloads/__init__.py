"""The two ends of each workload.

==================================  ========================================================================
`raw`                               bytes, by transports and by streams
`speakers`                          messages: what is done with them, and by which of the modules below
`buffered` `streams` `native`       over a BufferedProtocol, over streams, with `aiohvsock.connect` and `serve`
`websockets` `grpc`                 peers
`ends` `links`                      what these have in common
==================================  ========================================================================
"""

from __future__ import annotations

from . import raw
from .ends import Run
from .speakers import speaker

__all__ = ["connect", "serve"]


async def serve(workload: str, library: str, api: str, path: str) -> None:
    """Be the server, until standard input ends."""
    if workload == "raw":
        await raw.serve(library, api, path)
    elif workload in ("pipelined", "large"):
        await speaker(library, api).serve_count(path)
    else:
        await speaker(library, api).serve_echo(path)


async def connect(workload: str, library: str, api: str, path: str, size: int) -> Run:
    """Be the client: connect, and return what does the workload's step."""
    if workload == "raw":
        return await raw.connect(library, api, path, size)
    if workload == "pingpong":
        return await speaker(library, api).pinger(path, size)
    return await speaker(library, api).sender(path, size)
