"""Seeded damage to signed documents that knows what they are made of: JSON, base64 inside of JSON, and DER or JSON inside of base64.

A document is read into a tree that keeps what JSON parsers lose (keys twice, spellings of numbers), one to three places of it are changed,
and it is written again. Which of the results may be believed is the tests' matter.
"""

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias


@dataclass
class Text:
    """A value as it will stand in the document, JSON or not."""

    raw: str


@dataclass
class Members:
    """A JSON object that may name a key twice."""

    pairs: list[tuple[str, Any]]


Place: TypeAlias = tuple[Any, int]
"""A list, or the pairs of Members, and where in it."""

ODD = ["null", "true", "0", "-1", "1", "1.0", "1e400", "-0", "NaN", "Infinity", str(1 << 63), str(1 << 64), "9" * 400, "9" * 5000]
ODD += [
    '""',
    '"\\ud800"',
    '"\\u0000"',
    '"' + "A" * 5000 + '"',
    "[]",
    "{}",
    "[[[]]]",
    "[" * 2000 + "]" * 2000,
    '{"a":' * 500 + "1" + "}" * 500,
]
SPELLINGS: list[Callable[[str], str]] = [
    str.upper,
    str.lower,
    lambda text: text + "\n",
    lambda text: " " + text,
    lambda text: text.rstrip("="),
    lambda text: text + "=",
    lambda text: text.replace("+", "-").replace("/", "_"),
    lambda text: "0" + text,
    lambda text: "+" + text,
    lambda text: text + ".0",
    lambda text: text.replace("0", "\u0660"),
    lambda text: text[: len(text) // 2],
    lambda text: text * 2,
    lambda text: text.replace("\n\n", "\n\n\n", 1),
    lambda text: text.replace(".", "\u3002", 1),
    lambda _: "",
]


def mutate(data: bytes, chance: Random, partners: list[bytes]) -> bytes:
    """`data` with some damage, never as it was; parts may come from `partners`, valid documents of the same kind."""
    while True:
        made = _mutate(data, chance, partners)
        if made not in (data, *partners):
            return made


def _mutate(data: bytes, chance: Random, partners: list[bytes]) -> bytes:
    if chance.random() < 0.15:
        return _damage_bytes(data, chance, partners)
    document = [_read(json.loads(data))]
    others = [_read(json.loads(one)) for one in partners]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _mutate_json(document, chance, others)
    return _write(document[0]).encode("utf-8", "surrogatepass")


def _mutate_json(document: list[Any], chance: Random, others: list[Any]) -> None:
    places = _places(document)
    holder, index = chance.choice(places)
    name, value = holder[index] if isinstance(holder[index], tuple) else (None, holder[index])
    put: Callable[[Any], None] = lambda new: holder.__setitem__(index, new if name is None else (name, new))  # noqa: E731
    if isinstance(value, str) and chance.random() < 0.6:
        put(_mutate_text(value, chance, others))
        return
    kind = chance.randrange(8)
    if kind == 0:
        put(Text(chance.choice(ODD)))
    elif kind == 1 and holder is not document:
        del holder[index]
    elif kind == 2 and holder is not document:
        holder.insert(chance.randrange(len(holder) + 1), deepcopy(holder[index]))
    elif kind == 3 and name is not None:
        holder[index] = (_rename(name, chance), value)
    elif kind == 4 and name is not None:
        # A second reading of the same field, before or after the first.
        other_holder, other = chance.choice(places)
        found = other_holder[other]
        twin = deepcopy(found[1] if isinstance(found, tuple) else found)
        holder.insert(index + chance.randrange(2), (_rename(name, chance), twin))
    elif kind == 5:
        other_holder, other = chance.choice(places)
        found = other_holder[other]
        put(deepcopy(found[1] if isinstance(found, tuple) else found))
    elif kind == 6 and others:
        matching = _named(chance.choice(others), name) if name is not None else []
        if matching:
            put(deepcopy(chance.choice(matching)))
    elif isinstance(value, Members | list):
        pairs = value.pairs if isinstance(value, Members) else value
        chance.shuffle(pairs)


def _mutate_text(text: str, chance: Random, others: list[Any]) -> str:
    inner = _decode(text)
    if inner is None or chance.random() < 0.15:
        return chance.choice(SPELLINGS)(text)
    if inner[:1] == b"{" and inner[-1:] == b"}":
        made = [_read(json.loads(inner))]
        _mutate_json(made, chance, others)
        return base64.b64encode(_write(made[0]).encode("utf-8", "surrogatepass")).decode()
    spare = [found for other in others for found in (_decode(one) for one in _strings(other)) if found]
    if inner[:1] == b"\x30" and chance.random() < 0.8:
        return base64.b64encode(_mutate_der(inner, chance, spare)).decode()
    return base64.b64encode(_damage_bytes(inner, chance, spare)).decode()


def _damage_bytes(data: bytes, chance: Random, partners: list[bytes]) -> bytes:
    if not data:
        return chance.randbytes(chance.randrange(1, 9))
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.choice((1, 1, 2, 8, 64, 4096)))
    kind = chance.randrange(6)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:end] + data[at:]
    if kind == 3:
        return data[:at] + chance.randbytes(end - at) + data[end:]
    if kind == 4 and partners:
        other = chance.choice(partners)
        return data[:at] + other[at:]
    return data[:at]


