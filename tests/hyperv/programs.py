"""Programs that stand in for wsl.exe, powershell.exe and wslinfo: real processes, of which each test writes the script."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

_PREAMBLE = """
import os, sys  # no more: this is started some hundred times

with open({calls!r}, "a", encoding="utf-8") as file:
    file.write(repr(sys.argv[1:]) + "\\n")


def say(text, encoding="utf-8", to=sys.stdout):
    to.buffer.write(text.encode(encoding))
    to.flush()


def hang():
    # Until it is killed, which the other side sees.
    import socket

    sock = socket.create_connection(("127.0.0.1", int(os.environ["HANGING_PORT"])))
    sock.sendall(b"!")
    sock.recv(1)


"""


class Programs:
    """A folder of programs, alone on the PATH."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, script: str) -> str:
        """Write a program in Python and return its path. ``say()``, ``hang()``, os and sys are there."""
        source = self._folder / f"{name}.py"
        source.write_text(_PREAMBLE.format(calls=str(self._calls(name))) + script, "utf-8")
        if sys.platform == "win32":
            path = self._folder / f"{name}.cmd"
            path.write_text(f'@"{sys.executable}" -I -S "{source}" %*\r\n', "utf-8")
        else:
            path = self._folder / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{source}" "$@"\n', "utf-8")
            path.chmod(0o755)
        return str(path)

    def answer(self, name: str, answers: Mapping[str, str]) -> None:
        """Write a program that prints one of several texts, by its first arguments; it starts in half the time."""
        calls = self._calls(name)
        if sys.platform == "win32":
            script = f'@echo off\r\n>>"{calls}" echo %*\r\n'
            for number, (arguments, text) in enumerate(answers.items()):
                output = self._folder / f"{name}.{number}"
                output.write_bytes(text.encode())
                given = "%~1 %~2" if " " in arguments else "%~1"
                script += f'if "{given}"=="{arguments}" type "{output}" & exit /b 0\r\n'
            (self._folder / f"{name}.cmd").write_text(script + "exit /b 1\r\n", "utf-8")
        else:
            script = f'#!/bin/sh\necho "$@" >>{shlex.quote(str(calls))}\n'
            for arguments, text in answers.items():
                given = "$1 $2" if " " in arguments else "$1"
                script += f'[ "{given}" = "{arguments}" ] && printf %s {shlex.quote(text)} && exit 0\n'
            path = self._folder / name
            path.write_text(script + "exit 1\n", "utf-8")
            path.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """Return the arguments of each time the program was started, in an order that means nothing."""
        try:
            lines = self._calls(name).read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        return sorted(ast.literal_eval(line) if line[:1] == "[" else line.split() for line in lines)

    def _calls(self, name: str) -> Path:
        return self._folder / f"{name}.calls"


class Hanging:
    """The processes that hang."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Condition()
        self._connections: set[asyncio.StreamWriter] = set()

    def end(self) -> None:
        """End those that still hang, when a test has failed."""
        for writer in self._connections:
            writer.transport.abort()

    async def reach(self, count: int) -> None:
        """Wait until so many hang; 0 is when all are gone."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.count == count)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            if not await reader.read(1):
                return
            await self._add(1)
            with contextlib.suppress(ConnectionError):  # as Windows ends the connections of what is killed
                await reader.read()
            await self._add(-1)
        finally:
            self._connections.remove(writer)
            writer.close()

    async def _add(self, number: int) -> None:
        async with self._changed:
            self.count += number
            self._changed.notify_all()


@contextlib.asynccontextmanager
async def hanging() -> AsyncIterator[tuple[Hanging, int]]:
    """Give what counts the processes that hang, and the port they tell it by."""
    found = Hanging()
    server = await asyncio.start_server(found._follow, "127.0.0.1", 0)
    async with server:
        try:
            yield found, server.sockets[0].getsockname()[1]
        finally:
            found.end()  # a server that is closed waits for them
