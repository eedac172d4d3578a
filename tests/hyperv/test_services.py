"""The registry of services: the real one under Wine, read and written besides by Windows' own reg.exe."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiohvsock import HvAddressError, HvPermissionError, HvUnsupportedError, HypervAddress, service_id
from aiohvsock.hyperv import (
    Service,
    find_service,
    list_services,
    register_service,
    unregister_service,
)
from aiohvsock.platforms import registry

from .reg import add, before_calls, delete, deny, paste, query

A, B, C = (uuid.UUID(f"{letter * 8}-1111-2222-3333-444455556666") for letter in "abc")
PODMAN = "0000A1B2-FACB-11E6-BD58-64006A7986D3"

on_windows = pytest.mark.skipif(
    sys.platform != "win32", reason="needs the registry of Windows: make test-windows runs it under Wine"
)
elsewhere = pytest.mark.skipif(sys.platform == "win32", reason="is about other systems: make test runs it")


# -- what needs no registry --------------------------------------------------------------------------------


def test_a_service_knows_its_port_and_who_made_it() -> None:
    ours = Service(service_id(2761), "Demo", "aiohvsock")
    theirs = Service(A, tool="podman")

    assert (ours.port, ours.made_here, ours.volatile) == (2761, True, False)
    assert (theirs.port, theirs.made_here, theirs.name) == (None, False, None)
    assert str(ours) == "'Demo' (00000ac9-facb-11e6-bd58-64006a7986d3, port 2761)"
    assert str(theirs) == f"({A})"
    assert HypervAddress("any", ours.service_id) == HypervAddress("any", 2761)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ours.name = "Other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "service", "fault"),
    [
        ("", 5, "'' is not a service id or name: it is empty"),
        ("a\nb", 5, "control character"),
        (" Demo", 5, "begins or ends with a space"),
        ("2761", 5, "a port is an int"),
        (str(A), 5, f"'{A}' cannot be the name of a service: it is a GUID"),
        (str(A)[:-1], 5, "a GUID has 8-4-4-4-12 hexadecimal digits"),
        (None, 5, "the name of a service must be text, not None"),
        (A, 5, "the name of a service must be text"),
        ("Demo", "Other", "'Other' is not a service id (a GUID, or a port)"),
        ("Demo", "5", "a port is an int"),
        ("Demo", -1, "port -1 is outside"),
        ("Demo", 2**31, "port 2147483648 is outside 0 ... 2**31-1"),
        ("Demo", None, "port must be an int, not None"),
        ("Demo", True, "port must be an int, not True"),
    ],
)
def test_what_cannot_be_registered(name: Any, service: Any, fault: str) -> None:
    with pytest.raises(HvAddressError) as caught:
        register_service(name, service)

    assert fault in str(caught.value)


@elsewhere
@pytest.mark.parametrize(
    "call",
    [
        list_services,
        lambda: find_service("Demo"),
        lambda: find_service(2761),
        lambda: register_service("Demo", 2761),
        lambda: unregister_service("Demo"),
        lambda: unregister_service(A, force=True),
        lambda: registry.resolve(HypervAddress("any", "Demo")),
    ],
)
def test_elsewhere_it_says_where_services_are_registered(call: Callable[[], object]) -> None:
    with pytest.raises(HvUnsupportedError, match="registry of the Windows host.*vsock://host:PORT"):
        call()


def known(monkeypatch: pytest.MonkeyPatch, *services: Service) -> None:
    monkeypatch.setattr(registry, "services", lambda: list(services))


def test_a_name_stands_for_its_service_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, Service(A, "HV Socket Demo"), Service(B), Service(C, "Überwacher"))

    for name in ("HV Socket Demo", "hv socket demo", "HV SOCKET DEMO"):
        assert find_service(name) == Service(A, "HV Socket Demo")
        assert registry.resolve(HypervAddress("any", name)) == HypervAddress("any", A)
    assert find_service("ÜBERWACHER").service_id == C


def test_an_address_without_a_name_asks_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "services", None)
    for address in (HypervAddress("parent", A), HypervAddress("parent", 2761)):
        assert registry.resolve(address) is address


def test_an_unknown_name_is_told_which_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, Service(A, "HV Socket Demo"), Service(B, "Backup"), Service(C))

    with pytest.raises(HvAddressError) as caught:
        registry.resolve(HypervAddress("any", "HV Socket- Demo"))
    message = str(caught.value)
    assert message.startswith("hvsock://any/HV%20Socket-%20Demo: no service is named 'HV Socket- Demo'")
    assert "(similar: 'HV Socket Demo')" in message
    assert "register_service()" in message
    assert "a guest does not see the host's names" in message

    for name in ("demo", "Demo of the HV Socket Demo"):
        with pytest.raises(HvAddressError, match=r"\(similar: 'HV Socket Demo'\)"):
            find_service(name)
    with pytest.raises(HvAddressError, match="no service is named 'Xyz' in this machine's registry;"):
        find_service("Xyz")


def test_a_name_of_several_services_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, Service(A, "Demo"), Service(service_id(5), "DEMO"), Service(B, "Demo 2"))

    for name in ("Demo", "DEMO"):
        with pytest.raises(HvAddressError) as caught:
            registry.resolve(HypervAddress("any", name))
        assert f"{name!r} is the name of 2 services" in str(caught.value)
        assert str(A) in str(caught.value)
        assert f"{service_id(5)}, port 5" in str(caught.value)
        assert str(B) not in str(caught.value)


# -- reading -----------------------------------------------------------------------------------------------


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The place of the registry where this test's services are, empty; not even the key is there."""
    key = rf"SOFTWARE\aiohvsock-tests\{uuid.uuid4()}"
    try:
        add(key)
    except subprocess.CalledProcessError:
        pytest.skip(
            "may not write to the registry: run the tests as administrator, or make test-windows on Linux"
        )
    delete(key)
    monkeypatch.setattr(registry, "KEY", key)
    yield key
    with contextlib.suppress(subprocess.CalledProcessError):
        delete(key)