# DER: values are [tag, content], content is bytes or a list of values; what wraps DER (octet and bit strings) is opened as well.


def _mutate_der(data: bytes, chance: Random, spare: list[bytes]) -> bytes:
    tree = _read_der(data)
    if tree is None:
        return _damage_bytes(data, chance, spare)
    places: list[tuple[list[Any], int]] = []

    def walk(values: list[Any]) -> None:
        for index, value in enumerate(values):
            places.append((values, index))
            if isinstance(value[1], list):
                walk(value[1])

    walk(tree)
    values, index = chance.choice(places)
    tag, content, prefix = values[index]
    kind = chance.randrange(8)
    if kind == 0:
        values[index] = (chance.randrange(256), content, prefix)
    elif kind == 1:
        del values[index]
    elif kind == 2:
        values.insert(index, deepcopy(values[index]))
    elif kind == 3:
        values[index] = (tag, _damage_bytes(_write_der(content), chance, spare), prefix)
    elif kind == 4:
        values[index] = (tag, chance.choice((b"", b"\0", b"\xff" * 9, b"\x80" * 200, b"\0" * 70_000)), prefix)
    elif kind == 5 and spare:
        other = _read_der(chance.choice(spare))
        if other:
            values[index] = chance.choice(other)
    elif kind == 6:
        return _with_length(data, chance)
    else:
        other_values, other_index = chance.choice(places)
        values[index] = deepcopy(other_values[other_index])
    return _write_der(tree)


def _with_length(data: bytes, chance: Random) -> bytes:
    """Another spelling of the first length, or a wrong one."""
    head, size = (4, int.from_bytes(data[2:4], "big")) if data[1] == 0x82 else (2, data[1])
    lengths = [
        b"\x80",
        b"\x83" + size.to_bytes(3, "big"),
        b"\x84" + b"\xff" * 4,
        b"\x88" + b"\x7f" * 8,
        bytes([0x82]) + (size + 1).to_bytes(2, "big"),
    ]
    return data[:1] + chance.choice(lengths) + data[head:]


def _read_der(data: bytes) -> list[Any] | None:
    values = []
    while data:
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start], "big")
        if start > 5 or start + size > len(data):
            return None
        tag, content = data[0], data[start : start + size]
        wraps = 1 if tag == 0x03 else 0
        inner = (
            _read_der(content[wraps:]) if tag & 0x20 or (tag in (0x03, 0x04) and content[wraps : wraps + 1] in (b"\x30", b"\x04")) else None
        )
        values.append((tag, content, b"") if inner is None else (tag, inner, content[:wraps] if not tag & 0x20 else b""))
        data = data[start + size :]
    return values


def _write_der(content: bytes | list[Any]) -> bytes:
    if isinstance(content, bytes):
        return content
    parts = []
    for tag, inner, prefix in content:
        body = prefix + _write_der(inner)
        size = len(body)
        length = (
            bytes([size])
            if size < 0x80
            else bytes([0x80 | (size.bit_length() + 7) // 8]) + size.to_bytes((size.bit_length() + 7) // 8, "big")
        )
        parts.append(bytes([tag]) + length + body)
    return b"".join(parts)


# JSON


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return Members([(name, _read(one)) for name, one in value.items()])
    if isinstance(value, list):
        return [_read(one) for one in value]
    return value


def _write(value: Any) -> str:
    if isinstance(value, Members):
        return "{" + ",".join(f"{json.dumps(name)}:{_write(one)}" for name, one in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_write(one) for one in value) + "]"
    if isinstance(value, Text):
        return value.raw
    return json.dumps(value, ensure_ascii=False)


def _places(holder: list[Any]) -> list[Place]:
    found: list[Place] = []
    for index, one in enumerate(holder):
        found.append((holder, index))
        value = one[1] if isinstance(one, tuple) else one
        if isinstance(value, Members):
            found += _places(value.pairs)
        elif isinstance(value, list):
            found += _places(value)
    return found


def _named(value: Any, name: str) -> list[Any]:
    holder, found = [value], []
    for where, index in _places(holder):
        one = where[index]
        if isinstance(one, tuple) and one[0] == name:
            found.append(one[1])
    return found


def _strings(value: Any) -> list[str]:
    values = [one[index] for one, index in _places([value])]
    return [text for text in (one[1] if isinstance(one, tuple) else one for one in values) if isinstance(text, str)]


def _rename(name: str, chance: Random) -> str:
    snake = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
    return chance.choice((name, snake, name.upper(), name.capitalize(), name + " ", name + "\u200b", "x-" + name, ""))


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if len(text) >= 8 else None
    except ValueError:
        return None
