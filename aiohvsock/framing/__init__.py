"""Codecs: how a byte stream is cut into frames. Sans-IO: bytes in, payloads out."""

from __future__ import annotations

from .base import Buffer, Codec, Decoder
from .length_prefixed import LengthPrefixed

__all__ = ["Buffer", "Codec", "Decoder", "LengthPrefixed"]
