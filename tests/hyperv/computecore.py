"""A computecore.dll of C functions that are written in Python: what calls them crosses the real calling convention."""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any

if sys.platform == "win32":
    from ctypes import WINFUNCTYPE as FUNCTION
else:
    from ctypes import CFUNCTYPE as FUNCTION

_HRESULT = ctypes.c_int32
_POINTER = ctypes.c_void_p
# A handle of 64 bits is cut off by who declares none.
_HANDLE = 0x7FFF_1234_5678_9ABC


class Computecore:
    """Answers one document, as the Host Compute Service would."""

    def __init__(self, document: str | None = "[]") -> None:
        self.document = document
        self.started = 0
        """The HRESULT of starting the operation, as winerror.h has it."""
        self.finished = 0
        """That of its end."""
        self.handle = _HANDLE
        """What creating an operation returns."""
        self.go = threading.Event()
        """An answer waits for it."""
        self.go.set()
        self.waiting = threading.Event()
        """Somebody waits for an answer."""
        self.calls: list[str] = []
        self.waits: list[int] = []
        self._memory: dict[int, Any] = {}
        # They hold on to what Python calls for as long as they live themselves.
        self.HcsCreateOperation = FUNCTION(_POINTER, _POINTER, _POINTER)(self._create)
        self.HcsEnumerateComputeSystems = FUNCTION(_HRESULT, ctypes.c_wchar_p, _POINTER)(self._enumerate)
        self.HcsWaitForOperationResult = FUNCTION(
            _HRESULT, _POINTER, ctypes.c_uint32, ctypes.POINTER(_POINTER)
        )(self._wait)
        self.HcsCloseOperation = FUNCTION(None, _POINTER)(self._close)

    def _create(self, context: int | None, callback: int | None) -> int:
        assert context is callback is None
        self.calls.append("create")
        return self.handle

    def _enumerate(self, query: str | None, operation: int | None) -> int:
        assert (query, operation) == (None, self.handle)
        self.calls.append("enumerate")
        return ctypes.c_int32(self.started).value

    def _wait(self, operation: int | None, milliseconds: int, document: Any) -> int:
        assert operation == self.handle
        self.calls.append("wait")
        self.waits.append(milliseconds)
        self.waiting.set()
        self.go.wait()
        if self.document is not None:
            buffer = ctypes.create_unicode_buffer(self.document)
            address = ctypes.addressof(buffer)
            self._memory[address] = buffer
            document[0] = address
        return ctypes.c_int32(self.finished).value

    def _close(self, operation: int | None) -> None:
        assert operation == self.handle
        self.calls.append("close")

    def local_free(self, address: int | None) -> None:
        """Free a document; NULL is no document."""
        self.calls.append("free")
        if address is not None:
            del self._memory[address]

    @property
    def leaked(self) -> int:
        """How many documents are not freed."""
        return len(self._memory)
