from __future__ import annotations

import importlib.util
import itertools
import json
import struct
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.streams.stapled import StapledObjectStream
from hypothesis import given, strategies as st

from vers_rlm_mcp.machines.daemon.guest import wire
from vers_rlm_mcp.machines.daemon.guest.wire import Decoder, Frame, FrameError, dump, encode, load

if TYPE_CHECKING:
    from types import ModuleType

KINDS = frozenset({"a", "b"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.dictionaries(st.text().filter(lambda name: name != "kind"), JSON, max_size=4)
FRAMES = st.lists(
    st.tuples(st.sampled_from(sorted(KINDS)), FIELDS, st.binary(max_size=100)), max_size=4
)


def facts(frame: Frame) -> tuple[str, dict[str, object], bytes]:
    return frame.kind, frame.fields, frame.payload


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("!II", len(header), len(payload)) + header + payload


@given(frames=FRAMES, cuts=st.lists(st.integers(0, 2000)))
def test_frames_survive_any_split_of_their_bytes(
    frames: list[tuple[str, dict[str, object], bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode(*frame) for frame in frames)
    decoder = Decoder(KINDS)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    received = [
        facts(frame)
        for start, end in itertools.pairwise(edges)
        for frame in decoder.feed(data[start:end])
    ]
    assert received == frames


def test_frames_survive_a_split_at_every_single_byte() -> None:
    data = encode("a", {"id": 1}, b"\x00payload") + encode("b", {}, b"") + encode("a", {"x": "é"})
    for cut in range(len(data) + 1):
        decoder = Decoder(KINDS)
        frames = [*decoder.feed(data[:cut]), *decoder.feed(data[cut:])]
        assert [facts(frame) for frame in frames] == [
            ("a", {"id": 1}, b"\x00payload"),
            ("b", {}, b""),
            ("a", {"x": "é"}, b""),
        ]


async def test_two_halves_talk_over_memory_streams_one_byte_at_a_time() -> None:
    send, receive = anyio.create_memory_object_stream[bytes](1000)
    stream = StapledObjectStream(send, receive)
    for byte in encode("a", {"id": 7, "cell": 1}, b"print()"):
        await stream.send(bytes([byte]))
    await stream.send_eof()
    decoder = Decoder(KINDS)
    frames = [frame async for data in stream for frame in decoder.feed(data)]
    await stream.aclose()
    assert [facts(frame) for frame in frames] == [("a", {"id": 7, "cell": 1}, b"print()")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("!II", wire.MAX_HEADER + 1, 0), "header of 65537 bytes"),
        (struct.pack("!II", 2, wire.MAX_PAYLOAD + 1), "payload of 33554433 bytes"),
        (b"\xff" * 8, "header of 4294967295 bytes"),
        (raw(b"not json"), "not JSON"),
        (raw(b"\xff\xfe"), "not JSON"),
        (raw(b"[1]"), "a JSON list, not an object"),
        (raw(b'"kind"'), "a JSON str, not an object"),
        (raw(b"{}"), "unknown kind of frame: 'None'"),
        (raw(b'{"kind": "c"}'), "unknown kind of frame: 'c'"),
        (raw(b'{"kind": ["a"]}'), "unknown kind of frame"),
        (raw(b'{"kind": {}}'), "unknown kind of frame"),
        (raw(b'{"kind": "a", "id": NaN}'), "NaN is not JSON"),
        (raw(b'{"kind": "a", "id": ' + b"9" * 5000 + b"}"), "not JSON"),
        (raw(b'{"kind": "a", "deep": ' + b"[" * 60_000), "not JSON"),
    ],
)
def test_what_is_not_a_frame_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message.replace("[", r"\[")):
        list(Decoder(KINDS).feed(data))


@given(st.binary(max_size=300))
def test_random_bytes_give_frames_or_a_frame_error_and_nothing_else(data: bytes) -> None:
    decoder = Decoder(KINDS)
    try:
        for frame in decoder.feed(data):
            assert frame.kind in KINDS
    except FrameError:
        pass


WHOLE = encode("a", {"id": 1, "text": "é", "list": [1, {"x": None}]}, b'{"payload": [1, 2]}')


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    st.binary(max_size=20),
    st.integers(1, len(WHOLE)),
)
def test_a_frame_with_bytes_changed_or_added_is_one_or_a_frame_error(
    changes: list[tuple[int, int]], more: bytes, cut: int
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    data += more
    decoder = Decoder(KINDS)
    try:
        for piece in (data[:cut], data[cut:]):
            for frame in decoder.feed(bytes(piece)):
                load(frame.payload)
    except FrameError:
        pass


def test_frames_of_an_earlier_feed_are_not_lost_when_they_were_not_asked_for() -> None:
    decoder = Decoder(KINDS)
    first = decoder.feed(encode("a", {"id": 1}) + encode("a", {"id": 2}))
    assert next(first).fields == {"id": 1}
    later = decoder.feed(encode("b", {"id": 3}))
    assert [frame.fields["id"] for frame in later] == [2, 3]
    assert list(first) == []


def test_an_oversized_frame_is_refused_before_its_bytes_are_taken() -> None:
    decoder = Decoder(KINDS)
    with pytest.raises(FrameError):
        list(decoder.feed(struct.pack("!II", 10, wire.MAX_PAYLOAD + 1) + b"x" * 10))


def test_encode_refuses_what_the_decoder_would_refuse() -> None:
    with pytest.raises(FrameError, match="header"):
        encode("a", {"text": "x" * wire.MAX_HEADER})
    with pytest.raises(FrameError, match="payload"):
        encode("a", {}, bytes(wire.MAX_PAYLOAD + 1))


@given(JSON)
def test_json_values_survive_the_way_there_and_back(value: object) -> None:
    assert load(dump(value), surrogates=True) == json.loads(json.dumps(value))


def test_names_that_are_not_utf8_survive_where_they_are_wanted() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")
    assert load(dump({"path": name}), surrogates=True) == {"path": name}
    assert load(dump({"path": name})) == {"path": "caf?"}


def test_a_pair_of_surrogates_is_the_one_character_it_stands_for() -> None:
    assert load(rb'["\ud83d\ude00", "\ud83d"]') == ["😀", "?"]


def test_a_value_that_would_fill_memory_is_refused_however_small_its_bytes() -> None:
    with pytest.raises(FrameError, match="more than 500000 values"):
        load(b"[" + b"[]," * 600_000 + b"1]")
    with pytest.raises(FrameError, match="more than 10 values"):
        dump(list(range(20)), most=10)


def test_commas_and_brackets_inside_of_strings_are_not_values() -> None:
    text = '[],{}"\\' * 200_000
    assert load(dump([text, text])) == [text, text]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_not_sent(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump(value)


def wire_without_c(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("wire_without_c", wire.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "_json", None)
        spec.loader.exec_module(module)
    return module


def test_a_python_without_the_c_half_of_json_speaks_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = wire_without_c(monkeypatch)
    assert hasattr(other, "json")
    values: list[Any] = [None, [1, -2.5, True], {"a": {"b": [[], {}, "é\ud800\n"]}}, "x", 0]
    for value in values:
        for ascii_only in (True, False):
            text = wire.to_json(value, ascii_only=ascii_only)
            assert other.to_json(value, ascii_only=ascii_only) == text
            assert other.from_json(text) == wire.from_json(text) == value
    for text in ("", "[1", "NaN", "1 2", "[1,]", "\ufeff1", '"\n"'):
        for half in (wire, other):
            with pytest.raises(ValueError, match=r"[a-z]"):
                half.from_json(text)


def test_a_value_inside_of_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(ValueError, match="Circular reference"):
        dump(value)
    with pytest.raises(TypeError, match="Object of type set is not JSON serializable"):
        dump({1, 2})
