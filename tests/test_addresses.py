from __future__ import annotations

import copy
import dataclasses
import pickle
import uuid
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohvsock.addresses import (
    CID_ANY,
    CID_HOST,
    CID_LOCAL,
    PORT_ANY,
    VM_ID_ANY,
    VM_ID_BROADCAST,
    VM_ID_CHILDREN,
    VM_ID_LOOPBACK,
    VM_ID_PARENT,
    VM_ID_SILOHOST,
    Address,
    HybridAddress,
    HypervAddress,
    VsockAddress,
    parse_address,
    service_id,
    service_port,
    to_address,
    to_hyperv,
    to_service,
    to_vsock,
)
from aiohvsock.exceptions import HvAddressError, HvError

TEMPLATE = uuid.UUID("00000000-facb-11e6-bd58-64006a7986d3")
GUID = uuid.UUID("0123abcd-4567-89ab-cdef-0123456789ab")

u32 = st.integers(0, 2**32 - 1) | st.sampled_from(
    [0, 1, 2, 3, 1023, 1024, 2761, 2**31, PORT_ANY - 1, PORT_ANY]
)
services = st.uuids() | u32.map(service_id)

letters = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]) | st.sampled_from("/:%#?&+ é漢\"'@{}")
)
# The x keeps them from being a number or a GUID gone wrong.
names = st.builds("{}x{}".format, letters, letters).filter(lambda name: name == name.strip())


def fsdecode(name: bytes) -> str:
    """Do what os.fsdecode() does on Linux."""
    return name.decode("utf-8", "surrogateescape")


# What it gives of a name in bytes; other surrogates stand for nothing in a file system.
paths = st.binary(min_size=1).map(fsdecode).map("/".__add__).filter(
    lambda path: "\0" not in path and not path.endswith("/")
) | st.text("ab/:%#?&+ ~é漢\n\\\"'@", min_size=1).map("/".__add__).filter(lambda path: not path.endswith("/"))

vsock_addresses = st.builds(VsockAddress, u32, u32)
hyperv_addresses = st.builds(
    HypervAddress,
    st.uuids() | st.sampled_from(["parent", "children", "loopback", "any", "broadcast", "silohost"]),
    services | names,
)
hybrid_addresses = st.builds(HybridAddress, paths, u32 | st.uuids())
addresses: st.SearchStrategy[Address] = vsock_addresses | hyperv_addresses | hybrid_addresses


# -- text and back -----------------------------------------------------------------------------------------


