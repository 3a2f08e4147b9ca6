#!/usr/bin/python3
"""memcheck over the worker, the library and the unit tests.

usage: valgrind_test.py [--stress GEMMD-STRESS SECONDS] GEMMD PROGRAM…

A program whose name starts with e2e_ or attack_ runs as it is, with its workers under valgrind; any
other runs under valgrind itself.  valgrind knows neither AVX-512 nor all of io_uring: kernels run at
AVX2, the event loop at F3, and the seccomp filters are off, for they would stop valgrind's own calls.
With --stress gemmd-stress keeps a worker under valgrind busy for so long, and checks all its results.
"""
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile

CHECK = ["valgrind", "-q", "--error-exitcode=99", "--leak-check=full",
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


def main():
    arguments = sys.argv[1:]
    load = arguments[1:3] if arguments[0] == "--stress" else None
    gemmd, *programs = arguments[3:] if load else arguments
    if not shutil.which("valgrind"):
        print("SKIP: valgrind is missing")
        return 77
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        wrapper = os.path.join(directory, "gemmd")
        log = os.path.join(directory, "log")
        with open(wrapper, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nexec " + " ".join(CHECK) +
                       f" --log-file={log}.%p {gemmd} \"$@\" --sandbox off --watchdog 0\n")
        os.chmod(wrapper, stat.S_IRWXU)
        environment = dict(os.environ, GEMMD_TEST_WORKER=wrapper, GEMMD_EVENT_LEVEL="F3",
                           GEMMD_CPU_MASK="avx2")
        for program in programs:
            name = os.path.basename(program)
            whole = name.startswith(("e2e_", "attack_"))
            result = subprocess.run(([] if whole else CHECK) + [program], env=environment,
                                    capture_output=True, text=True, check=False)
            reports = ""
            for path in sorted(os.listdir(directory)):
                if path.startswith("log."):
                    with open(os.path.join(directory, path), encoding="utf-8") as file:
                        # "--PID--" lines are its own news, of calls it does not know.
                        reports += "".join(l for l in file if l.startswith("=="))
                    os.remove(os.path.join(directory, path))
            good = result.returncode in (0, 77) and not reports.strip()
            failed += not good
            print(f"{'ok' if good else 'FAILED'}: {name} ({result.returncode})", flush=True)
            if not good:
                print(result.stdout[-3000:], result.stderr[-3000:], reports[-6000:])
        if load:
            failed += not stress(wrapper, *load, environment)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
