#!/usr/bin/python3
"""gemmd-bench says which option is wrong and what it takes, measures a group quickly, and leaves nothing
behind, not even when it is killed.

usage: bench_test.py GEMMD-BENCH GEMMD
"""
import os
import signal
import subprocess
import sys
import tempfile
import time

BENCH, GEMMD = map(os.path.abspath, sys.argv[1:])
HANG_S = 60
# Arguments; what the message begins with; the line of --help it goes on with.
WRONG = (
    ("sharing --cpus 0,", "--cpus 0,:", "--cpus LIST "),
    ("sharing --cpus 0,,1", "--cpus 0,,1:", "--cpus LIST "),
    ("sharing --processes 1,0", "--processes 1,0:", "--processes LIST "),
    ("sharing --layers 3", "--layers 3:", "--layers L "),
    ("sharing --seconds 1x", "--seconds 1x:", "--seconds T "),
    ("path --cpus 0,1,2", "--cpus 0,1,2:", "--cpus W[,C] "),
    ("team --shape 1,2", "--shape 1,2:", "--shape M,N,K "),
    ("operands --rounds 0", "--rounds 0:", "--rounds R "),
    ("latency --gap-us abc", "--gap-us abc:", "--gap-us T "),
    ("latency now", "now: only options are expected", None),
    ("kernels --weight-bits 9", 'weights have 2 to 8 bits: "9"', None),
    ("kernels --cpu 0,", 'CPUs are A or A,B: "0,"', None),
    ("kernels --group none", 'no shapes in the group: "none"', None),
)


def run(arguments):
    return subprocess.run([BENCH, *arguments.split()], capture_output=True, text=True,
                          timeout=HANG_S)


def check_messages():
    for arguments, begins, help_line in WRONG:
        result = run(arguments)
        lines = result.stderr.split("\n")
        assert result.returncode == 64 and not result.stdout, (arguments, result)
        assert lines[0].startswith("gemmd-bench: " + begins), (arguments, lines)
        assert not help_line or lines[1].startswith("  " + help_line), (arguments, lines)


def check_group():
    result = run("kernels --quick --group gemms --list")
    assert result.returncode == 0 and len(result.stdout.split("\n")) > 5, result
    assert all(line.startswith("gemms ") for line in result.stdout.strip().split("\n")), result


def wait_for(condition, what):
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def check_end(number):
    """Ended by a signal, with its worker running: the worker and its directory go, too."""
    with tempfile.TemporaryDirectory() as directory:
        told = os.path.join(directory, "told")
        worker = os.path.join(directory, "worker")
        with open(worker, "w", encoding="ascii") as file:
            file.write(f'#!/bin/sh\necho $$ $2 > {told}.new\nmv {told}.new {told}\n'
                       f'exec {GEMMD} "$@"\n')
        os.chmod(worker, 0o700)
        bench = subprocess.Popen([BENCH, "operands", "--worker", worker],
                                 stdout=subprocess.DEVNULL)
        wait_for(lambda: os.path.exists(told), "no worker was started")
        with open(told, encoding="ascii") as file:
            pid, socket = file.read().split()
        assert os.path.isdir(os.path.dirname(socket))
        if number == signal.SIGKILL: # else the worker may be any far
            wait_for(lambda: os.path.exists(socket), "the worker does not listen")
        bench.send_signal(number)
        assert bench.wait(HANG_S) == -number
        wait_for(lambda: not os.path.exists(os.path.dirname(socket)), "its directory is still there")
        wait_for(lambda: not os.path.exists("/proc/" + pid), "its worker is still there")


def main():
    check_messages()
    check_group()
    check_end(signal.SIGKILL)
    check_end(signal.SIGTERM)


if __name__ == "__main__":
    main()
