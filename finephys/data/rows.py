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

Row = dict[str, Any]

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
    columns: dict[str, list[Any]] = {name: [] for name in ROW_SCHEMA.names}
    for row in rows:
        arrays = {name: np.ascontiguousarray(value) for name, value in row.items() if isinstance(value, np.ndarray)}
        others = {name: _plain(value) for name, value in row.items() if name not in arrays}
        columns["clip_id"].append(others.pop("clip_id"))
        columns["error"].append(others.pop("error", None))
        columns["scalars"].append(json.dumps(others))
        columns["arrays"].append(safe.save(arrays))
    return pa.table(columns, schema=ROW_SCHEMA)


def to_rows(table: pa.Table) -> list[Row]:
    """What to_table packed; arrays are the rows' own and writable."""
    rows = []
    for packed in table.to_pylist():
        arrays = {name: value.copy() for name, value in safe.load(packed["arrays"]).items()}
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


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