@given(addresses)
@settings(deadline=None)
@example(VsockAddress(0, 0))
@example(VsockAddress(CID_ANY, PORT_ANY))
@example(HypervAddress(VM_ID_ANY, uuid.UUID(int=0)))
@example(HypervAddress(VM_ID_ANY, PORT_ANY))
@example(HypervAddress(VM_ID_ANY, "/:%2F%"))
@example(HybridAddress("/:1:2", PORT_ANY))
@example(HybridAddress("//a", 0))
def test_every_address_comes_back_from_its_text(address: Address) -> None:
    text = str(address)

    assert parse_address(text) == address
    assert text.isascii()
    assert not set(text) & set(' \n"#?')


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vsock://2:2761", VsockAddress(2, 2761)),
        ("vsock://0:0", VsockAddress(0, 0)),
        ("vsock://3:1", VsockAddress(3, 1)),
        ("vsock://4294967295:4294967295", VsockAddress(CID_ANY, PORT_ANY)),
        ("vsock://4294967294:4294967294", VsockAddress(2**32 - 2, 2**32 - 2)),
        ("vsock://host:2761", VsockAddress(CID_HOST, 2761)),
        ("vsock://local:2761", VsockAddress(CID_LOCAL, 2761)),
        ("vsock://any:2761", VsockAddress(CID_ANY, 2761)),
        ("vsock://:2761", VsockAddress(CID_ANY, 2761)),
        ("vsock://:any", VsockAddress(CID_ANY, PORT_ANY)),
        ("VSOCK://Host:Any", VsockAddress(CID_HOST, PORT_ANY)),
        ("vsock://002:0002761", VsockAddress(2, 2761)),
        ("hvsock://parent:2761", HypervAddress(VM_ID_PARENT, service_id(2761))),
        ("hvsock://children:0", HypervAddress(VM_ID_CHILDREN, TEMPLATE)),
        ("hvsock://loopback:1", HypervAddress(VM_ID_LOOPBACK, service_id(1))),
        ("hvsock://any:1", HypervAddress(VM_ID_ANY, service_id(1))),
        ("hvsock://broadcast:1", HypervAddress(VM_ID_BROADCAST, service_id(1))),
        ("hvsock://silohost:1", HypervAddress(VM_ID_SILOHOST, service_id(1))),
        ("HVSOCK://PARENT:1", HypervAddress(VM_ID_PARENT, service_id(1))),
        (f"hvsock://{GUID}:5", HypervAddress(GUID, service_id(5))),
        (f"hvsock://{GUID}/{GUID}", HypervAddress(GUID, GUID)),
        (f"hvsock://{{{GUID}}}/{{{str(GUID).upper()}}}", HypervAddress(GUID, GUID)),
        (f"hvsock://{str(GUID).upper()}:5", HypervAddress(GUID, service_id(5))),
        (
            "hvsock://parent/00000ac9-facb-11e6-bd58-64006a7986d3",
            HypervAddress(VM_ID_PARENT, service_id(2761)),
        ),
        (f"hvsock://parent/%7B{GUID}%7D", HypervAddress(VM_ID_PARENT, GUID)),
        ("hvsock://any/HV%20Socket%20Demo", HypervAddress(VM_ID_ANY, "HV Socket Demo")),
        ("HVSOCK://ANY/HV Socket Demo", HypervAddress(VM_ID_ANY, "HV Socket Demo")),
        (f"hvsock://{GUID}/Backup", HypervAddress(GUID, "Backup")),
        ("hvsock://any/a:b", HypervAddress(VM_ID_ANY, "a:b")),
        ("hvsock://any/a%2Fb%25%3a", HypervAddress(VM_ID_ANY, "a/b%:")),
        ("hvsock://any/50%", HypervAddress(VM_ID_ANY, "50%")),
        ("hvsock://any/caf%C3%A9", HypervAddress(VM_ID_ANY, "café")),
        ("hvsock://any/a+b", HypervAddress(VM_ID_ANY, "a+b")),
        ("hvsock://any/cafe", HypervAddress(VM_ID_ANY, "cafe")),
        ("hvsock://any/dead-beef", HypervAddress(VM_ID_ANY, "dead-beef")),
        ("hvsock://any/{Demo}", HypervAddress(VM_ID_ANY, "{Demo}")),
        ("vsock+unix:///run/vm/v.sock:2761", HybridAddress("/run/vm/v.sock", 2761)),
        ("VSOCK+UNIX:///Run/V.sock:2761", HybridAddress("/Run/V.sock", 2761)),
        (f"vsock+unix:///v.sock:{GUID}", HybridAddress("/v.sock", GUID)),
        ("vsock+unix:///v.sock:any", HybridAddress("/v.sock", PORT_ANY)),
        ("vsock+unix:///a:b/c:9", HybridAddress("/a:b/c", 9)),
        ("vsock+unix:///a%20b%25%23%3F%3a:9", HybridAddress("/a b%#?:", 9)),
        # Nothing but the percent sign has to be written in its percent form.
        ("vsock+unix:///a b#c?d:9", HybridAddress("/a b#c?d", 9)),
        ("vsock+unix:///a+b:9", HybridAddress("/a+b", 9)),
        ("vsock+unix:///caf%C3%A9:9", HybridAddress("/café", 9)),
        ("vsock+unix:///%FF:9", HybridAddress(fsdecode(b"/\xff"), 9)),
    ],
)
def test_parse(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert type(parse_address(text)) is type(address)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (VsockAddress(2, 2761), "vsock://2:2761"),
        (VsockAddress(1, 0), "vsock://1:0"),
        (VsockAddress(CID_ANY, PORT_ANY), "vsock://any:any"),
        (HypervAddress("parent", 2761), "hvsock://parent:2761"),
        (HypervAddress("ANY", PORT_ANY), "hvsock://any:any"),
        (HypervAddress(GUID, 2761), f"hvsock://{GUID}:2761"),
        (HypervAddress(VM_ID_CHILDREN, GUID), f"hvsock://children/{GUID}"),
        (HypervAddress(str(GUID).upper(), f"{{{GUID}}}"), f"hvsock://{GUID}/{GUID}"),
        (HypervAddress("any", "HV Socket Demo"), "hvsock://any/HV%20Socket%20Demo"),
        (HypervAddress(GUID, "50% a/b?"), f"hvsock://{GUID}/50%25%20a%2Fb%3F"),
        (HypervAddress("any", "a:b"), "hvsock://any/a:b"),
        (HypervAddress("any", "Café"), "hvsock://any/Caf%C3%A9"),
        (HybridAddress("/run/v.sock", 2761), "vsock+unix:///run/v.sock:2761"),
        (HybridAddress("/run/v.sock", GUID), f"vsock+unix:///run/v.sock:{GUID}"),
        (HybridAddress("/v", PORT_ANY), "vsock+unix:///v:any"),
        (HybridAddress("/a b", 1), "vsock+unix:///a%20b:1"),
        (HybridAddress("/50%", 1), "vsock+unix:///50%25:1"),
        (HybridAddress("/a#b", 1), "vsock+unix:///a%23b:1"),
        (HybridAddress("/a?b", 1), "vsock+unix:///a%3Fb:1"),
        (HybridAddress("/a:b", 1), "vsock+unix:///a:b:1"),
        (HybridAddress("/café", 1), "vsock+unix:///caf%C3%A9:1"),
        (HybridAddress(fsdecode(b"/\xff\xfe"), 1), "vsock+unix:///%FF%FE:1"),
    ],
)
def test_text(address: Address, text: str) -> None:
    assert str(address) == text
    assert parse_address(text) == address


