"""The right to talk to a host's machines, and how to get it."""

from __future__ import annotations

import os

__all__ = ["HYPERV_ADMINISTRATORS", "how_to_get_it"]

HYPERV_ADMINISTRATORS = "S-1-5-32-578"
"""The group's name in every language."""


def how_to_get_it() -> str:
    """Return what this user can do, with the command for an administrator's PowerShell."""
    user = "\\".join(filter(None, map(os.environ.get, ("USERDOMAIN", "USERNAME")))) or "USER"
    quoted = "'" + user.replace("'", "''") + "'"
    return (
        "run this as administrator, or become a member of the group Hyper-V Administrators and sign in again; an "
        f"administrator's PowerShell makes you one: Add-LocalGroupMember -SID {HYPERV_ADMINISTRATORS} -Member {quoted}"
    )
