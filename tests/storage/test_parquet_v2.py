"""What stands in the Parquet files, read by us, pyarrow, DuckDB and Polars."""

import json

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from arrowquant_nb import OutputError, ParquetV2Extended, ShapeMismatchError, ValidationError, open_quantized
from arrowquant_nb.storage.parquet_v2 import SCHEMA, Tile, TileFileWriter

# The contract, column by column: name, type, required.
COLUMNS = [
    ("layer_name", pa.string(), True),
    ("tile", pa.int32(), True),
    ("row_start", pa.int64(), True),
    ("row_count", pa.int64(), True),
    ("bit_width", pa.int8(), True),
    ("group_size", pa.int32(), True),
    ("quant_type", pa.string(), True),
    ("method", pa.string(), True),
    ("grid", pa.string(), True),
    ("data", pa.binary(), True),
    ("scales", pa.binary(), False),
    ("zero_points", pa.binary(), False),
    ("rotation_seed", pa.int64(), False),
    ("low_rank_a", pa.binary(), False),
    ("low_rank_b", pa.binary(), False),
    ("equalization", pa.binary(), False),
    ("row_xxh3", pa.binary(8), True),
    ("sqnr_db", pa.float64(), True),
    ("cosine", pa.float64(), True),
    ("mse", pa.float64(), True),
    ("w_absmax", pa.float64(), True),
]
BINARY = ["data", "scales", "zero_points", "low_rank_a", "low_rank_b", "equalization"]


@pytest.fixture(scope="module")
def folder(models):
    return models.quantized("dit")


@pytest.fixture(scope="module")
def data_files(folder):
    return sorted(p for p in folder.glob("*.parquet") if p.name != "stats.parquet")


def tile(number=0, row_start=0, rows=4, data=None, **changes):
    packed = np.arange(rows * 8, dtype=np.uint8).reshape(rows, 8) if data is None else data
    values = {
        "layer_name": "a.weight",
        "tile": number,
        "row_start": row_start,
        "row_count": rows,
        "bit_width": 4,
        "group_size": 16,
        "quant_type": "int4",
        "method": "uls",
        "grid": "minimum",
        "data": packed,
        "scales": np.ones((rows, 1), np.float16),
        "zero_points": np.zeros((rows, 1), np.float16),
        "sqnr_db": 20.0,
        "cosine": 0.99,
        "mse": 1e-3,
        "w_absmax": 1.0,
    }
    return Tile(**(values | changes))


def write(path, *tiles, **metadata):
    writer = TileFileWriter(path)
    for item in tiles:
        writer.append(item)
    return writer.close(metadata)


def test_every_data_file_has_the_columns_and_types_of_the_contract(data_files):
    assert [(f.name, f.type, not f.nullable) for f in SCHEMA] == COLUMNS
    for path in data_files:
        schema = pq.read_schema(path).remove_metadata()
        assert [(f.name, f.type, not f.nullable) for f in schema] == COLUMNS


def test_nothing_is_compressed_and_binaries_are_plain_without_statistics(data_files):
    for path in data_files:
        footer = pq.read_metadata(path)
        for group in range(footer.num_row_groups):
            assert footer.row_group(group).num_rows == 1
            for index, (name, kind, _) in enumerate(COLUMNS):
                chunk = footer.row_group(group).column(index)
                assert chunk.compression == "UNCOMPRESSED"
                if pa.types.is_binary(kind):
                    assert not chunk.has_dictionary_page
                    assert set(chunk.encodings) <= {"PLAIN", "RLE"}
                assert chunk.is_stats_set == (name in ("sqnr_db", "cosine"))


def test_the_row_hash_is_xxh3_over_all_binary_columns_in_column_order(data_files):
    for row in pq.read_table(data_files[0]).to_pylist():
        joined = b"".join(row[c] for c in BINARY if row[c] is not None)
        assert row["row_xxh3"] == xxhash.xxh3_64_digest(joined)


def test_the_key_value_metadata_says_what_the_tensor_is(folder, data_files):
    path = next(p for p in data_files if "to_q" in p.name)
    facts = json.loads(pq.read_metadata(path).metadata[b"arrowquant"])
    assert facts["schema_version"].split(".")[0] == "2"
    assert facts["layer_name"] == "transformer_blocks.0.attn1.to_q.weight"
    assert (facts["shape"], facts["dtype"], facts["modality"]) == ([128, 128], "float16", "image")
    assert facts["is_diffusion_model"] is True
    assert "i*bit" in facts["pack_order"]
    assert {"time_aware", "spatial", "activation_stats"} <= facts.keys()
    assert len(facts["source_xxh3"]) == 32


def test_duckdb_reads_a_glob_of_files_and_their_metadata(folder):
    names = open_quantized(folder)
    rows = duckdb.sql(
        "select layer_name, avg(sqnr_db), min(cosine), sum(octet_length(data)) "
        f"from read_parquet('{folder}/0*.parquet') group by 1"
    ).fetchall()
    assert {r[0] for r in rows} == {n for n in names if not names[n].kept}
    assert all(15 < sqnr < 60 and cosine > 0.98 and nbytes > 0 for _, sqnr, cosine, nbytes in rows)
    [(raw,)] = duckdb.sql(
        f"select value from parquet_kv_metadata('{folder}/*to_q*.parquet') where key = 'arrowquant' limit 1"
    ).fetchall()
    assert json.loads(raw)["pack_order"]