# -- text that is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no scheme"),
        ("2:2761", "no scheme"),
        ("host", "no scheme"),
        ("vsock:2:2761", "no scheme"),
        ("vsock:/2:2761", "no scheme"),
        ("/run/v.sock", "no scheme"),
        ("://2:2761", "unknown scheme ''"),
        ("tcp://2:2761", "unknown scheme 'tcp'"),
        (" vsock://2:2761", "unknown scheme ' vsock'"),
        ("unix:///run/v.sock:1", "unknown scheme 'unix'"),
        ("vsoc\N{KELVIN SIGN}://2:2761", "unknown scheme"),
        ("vsock://", "no port after ''"),
        ("vsock://2", "no port after '2'"),
        ("vsock://host", "write vsock://host:PORT"),
        ("vsock://2:", "port must be a decimal number below 2**32, not ''"),
        ("vsock://2:x", "port must be a decimal number below 2**32, not 'x'"),
        ("vsock://2:1:1", "port must be a decimal number below 2**32, not '1:1'"),
        ("vsock://2:2761/", "port must be a decimal number below 2**32, not '2761/'"),
        ("vsock://2:-1", "port must be a decimal number below 2**32, not '-1'"),
        ("vsock://2:+1", "port must be a decimal number below 2**32, not '+1'"),
        ("vsock://2: 1", "port must be a decimal number below 2**32, not ' 1'"),
        ("vsock://2:1\n", "port must be a decimal number below 2**32, not '1\\n'"),
        ("vsock://2:1_000", "port must be a decimal number below 2**32, not '1_000'"),
        ("vsock://2:0x10", "port must be a decimal number below 2**32, not '0x10'"),
        ("vsock://2:1e3", "port must be a decimal number below 2**32, not '1e3'"),
        ("vsock://2:٣", "port must be a decimal number below 2**32, not '٣'"),
        ("vsock://2:²", "port must be a decimal number below 2**32, not '²'"),
        ("vsock://2:host", "port must be a decimal number below 2**32, not 'host'"),
        ("vsock://2:4294967296", "port 4294967296 is outside 0 ... 2**32-1"),
        ("vsock://2:9999999999", "port 9999999999 is outside 0 ... 2**32-1"),
        ("vsock://2:" + "9" * 5000, "port must be a decimal number below 2**32"),
        ("vsock://4294967296:1", "CID 4294967296 is outside 0 ... 2**32-1"),
        ("vsock://-1:1", "CID (or one of local, host, any) must be a decimal number below 2**32, not '-1'"),
        ("vsock://1_0:1", "CID (or one of local, host, any) must be a decimal number below 2**32, not '1_0'"),
        ("vsock://２:1", "CID (or one of local, host, any) must be a decimal number below 2**32, not '２'"),
        ("vsock:// 2:1", "CID (or one of local, host, any) must be a decimal number below 2**32, not ' 2'"),
        (
            "vsock://parent:1",
            "CID (or one of local, host, any) must be a decimal number below 2**32, not 'parent'",
        ),
        ("hvsock://", "no port or service id after ''"),
        ("hvsock://parent", "no port or service id after 'parent'"),
        ("hvsock://parent:", "port must be a decimal number below 2**32, not ''"),
        ("hvsock://parent:x", "port must be a decimal number below 2**32, not 'x'"),
        ("hvsock://parent:4294967296", "port 4294967296 is outside"),
        ("hvsock://parent/", "'' is not a service id"),
        (
            "hvsock://parent/2761",
            "'2761' is not a service id or name: a port is an int, and in text it is written",
        ),
        ("hvsock://parent/٣", "'٣' is not a service id or name: a port"),
        (f"hvsock://parent/{GUID}/", "is not a service id or name: a slash in a name is written %2F"),
        ("hvsock://parent/a/b", "'a/b' is not a service id or name: a slash in a name is written %2F"),
        ("hvsock://parent/caf%E9", "'caf%E9' is not a service id or name: its percent form is not UTF-8"),
        ("hvsock://parent/a%00b", "'a\\x00b' is not a service id or name: it has a control character"),
        ("hvsock://parent/%20Demo", "' Demo' is not a service id or name: it begins or ends with a space"),
        (
            f"hvsock://parent/{{{GUID}",
            "is not a service id or name: a GUID has 8-4-4-4-12 hexadecimal digits",
        ),
        (f"hvsock://parent:{GUID}", "port must be a decimal number below 2**32"),
        ("hvsock://:2761", "'' is not a VM id"),
        ("hvsock://2:2761", "'2' is not a VM id"),
        ("hvsock://host:2761", "'host' is not a VM id (a GUID, or one of any, broadcast, children, loopback"),
        ("hvsock://loopbac\N{KELVIN SIGN}:2761", "is not a VM id"),
        (f"hvsock://{GUID.hex}:1", "is not a VM id"),
        (f"hvsock://{GUID.urn}", "port must be a decimal number below 2**32"),
        (f"hvsock://{str(GUID).replace('a', 'ａ')}:1", "is not a VM id"),
        (f"hvsock://{str(GUID).replace('01', '_1')}:1", "is not a VM id"),
        (f"hvsock:// {GUID}:1", "is not a VM id"),
        (f"hvsock://{GUID}\n:1", "is not a VM id"),
        ("vsock+unix://", "no port after the path ''"),
        ("vsock+unix:///run/v.sock", "no port after the path '/run/v.sock'"),
        ("vsock+unix://run/v.sock:1", "path 'run/v.sock' is not absolute"),
        ("vsock+unix://:1", "path '' is not absolute"),
        ("vsock+unix:///:1", "path '/' cannot be that of a socket"),
        ("vsock+unix:///run/:1", "path '/run/' cannot be that of a socket"),
        ("vsock+unix:///a%00b:1", "path '/a\\x00b' cannot be that of a socket"),
        ("vsock+unix:///\ud800:1", "path '/\\ud800'"),
        ("vsock+unix:///v.sock:", "port must be a decimal number below 2**32, not ''"),
        ("vsock+unix:///v.sock:x", "port must be a decimal number below 2**32, not 'x'"),
        ("vsock+unix:///v.sock:-1", "'-1' is not a service id"),
        ("vsock+unix:///v.sock:4294967296", "port 4294967296 is outside"),
        (f"vsock+unix:///v.sock:{GUID.hex}", "port must be a decimal number below 2**32"),
    ],
)
def test_bad_text_names_the_part_at_fault(text: str, fault: str) -> None:
    with pytest.raises(HvAddressError) as caught:
        parse_address(text)

    message = str(caught.value)
    assert message.startswith(f"{text!r}: ")
    assert fault in message.removeprefix(f"{text!r}: ")


