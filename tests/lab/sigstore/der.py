"""As much DER as a timestamp needs: values are bytes, one function a type; reading is one level at a time."""

from datetime import UTC, datetime

SHA256 = "2.16.840.1.101.3.4.2.1"


def encode(tag: int, *parts: bytes) -> bytes:
    """One value of any tag."""
    body = b"".join(parts)
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def sequence(*parts: bytes) -> bytes:
    return encode(0x30, *parts)


def set_of(*parts: bytes) -> bytes:
    """In DER a SET OF is sorted."""
    return encode(0x31, *sorted(parts))


def integer(value: int) -> bytes:
    return encode(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(value: bytes) -> bytes:
    return encode(0x04, value)


def utf8(text: str) -> bytes:
    return encode(0x0C, text.encode())


def generalized_time(moment: datetime) -> bytes:
    return encode(0x18, moment.astimezone(UTC).strftime("%Y%m%d%H%M%SZ").encode())


def utc_time(moment: datetime) -> bytes:
    return encode(0x17, moment.astimezone(UTC).strftime("%y%m%d%H%M%SZ").encode())


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = bytearray()
    for number in (first * 40 + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        body += bytes(reversed(groups))
    return encode(0x06, bytes(body))


def read_all(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """The values in a row: tag, content, and the whole value as it stands. Raises IndexError for what is cut off."""
    found = []
    while data:
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start], "big")
        found.append((data[0], data[start : start + size], data[: start + size]))
        data = data[start + size :]
    return found
