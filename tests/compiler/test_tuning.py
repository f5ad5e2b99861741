"""The database of tuning: keys, records, merging, what a damaged line says; import and export."""

import json
import stat

import pytest
from ferrule.codegen.backend import KernelReport
from ferrule.codegen.cost import Cost
from ferrule.codegen.space import DEFAULT, Choice
from ferrule.compiler.cli import app
from ferrule.compiler.errors import CompileError
from ferrule.compiler.records import append_record, read_records, write_records
from ferrule.compiler.tuning import Tuned, chosen, read_known, tuned, tuning_key, write_own
from typer.testing import CliRunner

HERE, THERE = "AMD/cpu:znver4/2 cores/1a2b", "AMD/cpu:znver4/64 cores/1a2b"
FOUND = Tuned(Choice.of({"rows": 6}), {"64": (2.0, 1.0), "512": (8.0, 4.0)}, 3, "packed_linear")
OWN = Tuned(DEFAULT, {"1": (1.0, 1.0)}, 5)


def report(digest: str) -> KernelReport:
    return KernelReport("k", "k", "linear", "", Cost((), 0, {}), lambda: "", digest)


def records(*triples: tuple[str, str, str]) -> dict[str, object]:
    return {tuning_key(*t): FOUND.to_json() for t in triples}


def test_records_come_back_by_kernel_and_bucket_of_one_machine(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, tuning_key("aa", "17-", HERE), FOUND.to_json())
    append_record(path, tuning_key("aa", "1", HERE), OWN.to_json())
    append_record(path, tuning_key("aa", "1", THERE), FOUND.to_json())
    append_record(path, f"hardware/{HERE}", {"read_bandwidth": 1.0})
    found = tuned(read_records(path), HERE)
    assert found == {"aa": {"17-": FOUND, "1": OWN}}
    assert chosen(found) == {"aa": {"17-": FOUND.choice, "1": DEFAULT}}
    assert FOUND.gain == pytest.approx(2.0) and OWN.gain == 1.0


@pytest.mark.parametrize(
    "value",
    [
        5,
        {},
        {"choice": {"rows": "6"}, "seconds": {}, "candidates": 1},
        {"choice": {"rows": 6}, "seconds": {"1": [1.0]}, "candidates": 1},
        {"choice": {"rows": 6}, "seconds": {"1": [1.0, -2.0]}, "candidates": 1},
        {"choice": {"rows": 6}, "seconds": {"1": [1.0, 2.0]}},
    ],
)
def test_a_value_that_is_no_result_is_an_error_that_names_its_key(value):
    with pytest.raises(CompileError, match="record 'tuning/aa/1/AMD"):
        tuned({tuning_key("aa", "1", HERE): value}, HERE)
    assert tuned({tuning_key("aa", "1", HERE): value}, THERE) == {}


def test_an_artifact_carries_the_records_of_its_kernels_on_its_machine(tmp_path):
    known = records(("aa", "1", HERE), ("bb", "1", HERE), ("aa", "17-", THERE))
    rates = {f"hardware/{HERE}": {"read_bandwidth": 1.0}}
    path = tmp_path / "tuning.jsonl"
    write_own(path, known | rates, HERE, [report("aa"), report("")])
    assert read_records(path) == records(("aa", "1", HERE)) | rates
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_own(tmp_path / "none.jsonl", known, HERE, [report("cc"), report("")])
    assert not (tmp_path / "none.jsonl").exists()


def test_a_file_that_somebody_names_must_be_there(tmp_path):
    with pytest.raises(CompileError, match=r"none\.jsonl: no file of tuning records"):
        read_known(tmp_path / "none.jsonl")


def test_files_are_taken_in_and_written_out(tmp_path):
    mine, theirs, out = (tmp_path / f"{n}.jsonl" for n in ("mine", "theirs", "out"))
    write_records(mine, records(("aa", "1", HERE)))
    write_records(theirs, records(("aa", "1", THERE), ("bb", "1", THERE)))
    flags = ["tune", "--tuning", str(mine), "--import", str(theirs), "--export", str(out)]
    done = CliRunner().invoke(app, flags)
    assert done.exit_code == 0, done.output
    assert f"{theirs}: 2 records into {mine}" in done.output.replace("\n", "")
    wanted = records(("aa", "1", HERE), ("aa", "1", THERE), ("bb", "1", THERE))
    assert read_records(mine) == read_records(out) == wanted


def test_a_damaged_file_is_refused_whole(tmp_path):
    mine, bad = tmp_path / "mine.jsonl", tmp_path / "bad.jsonl"
    write_records(mine, records(("aa", "1", HERE)))
    good = json.dumps({"key": tuning_key("bb", "1", HERE), "value": FOUND.to_json()})
    bad.write_text(f"{good}\nnonsense\n{good}\n")
    done = CliRunner().invoke(app, ["tune", "--tuning", str(mine), "--import", str(bad)])
    assert done.exit_code == 1
    assert "bad.jsonl, line 2: no record of key and value: 'nonsense'" in str(done.exception)
    assert read_records(mine) == records(("aa", "1", HERE))


def test_nothing_to_do_is_said():
    done = CliRunner().invoke(app, ["tune"])
    assert done.exit_code == 2 and "wanted DIR or MODEL" in done.output
