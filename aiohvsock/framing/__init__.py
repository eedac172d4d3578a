"""Codecs: how a byte stream is cut into frames. Sans-IO: bytes in, payloads out.

Of plain bytes: :class:`LengthPrefixed`, :class:`Varint`, :class:`DecimalPrefixed`, :class:`Delimited`,
:data:`NITRO`, :data:`NITRO_COMMAND_EXECUTER`. With more in their headers: :data:`TTRPC`, :data:`GCS`,
:data:`WSL`. Another one is anything with the methods of :class:`Codec` and :class:`Decoder`.
"""

from __future__ import annotations

from .base import DEFAULT_MAX_SIZE, Buffer, Codec, Decoder, InPlaceDecoder
from .decimal_prefixed import DecimalPrefixed
from .delimited import Delimited
from .gcs import GCS, GCSCodec, GCSFrame
from .length_prefixed import LengthPrefixed
from .nitro import NITRO, NITRO_COMMAND_EXECUTER
from .ttrpc import TTRPC, OversizedFrame, TTRPCCodec, TTRPCFlag, TTRPCFrame, TTRPCType
from .varint import Varint
from .wsl import WSL, WSLCodec, WSLFrame

__all__ = [
    "DEFAULT_MAX_SIZE",
    "GCS",
    "NITRO",
    "NITRO_COMMAND_EXECUTER",
    "TTRPC",
    "WSL",
    "Buffer",
    "Codec",
    "DecimalPrefixed",
    "Decoder",
    "Delimited",
    "GCSCodec",
    "GCSFrame",
    "InPlaceDecoder",
    "LengthPrefixed",
    "OversizedFrame",
    "TTRPCCodec",
    "TTRPCFlag",
    "TTRPCFrame",
    "TTRPCType",
    "Varint",
    "WSLCodec",
    "WSLFrame",
]
