#!/usr/bin/python3
"""memcheck over the worker, the library and the unit tests.

usage: valgrind_test.py GEMMD PROGRAM…

A program whose name starts with e2e_ or attack_ runs as it is, with its workers under valgrind; any
other runs under valgrind itself.  valgrind knows neither AVX-512 nor all of io_uring: kernels run at
AVX2, the event loop at F3, and the seccomp filters are off, for they would stop valgrind's own calls.
"""
import os
import shutil
import stat
import subprocess
import sys
import tempfile

CHECK = ["valgrind", "-q", "--error-exitcode=99", "--leak-check=full",
         "--errors-for-leak-kinds=definite,indirect"]


def main():
    gemmd, programs = sys.argv[1], sys.argv[2:]
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
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