def test_braces_of_a_guid_come_in_pairs() -> None:
    for text in (f"hvsock://{{{GUID}:1", f"hvsock://{GUID}}}:1"):
        with pytest.raises(HvAddressError, match="is not a VM id"):
            parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{{{GUID}",
        f"{GUID}}}",
        f"{{{{{GUID}}}}}",
        f"({GUID})",
        str(GUID)[:-1],
        f"{GUID}0",
        str(GUID)[1:],
        GUID.hex,
        GUID.hex[:16],
        GUID.urn,
        GUID.urn.upper(),
        str(GUID).replace("a", "g"),
        str(GUID).replace("a", "ａ"),
        str(GUID).replace("01", "_1"),
        str(GUID).replace("-", ""),
        "{}",
        "{cafe}",
        "dead-beef-{",
        "0123-4567-89ab-c",
    ],
)
def test_a_guid_gone_wrong_is_no_name(text: str) -> None:
    with pytest.raises(HvAddressError, match="is not a service id or name: a GUID has 8-4-4-4-12"):
        to_service(text)


@pytest.mark.parametrize(
    "name",
    [
        "HV Socket Demo",
        "cafe",
        "dead-beef",
        "0123-4567-89ab-",
        "-1",
        "2761 of the guest",
        "{Demo}",
        "my-very-own-little-service",
        "/",
        "%2F",
        "a\N{NO-BREAK SPACE}b",
        "ファイル\N{IDEOGRAPHIC SPACE}転送",
        "می\N{ZERO WIDTH NON-JOINER}شود",
        "😀",
    ],
)
def test_a_name_is_kept_as_it_is(name: str) -> None:
    assert to_service(name) == name
    assert HypervAddress("any", name).service_id == name
    assert parse_address(str(HypervAddress("any", name))) == HypervAddress("any", name)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "it is empty"),
        (" ", "it begins or ends with a space"),
        ("Demo ", "it begins or ends with a space"),
        ("\N{IDEOGRAPHIC SPACE}Demo", "it begins or ends with a space"),
        (f" {GUID}", "it begins or ends with a space"),
        ("a\0b", "it has a control character or a line end"),
        (f"{GUID}\n", "it has a control character or a line end"),
        ("a\x7f", "it has a control character or a line end"),
        ("a\x85b", "it has a control character or a line end"),
        ("a\u2028b", "it has a control character or a line end"),
        ("a\ud800b", "it has a control character or a line end"),
        ("5", "a port is an int, and in text it is written hvsock://VM:5"),
        ("²", "a port is an int, and in text it is written hvsock://VM:²"),
    ],
)
def test_what_cannot_be_a_name(name: str, fault: str) -> None:
    with pytest.raises(HvAddressError) as caught:
        HypervAddress("any", name)

    assert str(caught.value) == f"{name!r} is not a service id or name: {fault}"


