"""Tuning records: append, read, merge."""

import threading

import pytest
from ferrule.compiler.errors import CompileError
from ferrule.compiler.records import append_record, merge_records, read_records, write_records


def test_the_last_record_of_a_key_counts(tmp_path):
    path = tmp_path / "deep/records.jsonl"
    assert read_records(path) == {}
    append_record(path, "a", {"tile": [4, 2]})
    append_record(path, "b", 1)
    append_record(path, "a", {"tile": [8, 1]})
    assert read_records(path) == {"a": {"tile": [8, 1]}, "b": 1}


def test_a_line_cut_short_costs_only_itself(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, "a", 1)
    path.write_text(path.read_text() + '{"key": "b", "va')
    assert read_records(path) == {"a": 1}
    append_record(path, "c", 3)
    assert read_records(path) == {"a": 1, "c": 3}


def test_a_line_that_is_no_record_is_an_error(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"key": "a", "value": 1}\n{"kex": 2}\n')
    with pytest.raises(CompileError, match="line 2: no record of key and value"):
        read_records(path)


def test_merging_takes_later_files_first_and_is_whole_or_nothing(tmp_path, monkeypatch):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write_records(one, {"b": 1, "a": 1})
    write_records(two, {"b": 2, "c": 2})
    assert merge_records(one, [two, tmp_path / "none.jsonl"]) == {"a": 1, "b": 2, "c": 2}
    assert read_records(one) == {"a": 1, "b": 2, "c": 2}
    with pytest.raises(TypeError):
        write_records(one, {"a": object()})
    assert read_records(one)["a"] == 1

    def full(*names):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_records(one, {"a": 3})
    assert read_records(one)["a"] == 1 and len(list(tmp_path.iterdir())) == 2


def test_writers_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "records.jsonl"

    def write(who):
        for at in range(40):
            append_record(path, f"{who}/{at}", "x" * 200)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_records(path)) == 160
