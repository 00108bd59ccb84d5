"""A pickle of plain containers and numbers, read as text is: no class is looked up, nothing is called. Standard library alone.

PyTorch's Flight Recorder writes such files. probe.py takes this file's text along into jobs.
"""

from __future__ import annotations

import pickletools
from typing import Any

_MARK = object()
_VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
    ]
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(data: bytes) -> Any:
    """Raises ValueError for what is no pickle, or holds more than containers, texts and numbers."""
    reading = _Reading()
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name == "STOP":
                return reading.stack.pop()
            reading.take(code.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"a broken pickle: {error!r}") from error
    raise ValueError("a pickle without an end")


class _Reading:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("PROTO", "FRAME"):
            return
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        else:
            self._gather(name)

    def _gather(self, name: str) -> None:
        """Into a container: one value, or all since the mark."""
        if name in ("APPEND", "SETITEM"):
            items = [self.stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
        elif name in ("APPENDS", "SETITEMS", "TUPLE", "LIST", "DICT", "ADDITEMS"):
            items = []
            while (item := self.stack.pop()) is not _MARK:
                items.append(item)
            items.reverse()
        else:
            raise ValueError(f"a pickle that does more than hold values ({name})")
        if name in ("TUPLE", "LIST"):
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            self.stack[-1].extend(items)
        else:
            if name == "DICT":
                self.stack.append({})
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
