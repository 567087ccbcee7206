"""Run a function in a process of its own, of which nothing comes back but what it sends."""

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

MEMORY = 8 * 2**30
"""Bytes of address space that a child may take: who knows what a bug makes it ask for."""

Send = Callable[[dict[str, Any]], None]


def run(task: Callable[[Send], None], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Fork, run a task, and collect what it sends.

    Args:
        task: it is given a function that takes a dictionary of plain values.
        seconds: after which it is killed.

    Returns:
        What was sent, and how it ended: "done", "timeout", or what it raised.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _work(task, write)
    os.close(write)
    data, late = _collected(read, time.monotonic() + seconds)
    os.close(read)
    if late:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    sent = [json.loads(line) for line in data.split(b"\n")[:-1]]  # what was cut off is nothing
    if late:
        return sent, "timeout"
    if sent and "ended" in sent[-1]:
        return sent[:-1], str(sent[-1]["ended"])
    return sent, "it died"


def _collected(read: int, deadline: float) -> tuple[bytes, bool]:
    """All bytes until the end of the pipe or of the time, and whether it was that of the time."""
    data = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([read], [], [], left)[0]:
            return data, True
        chunk = os.read(read, 65536)
        if not chunk:
            return data, False
        data += chunk


def _work(task: Callable[[Send], None], write: int) -> None:
    """The child: it never returns."""
    ended = "done"

    def send(message: dict[str, Any]) -> None:
        os.write(write, json.dumps(message).encode() + b"\n")

    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        with tempfile.TemporaryDirectory() as folder:  # Hypothesis writes to where it is run
            os.chdir(folder)
            task(send)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).strip().split("\n")[0][:300]
        ended = f"{type(error).__name__}: {text} ({last.filename}:{last.lineno})"
    try:
        send({"ended": ended})
    finally:
        os._exit(0)
