"""The embedded ClickHouse server's reading of statements, parameters and bodies: no engine, no socket."""

from __future__ import annotations

import gzip
import zlib

import lz4.frame
import pytest
import zstandard

from local.servers.clickhouse import (
    Compressor,
    Insert,
    QueryError,
    as_query_error,
    build_request,
    decompress,
    first_words,
    keeps_state,
    output_format,
    quoted,
    split_insert,
)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (b"INSERT INTO t FORMAT Native\n\n\x05rest", Insert(b"INSERT INTO t ", "Native", b"\n\x05rest")),
        (b"INSERT INTO t FORMAT Native\r\n\nrest", Insert(b"INSERT INTO t ", "Native", b"\nrest")),
        (b"insert into t(a) format tsv 1\n", Insert(b"insert into t(a) ", "tsv", b"1\n")),
        (b"INSERT INTO t VALUES (1), (2)", Insert(b"INSERT INTO t ", "Values", b" (1), (2)")),
        (
            b"/* FORMAT x */ INSERT INTO `a FORMAT b` (`format`) FORMAT CSV\n1",
            Insert(b"/* FORMAT x */ INSERT INTO `a FORMAT b` (`format`) ", "CSV", b"1"),
        ),
        (b"INSERT INTO t SELECT 1 FORMAT Null", None),
        (b"INSERT INTO t WITH 1 AS x SELECT x", None),
        (b"INSERT INTO t FROM INFILE 'x' FORMAT CSV", None),
        (b"SELECT 1 FORMAT Native", None),
        (b"", None),
    ],
)
def test_insert_is_split_after_exactly_one_line_break(sql: bytes, expected: Insert | None) -> None:
    assert split_insert(sql) == expected


def test_insert_select_over_the_rows_it_carries_names_its_input() -> None:
    sql = b"INSERT INTO t (a) SELECT upper(x) FROM (SELECT x FROM input('x String, y Enum8(\\'a\\' = 1)')) FORMAT Avro\nObj"
    insert = split_insert(sql)
    assert insert is not None
    assert insert.source is not None
    assert (insert.format, insert.data) == ("Avro", b"Obj")
    assert insert.source[1] == b"'x String, y Enum8(\\'a\\' = 1)'"
    assert split_insert(b"INSERT INTO t SELECT x FROM input('x String') FORMAT Values (1)") is not None
    assert split_insert(b"INSERT INTO t SELECT * FROM VALUES('x String', ('a')) FORMAT Null") is None


def test_insert_settings_stay_with_the_statement() -> None:
    insert = split_insert(b"INSERT INTO t (a) SETTINGS insert_deduplication_token = 'FORMAT x' FORMAT TSV\n1")
    assert insert == Insert(b"INSERT INTO t (a) SETTINGS insert_deduplication_token = 'FORMAT x' ", "TSV", b"1")


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (b"SELECT 1", "TabSeparated"),
        (b"SELECT 1\n FORMAT Native", "Native"),
        (b"SELECT 1 format JSON SETTINGS max_threads = 1;", "JSON"),
        (b"SELECT 'FORMAT x'", "TabSeparated"),
    ],
)
def test_output_format_is_the_clause_or_the_default(sql: bytes, expected: str) -> None:
    assert output_format(sql, "TabSeparated") == expected


def test_leading_comments_do_not_hide_the_verb() -> None:
    assert first_words(b"-- a\n/* b */ create or replace temporary table t (a UInt8)")[0] == "CREATE"
    assert keeps_state(first_words(b"/* x */ CREATE TEMPORARY TABLE t (a UInt8)"))
    assert keeps_state(first_words(b"SET max_threads = 1"))
    assert not keeps_state(first_words(b"CREATE TABLE t (a UInt8)"))


def test_parameters_are_sorted_into_settings_query_parameters_and_transport() -> None:
    request = build_request(
        {"query": "SELECT {x:UInt8}", "param_x": "1", "max_threads": "2", "database": "d", "session_id": "s"}
        | {"wait_end_of_query": "1", "enable_http_compression": "1"},
        b"",
        {},
        read_only=False,
        default_format="TabSeparated",
    )
    assert request.settings == {"max_threads": "2"}
    assert request.params == {"x": "1"}
    assert (request.database, request.session_id) == ("d", "s")


def test_external_table_parameters_are_not_settings() -> None:
    request = build_request(
        {"query": "SELECT 1", "ext_format": "CSV", "ext_types": "UInt8, String", "date_time_input_format": "basic"},
        b"",
        {"ext": b"1,x\n"},
        read_only=False,
        default_format="TabSeparated",
    )
    assert request.settings == {"date_time_input_format": "basic"}
    assert request.external[0].structure == "_1 UInt8, _2 String"


def test_query_parameter_and_body_are_one_statement() -> None:
    request = build_request(
        {"query": "INSERT INTO t FORMAT TSV"}, b"1\n", {}, read_only=False, default_format="TabSeparated"
    )
    assert request.insert == Insert(b"INSERT INTO t ", "TSV", b"1\n")


def test_block_compression_of_the_native_client_is_refused() -> None:
    with pytest.raises(QueryError) as refused:
        build_request({"query": "SELECT 1", "compress": "1"}, b"", {}, read_only=True, default_format="TSV")
    assert refused.value.status == 501


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("", b"abc"),
        ("lz4", lz4.frame.compress(b"ab") + lz4.frame.compress(b"c")),
        ("zstd", zstandard.compress(b"ab") + zstandard.compress(b"c")),
        ("gzip", gzip.compress(b"abc", mtime=0)),
        ("deflate", zlib.compress(b"abc")),
    ],
)
def test_bodies_of_several_frames_are_decompressed_whole(encoding: str, body: bytes) -> None:
    assert decompress(body, encoding) == b"abc"


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip", "deflate"])
def test_body_that_is_not_what_it_says_is_a_query_error(encoding: str) -> None:
    with pytest.raises(QueryError):
        decompress(b"not compressed at all", encoding)


def test_truncated_body_is_a_query_error() -> None:
    with pytest.raises(QueryError):
        decompress(lz4.frame.compress(b"abc" * 1000)[:-8], "lz4")


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("gzip, lz4;q=1", "lz4"), ("br, zstd", "zstd"), ("gzip", "gzip"), ("br", ""), ("", "")]
)
def test_answer_compresses_in_the_first_common_encoding(accepted: str, encoding: str) -> None:
    compressor = Compressor(accepted)
    answer = compressor.feed(b"abc") + compressor.feed(b"def") + compressor.finish()
    assert compressor.encoding == encoding
    assert decompress(answer, encoding) == b"abcdef"


@pytest.mark.parametrize(
    ("code", "status"), [(62, 400), (60, 404), (81, 404), (115, 404), (159, 408), (48, 501), (241, 500)]
)
def test_error_code_becomes_the_status_of_a_clickhouse_server(code: int, status: int) -> None:
    error = as_query_error(RuntimeError(f"Streaming query failed: Code: {code}. DB::Exception: x. (Y)"))
    assert (error.code, error.status) == (code, status)
    assert error.text.startswith(f"Code: {code}.")


def test_error_without_a_code_is_unknown() -> None:
    assert as_query_error(RuntimeError("boom")).code == 1002


def test_literal_cannot_be_escaped_from() -> None:
    assert quoted("a'; DROP\\") == "'a\\'; DROP\\\\'"