def test_names_are_for_hyper_v_only() -> None:
    with pytest.raises(HvAddressError, match=r"'Demo' is not a service id \(a GUID\)"):
        HybridAddress("/v", "Demo")
    with pytest.raises(HvAddressError, match="port must be a decimal number"):
        parse_address("vsock+unix:///v.sock:Demo")
    with pytest.raises(HvAddressError, match="port must be a decimal number"):
        parse_address("hvsock://any:Demo")


def test_text_without_a_scheme_is_told_how_to_write_it() -> None:
    with pytest.raises(HvAddressError) as caught:
        parse_address("2761")

    for form in (
        "vsock://CID:PORT",
        "hvsock://VM:PORT",
        "hvsock://VM/SERVICE-GUID",
        "vsock+unix:///PATH:PORT",
    ):
        assert form in str(caught.value)


@pytest.mark.parametrize("value", [None, 2761, b"vsock://2:2761", ("vsock", 1), ["vsock://2:2761"]])
def test_what_is_not_text_is_refused(value: Any) -> None:
    for function in (parse_address, to_address):
        with pytest.raises(HvAddressError, match="must be text"):
            function(value)


def test_the_error_is_a_value_error_of_ours() -> None:
    assert issubclass(HvAddressError, HvError)
    assert issubclass(HvAddressError, ValueError)


