from __future__ import annotations

from typing import Any

import pytest

from aiohvsock import Address, connect, serve
from aiohvsock.framing import LengthPrefixed
from aiohvsock.messages.settings import Settings
from aiohvsock.protocol import BareProtocol, NativeProtocol

from .peers import Handler

TIMES = ["open_timeout", "close_timeout", "heartbeat", "heartbeat_timeout"]


def clock() -> float:
    return 0.0


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("seconds", [0, 0.0, -1, float("nan"), float("inf"), "5"])
async def test_times_are_positive(address: Address, name: str, seconds: Any) -> None:
    options: Any = {name: seconds}
    with pytest.raises(ValueError, match=f"{name} must be a positive number of seconds, or None, not"):
        connect(address, **options)
    with pytest.raises(ValueError, match=f"{name} must be a positive number of seconds, or None, not"):
        await serve(Handler(), address, **options)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("seconds", [None, 0.001, 5, 1e9])
def test_times_that_make_sense(name: str, seconds: float | None) -> None:
    options: Any = {name: seconds}
    assert getattr(Settings(**options), name) == seconds
    connect("vsock+unix:///nowhere.sock:1", **options)


@pytest.mark.parametrize("size", [-1, 2**32, 2**40, 1.5, "10"])
async def test_a_limit_that_makes_no_sense(address: Address, size: Any) -> None:
    with pytest.raises(ValueError, match="max_size must be"):
        connect(address, max_size=size)
    with pytest.raises(ValueError, match="max_size must be"):
        await serve(Handler(), address, max_size=size)


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**32 - 1])
def test_limits_that_make_sense(size: int) -> None:
    assert isinstance(Settings(max_size=size).protocol(clock), NativeProtocol)


async def test_both_a_limit_and_a_codec_are_too_much(address: Address) -> None:
    options: Any = {"codec": LengthPrefixed(), "max_size": 10}
    with pytest.raises(ValueError, match="give it to the codec"):
        connect(address, **options)
    with pytest.raises(ValueError, match="give it to the codec"):
        await serve(Handler(), address, **options)


@pytest.mark.parametrize("name", ["heartbeat", "heartbeat_timeout"])
async def test_a_heartbeat_and_a_codec_are_too_much(address: Address, name: str) -> None:
    options: Any = {"codec": LengthPrefixed(), name: 5.0}
    with pytest.raises(ValueError, match="a codec has none"):
        connect(address, **options)
    with pytest.raises(ValueError, match="a codec has none"):
        await serve(Handler(), address, **options)


async def test_a_codec_is_no_class(address: Address) -> None:
    options: Any = {"codec": LengthPrefixed}
    with pytest.raises(TypeError, match="not the class LengthPrefixed"):
        connect(address, **options)
    with pytest.raises(TypeError, match="not the class LengthPrefixed"):
        await serve(Handler(), address, **options)


def test_a_codec_makes_a_bare_protocol() -> None:
    assert isinstance(Settings(codec=LengthPrefixed()).protocol(clock), BareProtocol)


def test_what_the_defaults_are() -> None:
    settings: Settings[bytes] = Settings()
    assert settings.max_size == 2**20
    assert [getattr(settings, name) for name in TIMES] == [10.0, 10.0, 20.0, 20.0]
