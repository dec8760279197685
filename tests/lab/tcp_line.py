"""`python tcp_line.py HOST PORT TO_HOST TO_PORT`: carries TCP from one address to another until it is killed.

The lab's registry speaks plain HTTP, and edgefleet speaks that to a loopback address alone: so pods get a line from their own loopback to
it. The file is given to a pod's Python as text, so it imports nothing of ours.
"""

import asyncio
import contextlib
import sys


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything from one end to the other, then close it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(host: str, port: str, to_host: str, to_port: str) -> None:
    """Listen and carry."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(to_host, int(to_port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    async with await asyncio.start_server(connect, host, int(port)) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