anything = st.text() | st.text(
    "vhsockunix+:/%?#0123456789abcdef-{}anylocalhostparent\n_\0 é\ud800", max_size=80
)
schemes = st.sampled_from(["vsock://", "hvsock://", "vsock+unix://", "vsock+unix:///", "VSOCK://", "vsock:"])
surrogates = st.text(st.characters(categories=["Cs", "Cc", "Nd", "No", "Ll", "Po"]))


@given(anything | st.builds(str.__add__, schemes, anything | surrogates))
@settings(max_examples=1000, deadline=None)
@example("vsock+unix:///\ud800:1")
@example("vsock+unix:///%ed%a0%80:1")
@example("vsock://" + "9" * 10_000 + ":1")
@example("vsock+unix:///%:1")
@example("vsock+unix:///%zz:1")
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = parse_address(text)
    except HvAddressError as error:
        assert str(error)
    else:
        assert parse_address(str(address)) == address
        assert hash(parse_address(str(address))) == hash(address)


def test_surrogates_that_spell_a_character_are_that_character() -> None:
    # Linux' os.fsencode() of both is the same: one socket has one address.
    spelled = "/é".encode().decode("ascii", "surrogateescape")

    assert HybridAddress(spelled, 1) == HybridAddress("/é", 1)


# -- the values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 2**32, 2**64, -(2**32)])
@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda value: VsockAddress(value, 1), "CID"),
        (lambda value: VsockAddress(1, value), "port"),
        (lambda value: HypervAddress("parent", value), "port"),
        (lambda value: HybridAddress("/v", value), "port"),
        (service_id, "port"),
    ],
)
def test_a_number_out_of_range(make: Any, part: str, value: int) -> None:
    with pytest.raises(HvAddressError, match=rf"^{part} {value} is outside 0 \.\.\. 2\*\*32-1$"):
        make(value)


def test_a_number_too_long_to_print_is_out_of_range_too() -> None:
    with pytest.raises(HvAddressError, match="^port .*is outside"):
        VsockAddress(1, 10**5000)


@pytest.mark.parametrize("value", [True, False, 1.0, None, b"1", [1], object()])
@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda value: VsockAddress(value, 1), "CID"),
        (lambda value: VsockAddress(1, value), "port"),
        (lambda value: HypervAddress("parent", value), "port"),
        (lambda value: HybridAddress("/v", value), "port"),
        (service_id, "port"),
    ],
)
def test_a_number_that_is_none(make: Any, part: str, value: object) -> None:
    with pytest.raises(HvAddressError, match=rf"^{part} must be an int, not "):
        make(value)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: VsockAddress("2", 1), "CID must be an int, not '2'"),  # type: ignore[arg-type]
        (lambda: VsockAddress(2, "1"), "port must be an int, not '1'"),  # type: ignore[arg-type]
        (lambda: HypervAddress(2, 1), "VM id must be a UUID or its text, not 2"),  # type: ignore[arg-type]
        (lambda: HypervAddress(None, 1), "VM id must be a UUID or its text, not None"),  # type: ignore[arg-type]
        (lambda: HypervAddress("host", 1), "'host' is not a VM id"),
        (lambda: HypervAddress("", 1), "'' is not a VM id"),
        (lambda: HypervAddress("parent", "2761"), "'2761' is not a service id"),
        (lambda: HybridAddress("v", 1), "path 'v' is not absolute; os.path.abspath()"),
        (lambda: HybridAddress("", 1), "path '' is not absolute"),
        (lambda: HybridAddress("~/v", 1), "path '~/v' is not absolute"),
        (lambda: HybridAddress("/v/", 1), "path '/v/' cannot be that of a socket"),
        (lambda: HybridAddress("/v\0", 1), "path '/v\\x00' cannot be that of a socket"),
        (lambda: HybridAddress("/\ud800", 1), "path '/\\ud800'"),
        (lambda: HybridAddress("/v", "2761"), "'2761' is not a service id"),
        (lambda: HybridAddress(b"/v", 1), "path must be str or a path object, not b'/v'"),  # type: ignore[arg-type]
        (lambda: HybridAddress(5, 1), "path must be str or a path object, not 5"),  # type: ignore[arg-type]
        (lambda: HybridAddress(None, 1), "path must be str or a path object, not None"),  # type: ignore[arg-type]
    ],
)
def test_a_part_that_is_wrong_is_named(make: Any, part: str) -> None:
    with pytest.raises(HvAddressError) as caught:
        make()

    assert str(caught.value).startswith(part)


