"""A network as an ONNX file, written without the package onnx."""

from __future__ import annotations


def protobuf(*entries: tuple[int, int | str | bytes]) -> bytes:
    """A protocol buffer message of (field number, value) entries; integers below 2¹⁴."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])

    message = b""
    for number, value in entries:
        if isinstance(value, int):
            message += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            message += varint(number << 3 | 2) + varint(len(content)) + content
    return message


def sigmoid_network(size: int) -> bytes:
    """An ONNX file of y = sigmoid(x), x of shape (1, 3, size, size)."""
    dimensions = protobuf(*((1, protobuf((1, length))) for length in (1, 3, size, size)))
    kind = protobuf((1, protobuf((1, 1), (2, dimensions))))
    node = protobuf((1, "x"), (2, "y"), (4, "Sigmoid"))
    x, y = (protobuf((1, name), (2, kind)) for name in "xy")
    graph = protobuf((1, node), (2, "graph"), (11, x), (12, y))
    return protobuf((1, 8), (7, graph), (8, protobuf((2, 13))))
