"""A real engine over a runner that says what a script tells it, and a real server around it."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import numpy as np
from ferrule.runtime.engine import Engine
from ferrule.runtime.server.app import build_app
from ferrule.runtime.server.command import Server, server_config
from ferrule.runtime.server.front import EngineFront
from ferrule.runtime.server.live import LiveWindow, Observers
from ferrule.runtime.server.metrics import ServerMetrics
from ferrule.runtime.server.models import Models, ServedModel
from ferrule.runtime.server.service import Service
from ferrule.runtime.server.settings import Settings
from ferrule.runtime.text import Text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 258
BEGIN, END = 256, 257
FOX = b"the quick brown fox jumps over the lazy dog. "
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}:{{ c.function.arguments | tojson }}]"
    "{% endfor %}</{{ m.role }}>{% endfor %}"
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% if reasoning_effort %}<effort>{{ reasoning_effort }}</effort>{% endif %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)


def write_tokenizer(directory):
    """A byte-level tokenizer, one token a byte, with a chat template."""
    directory.mkdir()
    # In the order of bytes, so that token 97 is "a".
    table = bytes_to_characters()
    vocabulary = {table[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def bytes_to_characters():
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}


class ScriptRunner:
    """Next tokens as the script has them: {end of the prompt: reply}; else the fox, without end.

    `delay` is the time of a step; `broken` raises on any step that holds this token.
    """

    def __init__(self, script=None, *, blocks=512, chunk=256, max_batch=8, max_context=2048):
        self.block, self.blocks, self.chunk, self.max_batch = 16, blocks, chunk, max_batch
        self.max_context, self.vocabulary, self.max_rows = max_context, VOCABULARY, chunk
        self.cache = np.full((blocks, 16), -1)
        self.window = self.states = self.state_blocks = 0
        self.script = script if script is not None else {}
        self.delay, self.broken, self.sure = 0.0, None, 40.0

    def step(self, batch):
        time.sleep(self.delay)
        if self.broken in batch.tokens:
            raise RuntimeError(f"no kernel for token {self.broken}")
        for token, slot in zip(batch.tokens, batch.slots, strict=True):
            self.cache[slot // 16, slot % 16] = token
        logits = np.zeros((len(batch.logit_rows), VOCABULARY), np.float32)
        for place, row in enumerate(batch.logit_rows):
            n = int(np.searchsorted(batch.query_start, row, side="right")) - 1
            count = batch.positions[row] + 1
            table = batch.block_table[n]
            known = [int(self.cache[table[j // 16], j % 16]) for j in range(count)]
            logits[place, self.next(known)] = self.sure
        return logits.argmax(-1).astype(np.int32), logits

    def next(self, known):
        text = bytes(t for t in known if t < 256)
        for prompt, reply in self.script.items():
            at = text.rfind(prompt.encode())
            if at >= 0:
                said = text[at + len(prompt.encode()) :]
                whole = reply.encode()
                return whole[len(said)] if len(said) < len(whole) else END
        return FOX[len(known) % len(FOX)]

    def copy_block(self, source, target):
        self.cache[target] = self.cache[source]

    def read_blocks(self, blocks):
        return (self.cache[list(blocks)],)

    def write_blocks(self, blocks, content):
        self.cache[list(blocks)] = content[0]


def served(name, directory, runner, metrics, *, limit=64, clock=time.monotonic, **options):
    """A model over a runner; options are the engine's."""
    text = Text(directory)
    engine = Engine(runner, text, [END], **options)
    live = LiveWindow()
    observers = Observers(metrics.of(name), live)
    front = EngineFront(engine, observers, limit=limit, clock=clock)
    plan = {"total_bytes": 1}
    context = runner.max_context
    return ServedModel(
        name, text, context, VOCABULARY, front, None, live, plan, config=engine.config()
    )


class Running:
    """A server on a thread; `url` is where it listens."""

    def __init__(self, service):
        self.service = service
        self.server = Server(server_config(build_app(service, "test")), service)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        self.loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self.socket])

    def __enter__(self):
        self.thread.start()
        wait_for(lambda: self.server.started)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive(), "the server does not end"


def wait_for(claim, seconds=60.0):
    """Wait until a claim holds; fail where it does not in time."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(tokenizer, runners=None, *, settings=None, limit=64, **options):
    """A running server over script runners by model name."""
    runners = runners if runners is not None else {"fox": ScriptRunner()}
    metrics = ServerMetrics(2048)
    each = [served(n, tokenizer, r, metrics, limit=limit, **options) for n, r in runners.items()]
    with Running(Service(Models(each), settings or Settings(), metrics)) as running:
        running.runner = next(iter(runners.values()))
        yield running
