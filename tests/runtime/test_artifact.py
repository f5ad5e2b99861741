import errno
import json
import os
import shutil
import subprocess
import threading
import time
from contextlib import nullcontext

import ferrule.runtime.manifest as manifest_module
import ferrule.runtime.saving as saving
import numpy as np
import pytest
from ferrule.runtime.artifact import Artifact, load
from ferrule.runtime.errors import ArtifactError, RequestError, StepError
from ferrule.runtime.front import Front
from ferrule.runtime.manifest import PIECE, hash_files, read_manifest, write_manifest
from ferrule.runtime.sampling import SamplingParams
from toys import argument, toy_generate, write_toy

GREEDY = SamplingParams(temperature=0.0, max_tokens=9)


def test_generates_what_its_kernels_say(toy):
    prompts = [[3], [1, 2, 3, 4, 5], list(range(1, 30)), [66, 0, 66]]
    completions = load(toy).generate(prompts, GREEDY)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == toy_generate(prompt, 9)
        assert completion.prompt_token_ids == tuple(prompt)
        assert completion.finish_reason == "length"


def test_small_caches_preempt_and_still_agree(toy):
    artifact = load(toy, cache_bytes=10 * 16)
    prompts = [list(range(1, 12)), list(range(20, 33)), [5, 6], [7]]
    params = SamplingParams(temperature=0.0, max_tokens=20)
    completions = artifact.generate(prompts, params)
    assert [c.token_ids for c in completions] == [toy_generate(p, 20) for p in prompts]
    assert artifact._front.engine.scheduler.preemptions > 0
    artifact._front.engine.check()
    assert artifact._front.engine.pool.used == 0


def test_streams_interleave_with_each_other_and_with_generate(toy):
    artifact = load(toy)
    first, second = artifact.stream([1, 2], GREEDY), artifact.stream([9], GREEDY)
    tokens = [next(first).token_ids, next(second).token_ids]
    assert artifact.generate([4, 4], GREEDY)[0].token_ids == toy_generate([4, 4], 9)
    tokens[0] += sum((d.token_ids for d in first), ())
    tokens[1] += sum((d.token_ids for d in second), ())
    assert tokens == [toy_generate([1, 2], 9), toy_generate([9], 9)]


def test_threads_share_the_engine(toy):
    artifact, results = load(toy), {}

    def work(n):
        results[n] = artifact.generate([[n, n]], GREEDY)[0].token_ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: toy_generate([n, n], 9) for n in range(6)}


def test_a_stream_that_is_closed_leaves_nothing(toy):
    artifact = load(toy)
    stream = artifact.stream([1, 2], GREEDY)
    next(stream)
    stream.close()
    assert not artifact._front.engine.has_work
    artifact._front.engine.check()


def test_a_request_that_someone_else_ends_does_not_wait_for_ever(toy):
    front = Front(load(toy).new_engine())
    name = front.submit([1, 2], GREEDY)
    deltas = front.deltas(name)
    assert next(deltas).token_ids == toy_generate([1, 2], 1)
    front.close(name)
    with pytest.raises(RequestError, match="ended by someone else"):
        next(deltas)


def test_a_module_is_called_with_arrays(toy, toy_kernels, tmp_path):
    shutil.copytree(toy, tmp_path / "module")
    arguments = [
        argument("input", "x", "f32", ["B", 64]),
        argument("result", "y", "f32", ["B", 64]),
    ]
    entry = {"calls": [{"kernel": "double", "arguments": arguments}]}
    plan = {"format": 1, "dims": {"B": [1, 9]}, "entries": {"main": entry}}
    (tmp_path / "module/plan.json").write_text(json.dumps(plan))
    write_manifest(tmp_path / "module", {"target": {"kind": "cpu", "arch": "x86-64"}})
    module = load(tmp_path / "module")
    x = np.random.default_rng().standard_normal((5, 64)).astype(np.float32)
    (y,) = module(x)
    np.testing.assert_array_equal(y, x * 2)
    with pytest.raises(ValueError, match="given 2 inputs; wanted 1: x"):
        module(x, x)
    with pytest.raises(RequestError, match="no language model: its entries are main"):
        module.generate([[1]], GREEDY)
    assert module.plan_report().blocks == 0


