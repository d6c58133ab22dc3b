"""The numeric arrays in a pickle, without unpickling it: nothing that it names is imported or run.

Python's `pickle.Unpickler` builds what a pickle names by `find_class`. Here that returns classes of
this module alone: for NumPy's arrays and types, SciPy's sparse columns and chumpy's wrappers one
that keeps what it was given, and for all other names one that ignores it. The arrays are then made
from the bytes that were kept.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from eavatar.errors import UserError

NUMBER = re.compile(r"[fiu][1248]")  # types of numbers, as NumPy names them


class _Ignored:
    """Takes the place of anything that a pickle names."""

    def __init__(self, *given: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Kept(_Ignored):
    """The arguments and the state that a pickle gives an object."""

    given: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_Kept):
    """A NumPy type."""


class _Array(_Kept):
    """A NumPy array."""


class _Columns(_Kept):
    """SciPy's matrix of sparse columns."""


class _Wrapped(_Kept):
    """chumpy's array, which holds a NumPy array as ``x``."""


def _reconstruct(kind: Any, *given: Any) -> Any:
    """What NumPy's and Python's functions of this name do: an object of a class, without state."""
    return kind() if isinstance(kind, type) and issubclass(kind, _Ignored) else _Ignored()


def _encode(text: Any, *given: Any) -> bytes:
    """The bytes that pickles before protocol 3 hold as text."""
    return text.encode("latin1") if isinstance(text, str) else b""


KEPT: dict[str, Any] = {  # by the name alone: their modules were renamed over the years
    "_reconstruct": _reconstruct,
    "_reconstructor": _reconstruct,
    "encode": _encode,
    "ndarray": _Array,
    "dtype": _Type,
    "csc_matrix": _Columns,
    "Ch": _Wrapped,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        return KEPT.get(global_name, _Ignored)

    def persistent_load(self, pid: Any) -> Any:
        return _Ignored()


def read_pickled_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The numeric arrays of a pickled dictionary, by name; sparse ones dense, others left out.

    The same of a ``.npy`` file that holds a pickled dictionary.

    Raises:
        UserError: the file is no such pickle, or damaged.
    """
    try:
        with path.open("rb") as file:
            content = _read(file)
        return {
            str(name): array
            for name, value in content.items()
            if (array := _to_array(value)) is not None
        }
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.") from error
    except Exception as error:  # of many types, on damaged pickles
        raise UserError(
            f"{path} is a Python pickle, but damaged or no dictionary of arrays "
            f"({type(error).__name__}); fetch it again."
        ) from error


def _read(file: BinaryIO) -> dict[Any, Any]:
    if file.read(6) == np.lib.format.MAGIC_PREFIX:
        file.seek(0)
        major, _ = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        (header if major == 1 else np.lib.format.read_array_header_2_0)(file)
        content = _Reader(file, encoding="latin1").load().state[-1][0]
    else:
        file.seek(0)
        content = _Reader(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise TypeError(type(content).__name__)
    return content


def _to_array(value: Any) -> NDArray[Any] | None:
    """The array that an object of a pickle stands for; None if it is none of numbers."""
    if isinstance(value, _Wrapped) and isinstance(value.state, dict):
        return _to_array(value.state.get("x"))
    if isinstance(value, _Columns) and isinstance(value.state, dict):
        return _to_dense(value.state)
    if not (isinstance(value, _Array) and isinstance(value.state, tuple)):
        return None
    _, shape, kind, is_fortran, content = value.state
    stored = content.encode("latin1") if isinstance(content, str) else content
    if not (isinstance(kind, _Type) and NUMBER.fullmatch(str(kind.given[0]))):
        return None
    order = str(kind.state[1]) if kind.state else "="
    array = np.frombuffer(stored, np.dtype(kind.given[0]).newbyteorder(order))
    return array.reshape(shape, order="F" if is_fortran else "C")


def _to_dense(state: dict[str, Any]) -> NDArray[Any]:
    data, indices, starts = (
        np.asarray(_to_array(state[name])) for name in ("data", "indices", "indptr")
    )
    dense = np.zeros(state["_shape"] if "_shape" in state else state["shape"])
    dense[indices, np.repeat(np.arange(dense.shape[1]), np.diff(starts))] = data
    return dense
