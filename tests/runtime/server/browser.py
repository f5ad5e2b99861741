"""Drives headless Chromium over its debugging pipe: nothing but the standard library."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "--window-size=1200,900",
    "--no-first-run",
)


class Browser:
    """One page. Messages are JSON with a zero byte at the end, to descriptor 3 and from 4."""

    def __init__(self, directory):
        to_child, from_child = os.pipe(), os.pipe()
        self.write, self.read = to_child[1], from_child[0]
        self.numbers, self.held, self.errors = itertools.count(1), b"", []
        given = (to_child[0], from_child[1])
        # High numbers first, so that moving one to 3 or 4 cannot overwrite the other.
        high = [os.dup2(fd, 200 + place) for place, fd in enumerate(given)]
        # The shell moves them to where Chromium looks.
        move = f'exec "$@" 3<&{high[0]} 4>&{high[1]}'
        program = [PROGRAM, *FLAGS, f"--user-data-dir={directory}", "about:blank"]
        command = ["bash", "-c", move, "bash", *program]
        self.process = subprocess.Popen(command, pass_fds=high, stderr=subprocess.DEVNULL)
        for fd in (*given, *high):
            os.close(fd)
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")

    session = None

    def call(self, method, **params):
        """The result of a command."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == number:
                assert "error" not in found, found["error"]
                return found["result"]

    def _message(self):
        while b"\0" not in self.held:
            piece = os.read(self.read, 1 << 16)
            assert piece, "the browser has ended"
            self.held += piece
        raw, _, self.held = self.held.partition(b"\0")
        message = json.loads(raw)
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"]["text"])
        return message

    def open(self, url):
        """Go to a page."""
        self.call("Page.navigate", url=url)

    def run(self, script):
        """The value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return done["result"].get("value")

    def wait(self, script, seconds=15.0):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"not in {seconds} s: {script}"
            time.sleep(0.05)

    def shoot(self, path, scheme):
        """A screenshot in the light or the dark scheme."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        time.sleep(0.2)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        """End the browser."""
        self.process.terminate()
        self.process.wait(10)
        os.close(self.write)
        os.close(self.read)
