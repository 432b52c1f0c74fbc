"""Which columns of a table hold encoded pictures or videos, and how many each cell has, told without reading them.

Promises counts that are true of missing cells and of lists, for parquet from the smallest column that knows them. Reading what
a cell holds is `table_cells`; what a column means is for annotations to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class CellColumns:
    """Columns that hold bytes: `single` a medium in a cell, `lists` several, `lost` in forms in which none can be named."""

    single: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return name in self.single or name in self.lists or name in self.lost

    @property
    def named(self) -> tuple[str, ...]:
        """The columns whose media can be named."""
        return (*self.single, *self.lists)


NO_CELLS = CellColumns()


def cell_columns(schema: pa.Schema) -> CellColumns:
    """The columns with bytes: binary, the struct with `bytes` that image datasets use, and lists of either."""
    found: dict[str, list[str]] = {"single": [], "lists": [], "lost": []}
    for field in schema:
        if _is_medium(field.type):
            found["single"].append(field.name)
        elif _is_list(field.type) and _is_medium(field.type.value_type):
            found["lists"].append(field.name)
        elif _holds_bytes(field.type):
            found["lost"].append(field.name)
    return CellColumns(*(tuple(sorted(names)) for names in found.values()))


def counts(cells: pa.Array) -> pa.Array:
    """Media of each cell, int32 `[rows]`: 1, or the length of a list; null where the cell is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_list(cells.type):
        return pc.list_value_length(cells).cast(pa.int32())  # pyright: ignore[reportAttributeAccessIssue]
    return pc.if_else(cells.is_valid(), pa.scalar(1, pa.int32()), pa.scalar(None, pa.int32()))  # pyright: ignore[reportAttributeAccessIssue]


def column_that_counts(metadata: pq.FileMetaData, name: str) -> str | None:
    """What to read of a parquet file for the `counts` of a column; None where the file itself says that no cell is missing."""
    schema = metadata.schema
    leaves = [at for at in range(len(schema)) if f"{schema.column(at).path}.".startswith(f"{name}.")]
    for at in leaves:
        if schema.column(at).path != name and not _is_bytes_leaf(schema.column(at)):
            return schema.column(at).path
    if [schema.column(at).path for at in leaves] == [name]:
        said = [metadata.row_group(group).column(leaves[0]).statistics for group in range(metadata.num_row_groups)]
        if all(one is not None and one.has_null_count and one.null_count == 0 for one in said):
            return None
    return name


def _is_bytes_leaf(column: Any) -> bool:
    return column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "NONE"


def _is_medium(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return _holds_bytes(kind.value_type) if _is_list(kind) else _is_binary(kind)
