"""Tables of data: JSON, and parquet with its reader and without."""

from __future__ import annotations

import pytest

from kvledger.tasks import hub


def test_lists_in_json_and_parquet_without_its_reader(tmp_path, monkeypatch):
    import sys

    path = tmp_path / "a.json"
    path.write_text('[{"x": 1}, {"x": 2}]')
    assert [row["x"] for row in hub.rows(path)] == [1, 2]
    path = tmp_path / "b.json"
    path.write_text('{"x": 1}')
    with pytest.raises(ValueError, match="expected a JSON list of objects"):
        hub.rows(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "c.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"c\.parquet is a parquet file, which needs pyarrow: pip install pyarrow"):
        hub.rows(path)


def test_parquet_is_read_where_its_reader_is_installed(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow reads parquet files; pip install pyarrow")
    from pyarrow import parquet

    rows = [{"x": 1, "y": [{"a": "b"}]}, {"x": 2, "y": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(hub.rows(tmp_path / "a.parquet")) == rows
