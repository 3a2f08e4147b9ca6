#!/usr/bin/python3
"""memcheck over the worker, the library and the tests.

usage: valgrind_test.py [--stress GEMMD-STRESS SECONDS] GEMMD PROGRAM…
       valgrind_test.py --all BUILD [NAME…]

A program whose name starts with e2e_ or attack_ runs as it is, with its workers under valgrind; any
other runs under valgrind itself.  valgrind knows neither AVX-512 nor all of io_uring: kernels run at
AVX2, the event loop at F3, and the seccomp filters are off, for they would stop valgrind's own calls.
With --stress gemmd-stress keeps a worker under valgrind busy for so long, and checks all its results.
--all takes the suites unit and e2e of a build folder (or the named tests of them) but for LEFT_OUT,
and a minute of gemmd-stress.
"""
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile

# Of each worker, whatever the test asks for.
FORCED = {"GEMMD_EVENT_LEVEL": "F3", "GEMMD_CPU_MASK": "avx2"}
# Tests that say nothing under valgrind, or too little for their time, and why.
LONG = "it takes many minutes; the address sanitizer runs it"
LEFT_OUT = {
    "steady": "its malloc is its own",
    "worker sandbox": "valgrind knows no seccomp(2) and landlock(7)",
    "worker event_level": "it asks for io_uring",
    "worker event_loop": "likewise",
    "fallback": "likewise",
    "wake": "likewise",
    "attack policy": "it looks for the seccomp filters",
    "cgroup": "the limits are of a worker's memory without valgrind's",
    "syscall": "it counts system calls",
    "restart": "it needs two levels of kernels, and measures time",
    "upgrade": "gemmctl upgrade starts what /proc says the worker is: valgrind",
    "load": "gemmd-pack packs for the machine's kernel, which a worker under valgrind has not",
    "bad_model": "likewise",
    "coalesce": "it measures how much is shared, and how fast",
    "fair": "it measures time",
    "cancel": LONG,
    "operands": LONG,
    "worker layers": LONG,
    "worker pool_model": LONG,
    "proto job": LONG,
}

# One thread runs at a time, and some spin for others: fair turns (which cost nothing here).
CHECK = ["valgrind", "-q", "--error-exitcode=99", "--leak-check=full", "--fair-sched=yes",
         "--errors-for-leak-kinds=definite,indirect"]


def stress(wrapper, program, seconds, environment):
    """gemmd-stress against a worker under valgrind.  True: both are content."""
    socket = os.path.join(os.path.dirname(wrapper), "socket")
    ready, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    worker = subprocess.Popen([wrapper, "--socket", socket, "--ready-fd", str(write_end)],
                              env=environment, close_fds=False)
    os.close(write_end)
    os.read(ready, 16)
    os.close(ready)
    result = subprocess.run([program, "--socket", socket, "--sessions", "4", "--shape", "4,128,256",
                             "--shape", "1,64,64", "--shape", "0,64,64", "--seconds", seconds],
                            check=False, capture_output=True, text=True)
    worker.send_signal(signal.SIGTERM)
    code = worker.wait()
    good = code == 0 and result.returncode == 0
    print(f"{'ok' if good else 'FAILED'}: stress {seconds} s ({result.returncode}, worker {code})")
    if not good:
        print(result.stdout[-3000:], result.stderr[-3000:])
    return good


def listed(build, names):
    """name -> (command, whole, environment) of tests of the suites unit and e2e."""
    tests = json.loads(subprocess.run(["meson", "introspect", build, "--tests"], check=True,
                                      capture_output=True, text=True).stdout)
    chosen = {}
    for test in tests:
        suites = {suite.split(":")[-1] for suite in test["suite"]} & {"unit", "e2e"}
        name = test["name"]
        if not suites or "python" in test["cmd"][0] or (names and name not in names):
            continue
        if name in LEFT_OUT and not names:
            print(f"left out: {name}: {LEFT_OUT[name]}")
            continue
        chosen[name] = test["cmd"], "e2e" in suites, test["env"]
    return chosen


def read_reports(directory):
    """What the worker's valgrinds said, which is removed."""
    reports = ""
    for path in sorted(os.listdir(directory)):
        if path.startswith("log."):
            with open(os.path.join(directory, path), encoding="utf-8") as file:
                # "--PID--" lines are its own news, of calls it does not know.
                reports += "".join(l for l in file if l.startswith("=="))
            os.remove(os.path.join(directory, path))
    return reports.strip()


def check(directory, name, command, whole, environment):
    """True: the test passed, and valgrind is content."""
    result = subprocess.run(([] if whole else CHECK) + command, env=environment,
                            capture_output=True, text=True, check=False)
    reports = read_reports(directory)
    good = result.returncode in (0, 77) and not reports
    print(f"{'ok' if good else 'FAILED'}: {name} ({result.returncode})", flush=True)
    if not good:
        print(result.stdout[-3000:], result.stderr[-3000:], reports[-6000:])
    return good


def main():
    arguments = sys.argv[1:]
    load = None
    if not shutil.which("valgrind"):
        print("SKIP: valgrind is missing")
        return 77
    if arguments[0] == "--all":
        build, names = os.path.abspath(arguments[1]), arguments[2:]
        tests = listed(build, names)
        gemmd = os.path.join(build, "worker/gemmd")
        if not names or "stress" in names:
            load = [os.path.join(build, "tools/gemmd-stress"), "60"]
    else:
        load = arguments[1:3] if arguments[0] == "--stress" else None
        gemmd, *programs = arguments[3:] if load else arguments
        tests = {os.path.basename(path): ([path], os.path.basename(path).startswith(
            ("e2e_", "attack_")), {}) for path in programs}
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        wrapper = os.path.join(directory, "gemmd")
        with open(wrapper, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\n" + "".join(f"export {n}={v}\n" for n, v in FORCED.items()) +
                       "exec " + " ".join(CHECK) +
                       f" --log-file={directory}/log.%p {gemmd} \"$@\" --sandbox off --watchdog 0\n")
        os.chmod(wrapper, stat.S_IRWXU)
        environment = dict(os.environ, GEMMD_TEST_WORKER=wrapper, GEMMD_TEST_SLOW="1", **FORCED)
        for name, (command, whole, more) in tests.items():
            failed += not check(directory, name, command, whole, {**more, **environment})
        if load:
            failed += not stress(wrapper, *load, environment)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
