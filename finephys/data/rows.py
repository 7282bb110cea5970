"""Rows between the hops, and the tables that carry them.

Path:    between any two hops
Letters: none
Units:   none

Between hops a row is four plain Arrow columns: clip_id, error (null while all is well), scalars (JSON: numbers,
booleans, strings) and arrays (safetensors bytes). Clips differ in length, which Ray's tensor columns and batching take
badly; bytes pass through every batch, spill and network unchanged, and nothing is ever unpickled.

A bad clip is data: it leaves with its `error` set, skips the hops after it, and lands in the failures table.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy as safe
from numpy.typing import NDArray

Row = dict[str, Any]

# What numpy's types are called in a safetensors header.
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}

ROW_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("scalars", pa.string(), nullable=False),
        pa.field("arrays", pa.binary(), nullable=False),
    ]
)


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows of numpy arrays and plain scalars as a table of ROW_SCHEMA. A row needs a clip_id."""
    clip_ids, errors, scalars, arrays_of = [], [], [], []
    for row in rows:
        arrays_of.append({name: value for name, value in row.items() if isinstance(value, np.ndarray)})
        others = {name: _plain(value) for name, value in row.items() if name not in arrays_of[-1]}
        clip_ids.append(others.pop("clip_id"))
        errors.append(others.pop("error", None))
        scalars.append(json.dumps(others))
    columns = [pa.array(clip_ids, pa.string()), pa.array(errors, pa.string()), pa.array(scalars, pa.string())]
    return pa.table([*columns, _safetensors(arrays_of)], schema=ROW_SCHEMA)


def to_rows(table: pa.Table) -> list[Row]:
    """What to_table packed; arrays are the rows' own and writable."""
    rows = []
    for packed in table.to_pylist():
        # load puts each array into a bytearray of its own.
        arrays = safe.load(packed["arrays"])
        row = {"clip_id": packed["clip_id"], **json.loads(packed["scalars"]), **arrays}
        if packed["error"] is not None:
            row["error"] = packed["error"]
        rows.append(row)
    return rows


def collect_rows(batches: Iterator[pa.Table]) -> tuple[list[Row], list[Row]]:
    """All rows of some tables, sorted by clip_id: (the sound ones, the failures as clip_id and error)."""
    rows = [row for table in batches for row in to_rows(table)]
    rows.sort(key=lambda row: str(row["clip_id"]))
    return [row for row in rows if "error" not in row], [row for row in rows if "error" in row]


def guarded(hop: Callable[[Row], Row], row: Row) -> Row:
    """Apply a hop to one row; what is wrong with the clip becomes its `error`, and a row with one passes by."""
    if row.get("error") is not None:
        return {"clip_id": row["clip_id"], "error": row["error"]}
    try:
        return hop(row)
    except ValueError as error:
        return {"clip_id": row["clip_id"], "error": f"{hop.__name__.strip('_')}: {error}"}


def _safetensors(arrays_of: Sequence[dict[str, NDArray[Any]]]) -> pa.Array:
    """Each row's arrays as the bytes of a safetensors file, written once, where they stay.

    safetensors.numpy.save copies them three times before they are a column: 2.5 ms a clip where this takes 0.7.
    """
    headers, ends = [], [0]
    for arrays in arrays_of:
        entries, end = {}, 0
        for name, value in arrays.items():
            start, end = end, end + value.nbytes
            entries[name] = {
                "dtype": _DTYPES[value.dtype.name],
                "shape": value.shape,
                "data_offsets": (start, end),
            }
        text = json.dumps(entries).encode()
        headers.append(len(text).to_bytes(8, "little") + text)
        ends.append(ends[-1] + len(headers[-1]) + end)
    buffer = pa.allocate_buffer(ends[-1])
    memory = np.frombuffer(buffer, np.uint8)
    for start, header, arrays in zip(ends, headers, arrays_of):
        place = start + len(header)
        memory[start:place] = np.frombuffer(header, np.uint8)
        for value in arrays.values():
            # A view of the place in the array's own terms, so that numpy copies from any strides at once.
            memory[place : place + value.nbytes].view(value.dtype).reshape(value.shape)[...] = value
            place += value.nbytes
    offsets = pa.py_buffer(np.array(ends, np.int32))
    return pa.BinaryArray.from_buffers(pa.binary(), len(arrays_of), [None, offsets, buffer])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
