"""What the sample programs for AWS Nitro Enclaves speak."""

from __future__ import annotations

from .length_prefixed import LengthPrefixed

__all__ = ["NITRO", "NITRO_COMMAND_EXECUTER"]

NITRO = LengthPrefixed(width=8, byteorder="little")
"""64 bits of length, little-endian. The limit of 1 MiB is ours; the samples have none.

Source: vsock_sample/rs/src/protocol_helpers.rs of aws-nitro-enclaves-samples.
"""

NITRO_COMMAND_EXECUTER = NITRO.replace(pad=1)
"""64 bits of length, little-endian, and a byte of zero: its buffer is one byte too long. The limit is ours.

Source: samples/command_executer/src/protocol_helpers.rs of aws-nitro-enclaves-cli.
"""
