#!/usr/bin/python3
"""README's program is examples/hello.c, byte for byte and at most 40 lines; and it runs: it starts a
worker of its own, computes, and leaves nothing behind but that worker, which is ended here.

usage: readme_test.py HELLO-PROGRAM GEMMD-PROGRAM
"""
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BLOCK = re.compile(r"<!-- examples/hello\.c begins -->\n```c\n(.*?)```\n"
                   r"<!-- examples/hello\.c ends -->", re.S)


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def check_text():
    blocks = BLOCK.findall(read("README.md"))
    program = read("examples/hello.c")
    assert len(blocks) == 1, f"{len(blocks)} programs between README's markers"
    assert blocks[0] == program, "README's program differs from examples/hello.c"
    assert program.count("\n") <= 40, "the program has more than 40 lines"


def workers_below(directory):
    """Processes whose environment names our runtime directory."""
    wanted = b"XDG_RUNTIME_DIR=" + directory.encode() + b"\0"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read():
                    found.append(int(name))
        except OSError:
            pass
    return found


def check_run(hello, gemmd):
    if os.path.exists("/run/gemmd/node0.sock"):
        print("SKIP: a system worker runs here, hello would use that one")
        return
    with tempfile.TemporaryDirectory() as directory:
        environment = {k: v for k, v in os.environ.items() if k != "GEMMD_SOCKET"}
        environment.update(XDG_RUNTIME_DIR=directory, GEMMD_WORKER=gemmd)
        for _ in range(2): # starts a worker, then finds it
            result = subprocess.run([hello], env=environment, capture_output=True, text=True,
                                    timeout=30, check=False)
            assert result.returncode == 0, f"exit {result.returncode}: {result.stderr}"
            assert result.stdout == "6.5 4.5\n15.5 7.5\n", result.stdout
        workers = workers_below(directory)
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while workers_below(directory) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(workers) == 1, f"{len(workers)} workers were started"
        assert not workers_below(directory), "the worker did not end"
        environment["GEMMD_WORKER"] = directory + "/missing" # no worker to be had: an error, said aloud
        result = subprocess.run([hello], env=environment, capture_output=True, text=True, timeout=30,
                                check=False)
        assert result.returncode != 0 and "missing" in result.stderr, result.stderr


if __name__ == "__main__":
    check_text()
    check_run(*sys.argv[1:3])
