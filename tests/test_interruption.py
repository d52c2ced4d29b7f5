"""SIGTERM ends a run at once, or where it has saved; with the exit code that says 'resume me'."""

import signal
import subprocess
import sys
import threading

import pytest

from retrieval_jax.runtime.interruption import MESSAGE, Interruption

START = """
import os, signal
from retrieval_jax.runtime.errors import Interrupted
from retrieval_jax.runtime.interruption import Interruption
signal.signal(signal.SIGINT, signal.default_int_handler)  # some who start tests ignore it
def press():
    os.kill(os.getpid(), signal.SIGINT)
def term():
    os.kill(os.getpid(), signal.SIGTERM)
with Interruption() as interruption:
"""


def run(body):
    code = START + "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("busy", ["time.sleep(30)", "jax.jit(long)(1.0).block_until_ready()"])
@pytest.mark.parametrize(("by", "code"), [("term", 75), ("press", 130)])
def test_outside_of_what_saves_it_ends_at_once(busy, by, code):
    body = (
        "import jax, time\n"
        "def long(x):\n"
        "    return jax.lax.while_loop(lambda x: x > 0, lambda x: x + 1, x)\n"
        "import threading\n"
        "print('before', flush=True)\n"
        f"threading.Timer(2, {by}).start()\n"
        f"{busy}\n"
        "print('after', flush=True)"
    )
    ended = run(body)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "before\n", MESSAGE + "\n")


@pytest.mark.parametrize(
    ("after", "code", "said"),
    [
        ("raise Interrupted", 1, "Interrupted"),  # which main turns into the exit code
        ("pass", 0, ""),  # the next to ask is told
        ("raise ValueError('the disk is full')", 1, "the disk is full"),
    ],
)
def test_inside_it_answers_and_the_work_goes_on(after, code, said):
    body = (
        "with interruption.deferred() as asked:\n"
        "    print(asked(), flush=True)\n"
        "    term()\n"
        "    print(asked(), asked(), flush=True)\n"
        f"    {after}\n"
        "print(interruption.asked())"
    )
    ended = run(body)
    assert ended.stdout == "False\nTrue True\n" + ("True\n" if code == 0 else "")
    assert ended.returncode == code and said in ended.stderr


def test_ctrl_c_is_answered_like_sigterm_and_a_second_one_ends_it_at_once():
    body = (
        "import time\n"
        "with interruption.deferred() as asked:\n"
        "    press()\n"
        "    print(asked(), interruption.code, flush=True)\n"
        "    time.sleep(0.2)\n"
        "    print(interruption.code, flush=True)\n"
        "    press()\n"
        "    time.sleep(30)"
    )
    ended = run(body)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr
    assert ended.stdout.splitlines()[-1] == "130"


def test_the_handler_before_is_there_again():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_no_signal_is_heard():
    answers = []

    def work():
        with Interruption() as interruption, interruption.deferred() as asked:
            answers.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