def test_polars_scans_kept_and_quantized_files_as_one_table(folder, data_files):
    table = pl.scan_parquet(data_files).select("layer_name", "quant_type", "sqnr_db").collect()
    assert set(table["layer_name"]) == set(open_quantized(folder))
    assert set(table["quant_type"]) == {"int4", "int8", "kept"}


def test_pyarrow_alone_reads_the_whole_folder_as_one_table(folder, data_files):
    table = pq.read_table(data_files, page_checksum_verification=True)
    assert table.num_rows == len(open_quantized(folder))


def test_the_statistics_table_has_one_row_per_tensor_and_the_error_at_every_width_tried(folder):
    with open_quantized(folder) as model:
        stats = model.stats()
        assert stats["layer_name"].to_pylist() == list(model)
    rows = {r["layer_name"]: r for r in stats.to_pylist()}
    linear = rows["transformer_blocks.0.attn1.to_q.weight"]
    assert linear["sqnr_db_int4"] == linear["sqnr_db"]
    assert linear["sqnr_db_int2"] is None
    assert rows["proj_out_2.weight"]["action"] == "kept"
    assert duckdb.sql(f"select count(*) from '{folder}/stats.parquet'").fetchall() == [(len(rows),)]


def test_a_written_tile_comes_back_as_it_was(tmp_path):
    first, second = tile(), tile(1, 4, rows=2)
    references = write(tmp_path / "a.parquet", first, second, shape=[6, 16])
    rows = list(ParquetV2Extended(tmp_path / "a.parquet").rows())
    assert [r["data"] for r in rows] == [first.data.tobytes(), second.data.tobytes()]
    raw = (tmp_path / "a.parquet").read_bytes()
    for reference, stored in zip(references, (first, second), strict=True):
        offset, nbytes = reference.ranges["data"]
        assert raw[offset : offset + nbytes] == stored.data.tobytes()
        offset, nbytes = reference.ranges["scales"]
        assert raw[offset : offset + nbytes] == stored.scales.tobytes()


def test_an_empty_payload_is_stored_too(tmp_path):
    write(tmp_path / "a.parquet", tile(data=np.zeros((4, 0), np.uint8), scales=None, zero_points=None))
    [row] = ParquetV2Extended(tmp_path / "a.parquet").rows()
    assert row["data"] == b""
    assert row["scales"] is None


def test_a_data_flip_fails_the_page_checksum(tmp_path):
    [reference] = write(tmp_path / "a.parquet", tile())
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[reference.ranges["data"][0] + 3] ^= 1
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(ValidationError, match=r"a\.parquet"):
        list(ParquetV2Extended(tmp_path / "a.parquet").rows())


def test_bytes_that_do_not_match_their_row_hash_are_refused_without_page_checksums(tmp_path):
    write(tmp_path / "a.parquet", tile())
    table = pq.read_table(tmp_path / "a.parquet")
    position = table.schema.get_field_index("data")
    forged = table.set_column(position, SCHEMA.field("data"), pa.array([b"x" * 32], pa.binary()))
    pq.write_table(forged, tmp_path / "b.parquet", compression="none")
    with pytest.raises(ValidationError, match="do not match their hash"):
        list(ParquetV2Extended(tmp_path / "b.parquet").rows())


@pytest.mark.parametrize("version", ["3.0", "1.9", "x", "None"])
def test_another_major_version_is_refused(tmp_path, version):
    write(tmp_path / "a.parquet", tile(), schema_version=version)
    with pytest.raises(ValidationError, match="schema version"):
        ParquetV2Extended(tmp_path / "a.parquet")


def test_a_newer_minor_version_is_read(tmp_path):
    write(tmp_path / "a.parquet", tile(), schema_version="2.7")
    assert ParquetV2Extended(tmp_path / "a.parquet").n_tiles == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"\0" * 64])
def test_what_is_not_parquet_is_refused(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValidationError, match=r"a\.parquet"):
        ParquetV2Extended(tmp_path / "a.parquet")


@pytest.mark.parametrize("metadata", [{}, {"arrowquant": "{"}, {"arrowquant": "[]"}, {"arrowquant": "[" * 100_000}])
def test_parquet_without_our_metadata_is_refused(tmp_path, metadata):
    pq.write_table(pa.table({"layer_name": ["a"]}).replace_schema_metadata(metadata), tmp_path / "a.parquet")
    with pytest.raises(ValidationError, match=r"a\.parquet"):
        ParquetV2Extended(tmp_path / "a.parquet")


def test_foreign_columns_under_our_metadata_are_refused(tmp_path):
    table = pa.table({"layer_name": ["a"]}).replace_schema_metadata({"arrowquant": '{"schema_version": "2.0"}'})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValidationError, match=r"a\.parquet"):
        list(ParquetV2Extended(tmp_path / "a.parquet").rows())


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="missing"):
        ParquetV2Extended(tmp_path / "missing.parquet")


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError):
        TileFileWriter(tmp_path / "nowhere" / "a.parquet")


def test_tiles_of_a_kept_tensor_cannot_be_asked_for(folder):
    with open_quantized(folder) as model, pytest.raises(ShapeMismatchError):
        list(model["proj_out_2.weight"].tiles())
