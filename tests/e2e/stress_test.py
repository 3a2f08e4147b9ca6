#!/usr/bin/python3
"""gemmd-stress: each mode runs and says so in its formats; a single wrong weight makes it exit 1.

usage: stress_test.py GEMMD-STRESS GEMMD FLIP-WEIGHT-LIBRARY
"""
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

STRESS, GEMMD, FLIP = sys.argv[1:4]


def run(socket, *arguments, code=0, **environment):
    result = subprocess.run([STRESS, "--socket", socket, *arguments], capture_output=True, text=True,
                            timeout=120, check=False, env={**os.environ, **environment})
    assert result.returncode == code, (arguments, result.returncode, result.stdout, result.stderr)
    return result


def is_sanitized():
    with open(GEMMD, "rb") as file:
        return re.search(rb"__[at]san_init", file.read()) is not None


def report(socket, *arguments, **keywords):
    return json.loads(run(socket, *arguments, "--json", **keywords).stdout)


def check_closed(socket):
    for kind in ("full", "freivalds", "none"):
        got = report(socket, "--sessions", "3", "--depth", "8", "--jobs", "3001", "--verify", kind,
                     "--shape", "0,16,16", "--shape", "5,70,33", "--seed", "7")
        assert got["passed"] and got["jobs"] == 3001 and got["wrong"] == 0, got
        assert got["load"]["seed"] == 7 and got["latency_ns"]["count"] == 3001, got
        assert got["machine"]["cpus_online"] >= 1 and got["worker"]["event_level"], got
    got = report(socket, "--sessions", "40", "--threads", "--depth", "2", "--seconds", "0.3")
    assert got["passed"] and len(got["sessions"]) == 40, got
    assert all(session["jobs"] > 0 for session in got["sessions"]), got
    # As many as the worker's default lets one user have, beside the tool's own.
    sessions = 200 if is_sanitized() else 1000
    got = report(socket, "--sessions", str(sessions), "--threads", "--depth", "1", "--shape",
                 "0,16,16", "--jobs", "2000")
    assert got["passed"] and got["jobs"] == 2000 and len(got["sessions"]) == sessions, got


def check_wrong(socket):
    """The test of the verification: it must find what is wrong."""
    # In a build with AddressSanitizer its library is not the first then, which it may not mind.
    flip = {"LD_PRELOAD": FLIP, "ASAN_OPTIONS": "verify_asan_link_order=0"}
    for kind in ("full", "freivalds"):
        result = run(socket, "--jobs", "200", "--verify", kind, "--shape", "8,16,16", "--seed", "3",
                     code=1, **flip)
        assert "wrong result" in result.stderr and "FAILED" in result.stdout, result
    run(socket, "--jobs", "200", "--verify", "none", **flip)


def check_hgrm(path, jobs):
    with open(path, encoding="ascii") as file:
        lines = file.read().splitlines()
    assert re.fullmatch(r" +Value +Percentile TotalCount 1/\(1-Percentile\)", lines[0]), lines[0]
    rows = [line.split() for line in lines if line and line[0] != "#"][1:]
    values, levels, counts = ([float(row[i]) for row in rows] for i in range(3))
    assert values == sorted(values) and levels == sorted(levels) and counts == sorted(counts)
    assert levels[0] == 0 and levels[-1] == 1 and counts[-1] == jobs, rows[-1]
    assert any(abs(level - 0.5) < 1e-9 for level in levels), levels
    assert re.search(rf"^#\[Max .* Total count +=\s+{jobs}\]$", "\n".join(lines), re.M), lines[-3:]


def check_open(socket, directory):
    hgrm, png = directory + "/out.hgrm", directory + "/it's.png"
    plot = ["--plot", png] if shutil.which("gnuplot") else []
    got = report(socket, "--rate", "2000", "--jobs", "1000", "--hgrm", hgrm, *plot)
    assert got["passed"] and got["load"]["rate"] == 2000, got
    assert 0.4 < got["seconds"] < 5, got["seconds"] # a slow machine is late, never early
    check_hgrm(hgrm, 1000)
    if plot:
        with open(png, "rb") as file:
            head = file.read(24)
        assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", head[16:]) == (1000, 900)
    # More than any machine serves: the last ones have waited since the beginning.
    got = report(socket, "--rate", "1e9", "--seconds", "0.5", "--depth", "4", "--wait", "spin")
    assert got["passed"] and got["latency_ns"]["max"] > 300e6, got["latency_ns"]
    run(socket, "--seconds", "0.1", "--hgrm", directory + "/missing/file", code=73)
    run(socket, "--rtt", "--rate", "4", code=64)


def main():
    with tempfile.TemporaryDirectory() as directory:
        socket = directory + "/socket"
        read_end, write_end = os.pipe()
        worker = subprocess.Popen([GEMMD, "--socket", socket, "--pool-bytes", "64M", "--ready-fd",
                                   str(write_end)], pass_fds=[write_end], stderr=subprocess.DEVNULL)
        os.close(write_end)
        try:
            assert os.read(read_end, 16) == b"READY\n"
            check_closed(socket)
            check_wrong(socket)
            check_open(socket, directory)
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=20) == 0


main()