def test_parts_are_normalised() -> None:
    assert HypervAddress("Parent", str(GUID)) == HypervAddress(VM_ID_PARENT, GUID)
    assert HypervAddress(f"{{{GUID}}}", str(GUID).upper()) == HypervAddress(GUID, GUID)
    assert HypervAddress(GUID, 5).service_id == service_id(5)
    assert to_service(5) == to_service(service_id(5)) == to_service(str(service_id(5))) == service_id(5)
    assert HybridAddress("/v", str(GUID)) == HybridAddress("/v", GUID)
    assert HybridAddress("/v", service_id(7)).port == 7
    assert HybridAddress("/v", str(service_id(7))).port == 7
    assert HybridAddress(PurePosixPath("/v"), 7) == HybridAddress("/v", 7)


SAMPLES: list[Address] = [
    VsockAddress(3, 2761),
    HypervAddress(GUID, 2761),
    HypervAddress("parent", GUID),
    HypervAddress("parent", "HV Socket Demo"),
    HybridAddress("/run/v.sock", 2761),
    HybridAddress("/run/v.sock", GUID),
]


@pytest.mark.parametrize("address", SAMPLES, ids=str)
def test_an_address_is_a_frozen_value(address: Address) -> None:
    for field in dataclasses.fields(address):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(address, field.name, getattr(address, field.name))
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(address, field.name)
    assert not hasattr(address, "__dict__")

    twin = parse_address(str(address))
    assert twin is not address
    assert twin == address
    assert hash(twin) == hash(address)
    assert {address: "found"}[twin] == "found"
    assert copy.copy(address) == copy.deepcopy(address) == address
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(address, protocol)) == address
    assert dataclasses.replace(address) == address


def test_addresses_differ_by_every_part_and_by_kind() -> None:
    distinct: list[Address] = [
        *SAMPLES,
        VsockAddress(4, 2761),
        VsockAddress(3, 2762),
        HypervAddress(GUID, 2762),
        HypervAddress("any", 2761),
        # The registry knows one name by these two, and is asked only when they are used.
        HypervAddress("parent", "HV socket demo"),
        HybridAddress("/run/w.sock", 2761),
        HybridAddress("/run/v.sock", 2762),
    ]

    assert len(set(distinct)) == len({str(each) for each in distinct}) == len(distinct)
    hyperv: object = HypervAddress("parent", 1)
    assert hyperv != VsockAddress(CID_HOST, 1)
    sockaddr: object = (3, 2761)
    assert sockaddr != VsockAddress(3, 2761)


def test_repr_shows_every_part() -> None:
    assert repr(VsockAddress(3, 2761)) == "VsockAddress(cid=3, port=2761)"
    assert repr(HypervAddress(GUID, 5)) == f"HypervAddress(vm_id={GUID!r}, service_id={service_id(5)!r})"
    assert repr(HybridAddress("/v", 5)) == "HybridAddress(path='/v', port=5)"


def test_to_address_parses_text_and_returns_values_as_they_are() -> None:
    for address in SAMPLES:
        assert to_address(address) is address
        assert to_address(str(address)) == address


def test_the_constants_are_those_of_the_headers() -> None:
    # include/uapi/linux/vm_sockets.h; hvsocket.h of the Windows SDK.
    assert (CID_LOCAL, CID_HOST, CID_ANY, PORT_ANY) == (1, 2, 0xFFFFFFFF, 0xFFFFFFFF)
    assert str(VM_ID_ANY) == "00000000-0000-0000-0000-000000000000"
    assert str(VM_ID_BROADCAST) == "ffffffff-ffff-ffff-ffff-ffffffffffff"
    assert str(VM_ID_CHILDREN) == "90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd"
    assert str(VM_ID_LOOPBACK) == "e0e16197-dd56-4a10-9195-5ee7a155a838"
    assert str(VM_ID_PARENT) == "a42e7cda-d03f-480c-9cc2-a4de20abb878"
    assert str(VM_ID_SILOHOST) == "36bd0c5c-7276-4223-88ba-7d03b654c568"


