"""The Host Compute Service, by its calling convention: what it says, and what it is given back."""

from __future__ import annotations

import ctypes
import sys

import pytest

from aiohvsock.hyperv import _hcs
from aiohvsock.hyperv._asking import NoAnswer

from .computecore import Computecore

ALL = ["create", "enumerate", "wait", "free", "close"]


@pytest.mark.parametrize("document", ["[]", "", '[{"Id":"vmlörd","Name":"😀"}]', "x" * 10**6])
def test_a_document(computecore: Computecore, document: str) -> None:
    computecore.document = document

    assert _hcs.enumerate_systems() == document

    assert computecore.calls == ALL
    assert computecore.leaked == 0
    # Not for good, in a thread that nobody can stop.
    assert computecore.waits == [60_000]


def test_no_document(computecore: Computecore) -> None:
    computecore.document = None

    assert _hcs.enumerate_systems() == ""

    assert computecore.calls == ALL


@pytest.mark.parametrize("step", ["started", "finished"])
def test_there_are_two_kinds_of_success(computecore: Computecore, step: str) -> None:
    setattr(computecore, step, 1)  # S_FALSE

    assert _hcs.enumerate_systems() == "[]"


@pytest.mark.parametrize("step", ["started", "finished"])
@pytest.mark.parametrize("document", [None, '{"Error": "why"}'])
@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (0x8037011B, "access is denied", "denied"),
        (0x80070005, "access is denied", "denied"),
        (0x80370114, "virtual machine platform is not installed", "absent"),
        (0x80370102, "virtual machine platform is not installed", "absent"),
        (0x80370118, "no answer within 60 s", None),
        (0x800706BA, "0x800706ba", None),
    ],
)
def test_a_failure(
    computecore: Computecore, step: str, document: str | None, code: int, text: str, kind: str | None
) -> None:
    setattr(computecore, step, code)
    computecore.document = document

    with pytest.raises(NoAnswer, match=text) as caught:
        _hcs.enumerate_systems()

    assert (caught.value.denied, caught.value.absent) == (kind == "denied", kind == "absent")
    assert computecore.calls == (ALL if step == "finished" else ["create", "enumerate", "close"])
    assert computecore.leaked == 0


def test_there_is_no_operation(computecore: Computecore) -> None:
    computecore.handle = 0

    with pytest.raises(NoAnswer, match="out of memory"):
        _hcs.enumerate_systems()

    assert computecore.calls == ["create"]


def test_a_system_without_it() -> None:
    # Wine has none either.
    with pytest.raises(NoAnswer) as caught:
        _hcs.library("computecore-that-is-not-there.dll")
    assert caught.value.absent


@pytest.mark.skipif(sys.platform != "win32", reason="needs a DLL: make test-windows runs it under Wine")
def test_what_frees_is_windows_own() -> None:
    kernel32, local_free = _hcs.library("kernel32.dll")
    kernel32.LocalAlloc.argtypes = [ctypes.c_uint, ctypes.c_size_t]
    kernel32.LocalAlloc.restype = ctypes.c_void_p

    assert local_free(kernel32.LocalAlloc(0, 100)) is None  # NULL is success
    assert local_free(None) is None
