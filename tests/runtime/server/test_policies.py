"""Who goes first, over HTTP: by priority, and by what each client got so far."""

import threading

from ferrule.runtime.policies import ByPriority, FairShare
from ferrule.runtime.server.settings import Settings
from scripted import ScriptRunner, serving, wait_for
from test_errors import post


def order(running, asks):
    """The names of requests in the order in which they end; all are there before a second runs."""
    ended, threads = [], []

    def ask(name, body, headers):
        status, _ = post(running, "/v1/completions", body, headers)
        ended.append((name, status))

    for name, body, headers in asks:
        before = running.service.unfinished
        each = {"prompt": "a", "max_tokens": 12, **body}
        threads.append(threading.Thread(target=ask, args=(name, each, headers)))
        threads[-1].start()
        wait_for(lambda before=before: running.service.unfinished > before)
    for thread in threads:
        thread.join(30)
    assert {status for _, status in ended} == {200}
    return [name for name, _ in ended]


def one_at_a_time():
    runner = ScriptRunner(max_batch=1)
    runner.delay = 0.02
    return {"fox": runner}


def test_lower_numbers_go_first(tokenizer):
    with serving(tokenizer, one_at_a_time(), policy=ByPriority()) as running:
        long = {"max_tokens": 60, "priority": -9}
        asks = [("first", long, {}), ("late", {"priority": 5}, {}), ("soon", {"priority": -1}, {})]
        assert order(running, asks) == ["first", "soon", "late"]


def test_a_client_that_asks_for_much_does_not_hold_up_another(tokenizer):
    with serving(tokenizer, one_at_a_time(), policy=FairShare()) as running:
        asks = [(f"greedy {n}", {"user": "greedy", "max_tokens": 30}, {}) for n in range(4)]
        found = order(running, [*asks, ("modest", {"user": "modest"}, {})])
        assert found.index("modest") <= 1


def test_with_several_keys_each_is_a_client_whatever_name_it_gives(tokenizer):
    settings = Settings(api_keys=("one", "two"))
    with serving(tokenizer, one_at_a_time(), settings=settings, policy=FairShare()) as running:
        keys = [{"authorization": f"Bearer {key}"} for key in settings.api_keys]
        asks = [(f"one {n}", {"user": str(n), "max_tokens": 30}, keys[0]) for n in range(4)]
        found = order(running, [*asks, ("two", {"user": "0"}, keys[1])])
        assert found.index("two") <= 1
        engine = running.service.models["fox"].front.engine
        assert set(engine.scheduler.policy.served) <= {"key-0", "key-1"}