# -- ports and service ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (0, "00000000-facb-11e6-bd58-64006a7986d3"),
        (2761, "00000ac9-facb-11e6-bd58-64006a7986d3"),
        (0x12345678, "12345678-facb-11e6-bd58-64006a7986d3"),
        (0x80000000, "80000000-facb-11e6-bd58-64006a7986d3"),
        (PORT_ANY, "ffffffff-facb-11e6-bd58-64006a7986d3"),
    ],
)
def test_a_port_is_the_first_field_of_the_template(port: int, text: str) -> None:
    assert service_id(port) == uuid.UUID(text)
    assert service_port(uuid.UUID(text)) == port


@given(u32)
@settings(deadline=None)
def test_ports_and_service_ids_go_both_ways(port: int) -> None:
    assert service_port(service_id(port)) == port
    assert service_id(port).fields[1:] == TEMPLATE.fields[1:]


@given(st.integers(0, 127), u32)
@settings(deadline=None)
def test_one_bit_off_the_template_stands_for_no_port(bit: int, port: int) -> None:
    changed = uuid.UUID(int=service_id(port).int ^ 1 << bit)

    if bit < 96:
        assert service_port(changed) is None
    else:
        assert service_port(changed) == port ^ 1 << bit - 96


@pytest.mark.parametrize("other", [GUID, VM_ID_ANY, VM_ID_BROADCAST, VM_ID_PARENT], ids=str)
def test_a_service_id_of_another_making_stands_for_no_port(other: uuid.UUID) -> None:
    assert service_port(other) is None


# -- one kind for another ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyperv", "vsock"),
    [
        ("hvsock://parent:2761", "vsock://host:2761"),
        ("hvsock://loopback:2761", "vsock://local:2761"),
        ("hvsock://any:2761", "vsock://any:2761"),
    ],
)
def test_counterparts_go_both_ways(hyperv: str, vsock: str) -> None:
    there, here = parse_address(hyperv), parse_address(vsock)
    assert isinstance(there, HypervAddress)
    assert isinstance(here, VsockAddress)

    assert to_vsock(there) == here
    assert to_hyperv(here) == there
    assert to_vsock(here) is here
    assert to_hyperv(there) is there


def test_a_name_is_left_to_windows() -> None:
    address = HypervAddress("any", "HV Socket Demo")

    assert to_hyperv(address) is address


def test_children_are_listened_for_as_any() -> None:
    assert to_vsock(HypervAddress("children", 5)) == VsockAddress(CID_ANY, 5)


def test_a_port_that_the_system_chooses_exists_on_linux_only() -> None:
    assert to_vsock(HypervAddress("any", PORT_ANY)) == VsockAddress(CID_ANY, PORT_ANY)
    with pytest.raises(HvAddressError, match=r"^vsock://any:any has no counterpart on Windows"):
        to_hyperv(VsockAddress(CID_ANY, PORT_ANY))


@given(st.sampled_from([CID_HOST, CID_LOCAL, CID_ANY]), st.integers(0, PORT_ANY - 1))
@settings(deadline=None)
def test_there_and_back(cid: int, port: int) -> None:
    assert to_vsock(to_hyperv(VsockAddress(cid, port))) == VsockAddress(cid, port)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        (HypervAddress(GUID, 5), "a VM is named by its CID"),
        (HypervAddress("broadcast", 5), "a VM is named by its CID"),
        (HypervAddress("silohost", 5), "a VM is named by its CID"),
        (HypervAddress("parent", GUID), f"service id {GUID} is not made from a port"),
        (HypervAddress("parent", "Demo"), "names of services are looked up on Windows"),
    ],
)
def test_what_has_no_counterpart_on_linux(address: HypervAddress, fault: str) -> None:
    with pytest.raises(HvAddressError) as caught:
        to_vsock(address)

    assert str(caught.value).startswith(f"{address} has no counterpart on Linux")
    assert fault in str(caught.value)


@pytest.mark.parametrize("cid", [0, 3, 7, 2**32 - 2])
def test_what_has_no_counterpart_on_windows(cid: int) -> None:
    with pytest.raises(HvAddressError) as caught:
        to_hyperv(VsockAddress(cid, 5))

    assert str(caught.value).startswith(
        f"vsock://{cid}:5 has no counterpart on Windows, where a VM is named by its VM id"
    )