@on_windows
def test_services_are_listed_by_name_and_those_without_one_last(root: str) -> None:
    assert list_services() == []

    add(rf"{root}\{PODMAN}", Purpose="Network", ToolName="podman")
    add(rf"{root}\{C}", ElementName="beta")
    add(rf"{root}\{str(A).upper()}", ElementName="Gamma")
    add(rf"{root}\{B}", ElementName="Älpha", ToolName="aiohvsock", Volatile="int:1")
    add(rf"{root}\{service_id(5)}", ElementName="int:7")
    add(rf"{root}\{{{uuid.uuid4()}}}", ElementName="in braces")
    add(rf"{root}\{uuid.uuid4().hex}", ElementName="without hyphens")
    add(rf"{root}\Notes", ElementName="no service")

    assert list_services() == [
        Service(C, "beta"),
        Service(A, "Gamma"),
        Service(B, "Älpha", "aiohvsock", volatile=True),
        Service(service_id(5)),
        Service(uuid.UUID(PODMAN), tool="podman"),
    ]


@on_windows
def test_a_service_is_found_by_what_people_have(root: str) -> None:
    add(rf"{root}\{PODMAN}", ToolName="podman")
    add(rf"{root}\{A}", ElementName="HV Socket Demo")
    demo = Service(A, "HV Socket Demo")

    for wanted in (A, str(A), f"{{{str(A).upper()}}}", "HV Socket Demo", "hv socket demo"):
        assert find_service(wanted) == demo
    assert find_service(0xA1B2) == Service(uuid.UUID(PODMAN), tool="podman")
    assert registry.resolve(HypervAddress("children", "hv socket demo")) == HypervAddress("children", A)
    with pytest.raises(HvAddressError, match=rf"no service \({B}\) is registered"):
        find_service(B)
    with pytest.raises(HvAddressError, match=rf"no service \({service_id(5)}, port 5\) is registered"):
        find_service(5)


