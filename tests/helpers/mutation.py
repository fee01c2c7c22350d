"""Random damage to files, from a seed."""

import json

import numpy as np

ABSURD = (None, True, -1, 0, 1e308, 2**63, 10**400, "", "../../x", "\x00", [], {}, [[[]]], "nan")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns the bytes of a file with one or a few changes."""
    for _ in range(rng.integers(1, 4)):
        data = _WAYS[rng.integers(len(_WAYS))](data, rng)
    return data


def _cut(data, rng):
    return data[: rng.integers(0, len(data) + 1)]


def _flip(data, rng):
    changed = bytearray(data)
    for position in rng.integers(0, max(len(data), 1), rng.integers(1, 9)):
        if position < len(changed):
            changed[position] ^= 1 << rng.integers(0, 8)
    return bytes(changed)


def _swap(data, rng):
    first, second, third = sorted(rng.integers(0, len(data) + 1, 3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _overwrite(data, rng):
    """Overwrites bytes, possibly of a size, by the largest or smallest numbers."""
    start, size = rng.integers(0, len(data) + 1), 1 << rng.integers(4)
    value = (b"\xff", b"\x00", b"\x7f", b"\x80")[rng.integers(4)]
    return data[:start] + value * size + data[start + size :]


def _insert(data, rng):
    start = rng.integers(0, len(data) + 1)
    return data[:start] + rng.bytes(rng.integers(1, 64)) + data[start:]


_WAYS = (_cut, _flip, _swap, _overwrite, _insert)


def damaged_json(content, rng: np.random.Generator) -> bytes:
    """Returns JSON with damaged text, or with a value replaced by an absurd one."""
    if rng.random() < 0.3:
        return damaged(json.dumps(content).encode(), rng)
    content = json.loads(json.dumps(content))
    holder = content
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[rng.integers(len(keys))]
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            break
        holder = inner
    value = ABSURD[rng.integers(len(ABSURD))]
    if rng.random() < 0.15 and isinstance(holder, dict):
        del holder[key]
    elif rng.random() < 0.15 and isinstance(holder, list):
        holder.append(value)
    else:
        holder[key] = value
    return json.dumps(content).encode()
