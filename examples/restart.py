"""A guest's agent that crashes once and is updated once, and its host: every command is run, and none twice.

The host numbers its commands, since one that was not answered may have been run or not. After each end it asks
again for all that were not answered; the agent knows what it has run, and only repeats the answer.
"""

from __future__ import annotations

import asyncio

import aiohvsock
from aiohvsock.testing import local_address

COMMANDS = [b"mount", b"resize", b"trim", b"sync", b"report", b"shutdown"]


class Agent:
    """The guest's side."""

    def __init__(self) -> None:
        self.answers: dict[int, bytes] = {}  # kept in a file, if the agent is to remember it
        self._ran = asyncio.Condition()

    async def serve(self, connection: aiohvsock.MessageConnection[bytes]) -> None:
        async for message in connection:
            number, command = message.split(b" ", 1)
            if int(number) not in self.answers:
                print(f"agent: running {command.decode()}")
                self.answers[int(number)] = b"done: " + command
                async with self._ran:
                    self._ran.notify_all()
                await asyncio.sleep(0.02)  # from here on it is run, and not answered
            await connection.send(number + b" " + self.answers[int(number)])

    async def has_run(self, count: int) -> None:
        async with self._ran:
            await self._ran.wait_for(lambda: len(self.answers) >= count)


async def host(address: aiohvsock.Address) -> None:
    """Send all commands, through whatever happens to the agent."""
    unanswered = dict(enumerate(COMMANDS))
    # A connect that is under way when a machine dies waits out its timeout: so that is short.
    async for connection in aiohvsock.connect(address, connect_timeout=2.0):
        try:
            await connection.send_many(b"%d %b" % command for command in unanswered.items())
            while unanswered:
                number, answer = (await connection.recv()).split(b" ", 1)
                del unanswered[int(number)]
                print(f"host: {answer.decode()}")
            break
        except aiohvsock.ConnectionClosedOK as end:
            print(f"host: {end.reason}, {len(unanswered)} commands are not answered")
        except aiohvsock.ConnectionLost as end:
            print(f"host: {end.__cause__}, {len(unanswered)} commands are not answered")


async def main() -> None:
    agent = Agent()
    with local_address() as address:  # between machines: "vsock://any:2761" there, "vsock://3:2761" here
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(host(address))
            async with await aiohvsock.serve(agent.serve, address) as server:
                await agent.has_run(2)
                server.abort_clients()  # a crash: nobody says goodbye
            async with await aiohvsock.serve(agent.serve, address):
                await agent.has_run(4)
                # An update: at the end of the block the peers are told that the service goes away.
            async with await aiohvsock.serve(agent.serve, address):
                await asking


if __name__ == "__main__":
    asyncio.run(main())