@on_windows
def test_what_is_removed_after_it_was_listed_is_not_there(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (A, B, C):
        add(rf"{root}\{each}", ElementName="Demo")
    before_calls(monkeypatch, "winreg.OpenKey", lambda key: key.endswith(str(A)), rf"{root}\{A}")
    # The key is open by then, and every value of it gone.
    before_calls(monkeypatch, "winreg.QueryValueEx", lambda name: name == "ToolName", rf"{root}\{B}")

    assert list_services() == [Service(C, "Demo")]


@on_windows
def test_none_is_missed_while_another_is_removed(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (A, B, C):
        add(rf"{root}\{each}")
    # With it gone, number 1 is another key than before.
    before_calls(monkeypatch, "winreg.EnumKey", lambda number: number == 1, rf"{root}\{A}")

    assert list_services() == [Service(B), Service(C)]


@on_windows
def test_none_is_missed_while_one_is_replaced(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    winreg: Any = importlib.import_module("winreg")
    enumerate_key, numbers = winreg.EnumKey, []

    def call(key: object, number: int) -> Any:
        numbers.append(number)
        if numbers == [0, 1]:
            delete(rf"{root}\{A}")
            add(rf"{root}\{C}")
        return enumerate_key(key, number)

    for each in (A, B):
        add(rf"{root}\{each}")
    monkeypatch.setattr(winreg, "EnumKey", call)

    # Number 0 was A and number 1 is C: there were two before and after, and B was neither.
    assert list_services() == [Service(B), Service(C)]


# -- writing -----------------------------------------------------------------------------------------------


@on_windows
def test_the_place_and_the_values_are_those_that_hyper_v_reads() -> None:
    key = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
    mine = uuid.uuid4()
    try:
        made = register_service(f"Test {mine}x", mine)
    except HvPermissionError:
        pytest.skip(
            "may not register services: run the tests as administrator, or make test-windows on Linux"
        )
    try:
        assert made == Service(mine, f"Test {mine}x", "aiohvsock")
        assert query(rf"{key}\{mine}") == {
            str(mine): {"ElementName": f"Test {mine}x", "ToolName": "aiohvsock"}
        }
        assert made in list_services()
    finally:
        assert unregister_service(made)
    assert made not in list_services()


@on_windows
def test_registering_and_taking_out_again(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = register_service("HV Socket Demo", 2761)

    assert made == find_service("hv socket demo") == Service(service_id(2761), "HV Socket Demo", "aiohvsock")
    assert query(root)[str(service_id(2761))] == {"ElementName": "HV Socket Demo", "ToolName": "aiohvsock"}

    with monkeypatch.context() as patched:
        deny(patched)
        assert register_service("HV Socket Demo", service_id(2761)) == made

    for wanted in (made, 2761, str(service_id(2761)), "hv SOCKET demo"):
        register_service("HV Socket Demo", 2761)
        assert unregister_service(wanted)
        assert not unregister_service(wanted)
        assert list_services() == []


@on_windows
def test_what_another_process_takes_out_first_is_gone_all_the_same(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_service("Demo", A)
    before_calls(monkeypatch, "winreg.DeleteKeyEx", lambda key: True, rf"{root}\{A}")

    assert not unregister_service("Demo")
    assert list_services() == []


@on_windows
def test_what_was_made_here_can_be_renamed(root: str) -> None:
    register_service("Demo", A)

    assert register_service("demo", A).name == "demo"
    assert register_service("Beispiel für é漢", A).name == "Beispiel für é漢"
    assert [each.name for each in list_services()] == ["Beispiel für é漢"]


@on_windows
def test_what_others_made_is_used_as_it_is(root: str) -> None:
    add(rf"{root}\{A}", ElementName="Demo")

    for name in ("Demo", "DEMO"):
        assert register_service(name, A, volatile=True) == Service(A, "Demo")
    assert query(root)[str(A)] == {"ElementName": "Demo"}


@on_windows
def test_what_others_made_is_left_alone_unless_told(root: str) -> None:
    add(rf"{root}\{PODMAN}", Purpose="Network", ToolName="podman")
    add(rf"{root}\{A}", ElementName="Demo")
    before = query(root)

    with pytest.raises(HvAddressError, match=r"port 41394\) was registered by 'podman'.*force=True"):
        register_service("Mine", 0xA1B2)
    with pytest.raises(HvAddressError, match="was registered by another program, and not as 'Mine'"):
        register_service("Mine", A)
    for wanted in (0xA1B2, A, "demo"):
        with pytest.raises(HvAddressError, match=r"was registered by .*; force=True takes it out"):
            unregister_service(wanted)
    assert query(root) == before

    named = register_service("Mine", 0xA1B2, force=True, volatile=True)
    assert named == Service(service_id(0xA1B2), "Mine", "podman")
    assert query(root)[PODMAN] == {"ElementName": "Mine", "Purpose": "Network", "ToolName": "podman"}
    assert register_service("MINE", 0xA1B2, force=True).name == "MINE"
    with pytest.raises(HvAddressError):
        unregister_service(named)
    assert unregister_service(named, force=True)
    assert unregister_service("Demo", force=True)
    assert list_services() == []


@on_windows
def test_two_services_do_not_get_one_name(root: str) -> None:
    register_service("Demo", A)

    for force in (False, True):
        with pytest.raises(HvAddressError, match=f"'DEMO' is the name of another service already, .*{A}"):
            register_service("DEMO", B, force=force)
    assert list_services() == [Service(A, "Demo", "aiohvsock")]


@on_windows
def test_a_volatile_service_goes_with_the_machine(root: str) -> None:
    def is_volatile() -> bool:
        """Tell by what Windows refuses: a key that stays, below one that does not."""
        try:
            add(rf"{root}\{A}\child")
        except subprocess.CalledProcessError:
            return True
        delete(rf"{root}\{A}\child")
        return False

    assert register_service("Demo", A, volatile=True) == Service(A, "Demo", "aiohvsock", volatile=True)
    assert is_volatile()
    assert register_service("Other", A, volatile=True).name == "Other"
    assert is_volatile()

    assert register_service("Other", A) == Service(A, "Other", "aiohvsock")
    assert not is_volatile()
    assert register_service("Other", A, volatile=True).volatile
    assert is_volatile()
    assert unregister_service("Other")
    # What is above it was made to stay.
    add(rf"{root}\{B}")


# -- rights ------------------------------------------------------------------------------------------------


NAMES = [
    "HV Socket Demo",
    "Demo",
    "a & b | c > d < e ^ f (g)",
    'say "hello"',
    'a" & echo b',
    "50% off",
    r"back\slash",
    "at the end\\",
    'both\\"\\',
    "!bang! $HOME `x` 'y'",
]


@on_windows
@pytest.mark.parametrize("name", NAMES)
def test_an_administrator_can_paste_the_command(
    root: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        deny(patched)
        with pytest.raises(HvPermissionError) as caught:
            register_service(name, A)
    error = caught.value
    assert f"] register service {Service(A, name)} failed: Access is denied (EACCES); in " in str(error)
    assert isinstance(error.__cause__, PermissionError)
    paste(error)

    registered = Service(A, name)
    assert list_services() == [registered]
    with monkeypatch.context() as patched:
        deny(patched)
        assert register_service(name, A) == registered
        with pytest.raises(HvPermissionError) as caught:
            unregister_service(name, force=True)
    assert "unregister service" in str(caught.value)
    paste(caught.value)
    assert list_services() == []


@on_windows
def test_the_command_renames_too(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register_service("Demo", A)
    with monkeypatch.context() as patched:
        deny(patched)
        with pytest.raises(HvPermissionError) as caught:
            register_service("Other", A)
    paste(caught.value)

    assert list_services() == [Service(A, "Other", "aiohvsock")]


@on_windows
def test_the_command_for_a_service_that_is_to_stay_replaces_a_volatile_one(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_service("Demo", A, volatile=True)
    with monkeypatch.context() as patched:
        deny(patched)
        with pytest.raises(HvPermissionError) as caught:
            register_service("Other", B, volatile=True)
        assert "(for good, since reg makes no volatile keys)" in str(caught.value)
    with monkeypatch.context() as patched:
        deny(patched)
        with pytest.raises(HvPermissionError) as caught:
            register_service("Demo", A)
    paste(caught.value)

    assert list_services() == [Service(A, "Demo")]
    add(rf"{root}\{A}\child")


@on_windows
def test_a_registry_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Access is denied", None, 5)

    monkeypatch.setattr("winreg.OpenKey", refuse)
    for call in (list_services, lambda: find_service(A), lambda: find_service("Demo")):
        with pytest.raises(HvPermissionError, match=r"\] read the registered services failed: .*: reg query"):
            call()


@on_windows
def test_it_is_the_64_bit_view_for_every_python(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    winreg: Any = importlib.import_module("winreg")
    asked: dict[str, set[bool]] = {}

    def watch(name: str, position: int) -> None:
        real = getattr(winreg, name)

        def call(*arguments: Any) -> Any:
            asked.setdefault(name, set()).add(bool(arguments[position] & winreg.KEY_WOW64_64KEY))
            return real(*arguments)

        monkeypatch.setattr(winreg, name, call)

    watch("OpenKey", 3)
    watch("CreateKeyEx", 3)
    watch("DeleteKeyEx", 2)
    register_service("Demo", A, volatile=True)
    register_service("Demo", A)
    unregister_service("Demo")

    assert asked == {"OpenKey": {True}, "CreateKeyEx": {True}, "DeleteKeyEx": {True}}