def test_bad_prompts_name_what_was_wanted(toy):
    artifact = load(toy)
    with pytest.raises(RequestError, match="no tokenizer: give token ids"):
        artifact.generate("text", GREEDY)
    with pytest.raises(RequestError, match="the prompt has 40 tokens, the limit is 39"):
        artifact.generate([[1] * 40], GREEDY)
    with pytest.raises(RequestError, match="the prompt is empty"):
        artifact.generate([[]], GREEDY)
    with pytest.raises(RequestError, match="token id 67: wanted 0 to 66"):
        artifact.generate([[67]], GREEDY)
    with pytest.raises(RequestError, match="given 2 sampling parameters for 1 prompts"):
        artifact.generate([[1]], [GREEDY, GREEDY])
    assert artifact.generate([], GREEDY) == []
    for prompt in ([1, 2], np.array([1, 2]), np.array([[1, 2]]), [np.array([1, 2])], [(1, 2)]):
        assert artifact.generate(prompt, GREEDY)[0].token_ids == toy_generate([1, 2], 9)
    with pytest.raises(RequestError, match="a prompt is text or token ids"):
        artifact.generate([[[1, 2]]], GREEDY)


def test_a_kernel_that_raises_is_named_with_its_origin(toy, monkeypatch):
    artifact = load(toy)

    class Broken:
        def __getitem__(self, name):
            def fail(*_):
                raise RuntimeError("boom")

            return fail if name == "append" else artifact_library[name]

        crew = nullcontext()

        def call_list(self, calls):
            return None

        def enter_thread(self):
            artifact_library.enter_thread()

    artifact_library = artifact.library
    artifact.__dict__["library"] = Broken()
    match = r"kernel 'append' \(cache_append\) from toy.append \(toy.py:1\) failed: boom"
    with pytest.raises(StepError, match=match):
        artifact.generate([[1, 2]], GREEDY)
    artifact._front.engine.check()


def test_the_report_counts_every_byte(toy):
    report = load(toy, cache_bytes=1000).plan_report()
    assert (report.weight_bytes, report.workspace_bytes, report.token_bytes) == (4, 128, 4)
    assert (report.blocks, report.cache_bytes) == (62, 992)
    assert report.full_sequences == 992 // (10 * 16)
    assert "62 blocks of 4 tokens" in str(report)
    with pytest.raises(ArtifactError, match="15 bytes holds no block of 16 bytes"):
        load(toy, cache_bytes=15).plan_report()


