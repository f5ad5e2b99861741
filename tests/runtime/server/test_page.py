"""The page in a headless browser: a prompt goes out, tokens come, counters move."""

import pytest
from browser import PROGRAM, Browser
from scripted import ScriptRunner, serving, wait_for

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium"),
    pytest.mark.slow,
]


@pytest.fixture
def browser(tmp_path):
    each = Browser(tmp_path / "profile")
    yield each
    each.close()


def test_a_prompt_streams_and_the_counters_move(browser, tokenizer, tmp_path):
    runner = ScriptRunner({"<user>hi</user><reply>": "Hello from the engine."})
    runner.delay = 0.01
    with serving(tokenizer, {"fox": runner}) as running:
        browser.open(running.url)
        browser.wait("document.getElementById('state')?.textContent === 'ready'")
        browser.run("document.getElementById('temperature').value = 0")
        browser.run("document.getElementById('prompt').value = 'hi'")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.querySelector('.turn.assistant span')?.textContent.length > 3")
        browser.wait("document.getElementById('usage').textContent.includes('tokens/s')")
        said = browser.run("document.querySelector('.turn.assistant span').textContent")
        assert said == "Hello from the engine."
        browser.wait("document.getElementById('ended').textContent === '1'")
        browser.wait("Number(document.getElementById('rate').textContent) > 0")
        assert browser.run("document.getElementById('latency').rows[0].cells[1].textContent > 0")
        colors = []
        for scheme in ("light", "dark"):
            browser.shoot(tmp_path / f"{scheme}.png", scheme)
            colors.append(browser.run("getComputedStyle(document.body).backgroundColor"))
        assert colors[0] != colors[1]
        assert browser.errors == []


def test_thoughts_stand_before_the_answer(browser, tokenizer):
    runner = ScriptRunner({"<user>hi</user><reply>": "<think>Well.</think>Hello."})
    with serving(tokenizer, {"fox": runner}) as running:
        browser.open(running.url)
        browser.wait("document.getElementById('state')?.textContent === 'ready'")
        browser.run("document.getElementById('temperature').value = 0")
        browser.run("document.getElementById('prompt').value = 'hi'")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.getElementById('usage').textContent.includes('tokens/s')")
        turns = "[...document.querySelectorAll('.turn')].map(t => t.textContent).join('|')"
        assert browser.run(turns) == "userhi|thoughtsWell.|assistantHello."
        assert browser.errors == []


def test_a_reply_can_be_stopped_and_errors_are_shown(browser, tokenizer):
    runner = ScriptRunner()
    runner.delay = 0.02
    with serving(tokenizer, {"fox": runner}) as running:
        browser.open(running.url)
        browser.wait("document.getElementById('state')?.textContent === 'ready'")
        browser.run("document.getElementById('max_tokens').value = 1500")
        browser.run("document.getElementById('prompt').value = 'hi'")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.querySelector('.turn.assistant span')?.textContent.length > 3")
        browser.run("document.getElementById('stop').click()")
        browser.wait("document.getElementById('stop').hidden")
        wait_for(lambda: running.service.unfinished == 0)
        browser.run("document.getElementById('top_p').value = 7")
        browser.run("document.getElementById('prompt').value = 'hi'")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.querySelector('.turn.error')?.textContent.includes('top_p')")


def record_rates(artifact, records):
    """Rates of this machine as if somebody had measured them."""
    from ferrule.compiler.explain import built_for
    from ferrule.compiler.hardware import fingerprint
    from ferrule.compiler.records import append_record
    from ferrule.runtime.manifest import read_manifest

    key = f"hardware/{fingerprint(built_for(read_manifest(artifact)))}"
    rates = {"read_bandwidth": 1e10, "cache_bandwidth": 1e11, "peak": {"f32": 1e11}}
    append_record(records, key, rates)


def test_a_real_model_and_the_kernels_of_its_steps(browser, artifact, tmp_path, monkeypatch):
    from test_serve import Process

    record_rates(artifact, tmp_path / "records.jsonl")
    monkeypatch.setenv("FERRULE_RECORDS", str(tmp_path / "records.jsonl"))
    with Process(artifact, tmp_path / "log") as process:
        browser.open(process.url)
        browser.wait("document.getElementById('state')?.textContent === 'ready'")
        browser.run("document.getElementById('max_tokens').value = 200")
        browser.run("document.getElementById('prompt').value = 'def add(a, b):'")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.querySelector('.turn.assistant span')?.textContent.length > 3")
        before = browser.run("document.querySelector('.turn.assistant span').textContent.length")
        browser.wait(
            f"document.querySelector('.turn.assistant span').textContent.length > {before}"
        )
        browser.wait("document.getElementById('usage').textContent.includes('tokens/s')")
        browser.wait("document.getElementById('ended').textContent === '1'")
        browser.wait("Number(document.getElementById('cached').textContent) > 0")
        # Kernels are timed while something runs: ask once more.
        browser.run("document.getElementById('prompt').value = 'again'")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.querySelectorAll('#kernels tr').length > 4")
        assert "ms" in browser.run("document.getElementById('step').textContent")
        cells = "[...document.querySelectorAll('#kernels tr')].map(r => r.cells[2].textContent)"
        times = [float(text) for text in browser.run(cells)]
        assert times == sorted(times, reverse=True) and times[0] > 0
        shares = browser.run(cells.replace("cells[2]", "cells[4]"))
        assert all(share.endswith("%") for share in shares), shares
        for scheme in ("light", "dark"):
            browser.shoot(tmp_path / f"{scheme}.png", scheme)
        assert browser.errors == []