@pytest.mark.parametrize(
    "name", ["kernels.so", "plan.json", "weights.safetensors", "manifest.json"]
)
def test_one_altered_bit_is_found(toy, name):
    content = bytearray((toy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (toy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        load(toy)


@pytest.mark.parametrize(
    "name", ["kernels.so", "plan.json", "weights.safetensors", "manifest.json"]
)
def test_a_truncated_or_missing_file_is_found(toy, name):
    content = (toy / name).read_bytes()
    (toy / name).write_bytes(content[:-1] if name != "manifest.json" else content[:-9])
    with pytest.raises(ArtifactError, match=f"{name}.*(truncated|damaged|JSON)"):
        load(toy)
    (toy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}|no artifact here"):
        load(toy)


def test_another_format_and_another_machine_are_refused(toy, tmp_path, toy_kernels):
    manifest = json.loads((toy / "manifest.json").read_text())
    (toy / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(ArtifactError, match="format 1, this version of ferrule reads 2"):
        load(toy)
    other = write_toy(tmp_path / "other", toy_kernels, features=["sse2", "avx9000", "amx9"])
    with pytest.raises(
        ArtifactError, match=r"which needs amx9, avx9000; this machine \(.+\) has not"
    ):
        load(other)
    write_manifest(other, {"target": {"kind": "rocm", "arch": "gfx942"}})
    with pytest.raises(ArtifactError, match="built for 'rocm', this runtime serves 'cpu' and"):
        load(other)
    with pytest.raises(ArtifactError, match="no artifact here"):
        load(tmp_path)
    manifest["files"]["../thesis.tex"] = {"bytes": 1, "xxh3": ""}
    manifest.pop("digest")
    manifest["digest"] = manifest_module._own_digest(manifest)
    (toy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"'../thesis.tex' is not inside the artifact"):
        load(toy)


def test_pieces_of_a_big_file_are_all_hashed(tmp_path):
    path = tmp_path / "big"
    content = np.random.default_rng().integers(0, 256, 2 * PIECE + 5, np.uint8)
    digests = set()
    for at in (None, 0, PIECE - 1, PIECE, 2 * PIECE + 4):
        changed = content.copy()
        if at is not None:
            changed[at] ^= 16
        path.write_bytes(changed.tobytes())
        digests.update(hash_files([path]))
    path.write_bytes(b"")
    digests.update(hash_files([path]))
    assert len(digests) == 6


def test_saved_artifacts_are_whole_and_relocatable(toy, tmp_path):
    saved = load(toy).save(tmp_path / "a" / "b" / "saved")
    shutil.rmtree(toy)
    moved = tmp_path / "moved"
    os.rename(saved, moved)
    assert load(moved).generate([[1, 2]], GREEDY)[0].token_ids == toy_generate([1, 2], 9)


def test_a_temporary_artifact_is_removed_once_saved_or_gone(toy, tmp_path):
    artifact = Artifact(toy, temporary=True)
    first = artifact.generate([[1, 2]], GREEDY)
    artifact.save(tmp_path / "saved")
    assert not toy.exists()
    assert artifact.path == tmp_path / "saved"
    assert artifact.generate([[1, 2]], GREEDY) == first
    again = tmp_path / "again"
    shutil.copytree(artifact.path, again)
    gone = Artifact(again, temporary=True)
    del gone
    assert not again.exists() and artifact.path.exists()


def test_saving_over_an_artifact_replaces_it_and_over_other_files_is_refused(toy, tmp_path):
    target = tmp_path / "saved"
    load(toy).save(target)
    (target / "stale").write_text("of the one before")
    load(toy).save(target)
    assert not (target / "stale").exists()
    assert load(target).plan == load(toy).plan
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="it holds files that are no artifact"):
        load(toy).save(other)
    with pytest.raises(ArtifactError, match="it is a file"):
        load(toy).save(other / "thesis.tex")
    assert (other / "thesis.tex").read_text() == "years of work"
    load(toy).save(toy)


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_no_half_artifact(toy, tmp_path, monkeypatch, before):
    target = tmp_path / "saved"
    if before:
        load(toy).save(target)
    monkeypatch.setattr(saving.shutil, "copyfile", _full_after(1))
    with pytest.raises(
        ArtifactError, match=r"nothing was left there: No space left .* bytes are needed"
    ):
        load(toy).save(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved", "toy"][not before :]
    if before:
        load(target)


def _full_after(whole):
    copied = []

    def copy(source, target):
        copied.append(source)
        content = source.read_bytes()
        target.write_bytes(content if len(copied) <= whole else content[: len(content) // 2])
        if len(copied) > whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    return copy


def test_a_truly_full_disk(toy, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(ArtifactError, match="nothing was left there: No space left"):
            load(toy).save(disk / "saved")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("at", range(1, 6))
def test_an_interruption_at_any_file_leaves_the_old_artifact(toy, tmp_path, monkeypatch, at):
    target = tmp_path / "saved"
    load(toy).save(target)
    flush, calls = saving._flush, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == at:
            raise KeyboardInterrupt
        flush(path)

    monkeypatch.setattr(saving, "_flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(toy).save(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved", "toy"]
    load(target)


def test_two_gigabytes_would_load_in_two_seconds(tmp_path):
    # A smaller file, scaled: the rate is what is promised, with a page cache that is warm.
    path = tmp_path / "weights"
    path.write_bytes(np.random.default_rng().bytes(64 << 20))
    hash_files([path])
    best = min(_seconds(lambda: hash_files([path])) for _ in range(3))
    assert best < 1.0, f"{(64 << 20) / best / 1e9:.2f} GB/s"


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_a_checkpoint_is_told_from_an_artifact(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"no artifact here.*compile it first"):
        read_manifest(tmp_path)
