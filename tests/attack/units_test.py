#!/usr/bin/python3
"""The shipped unit leaves the worker little to reach: systemd's own measure, at most 1.0 of 10.

usage: units_test.py UNIT GEMMD
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

EXPOSURE_MAX = 1.0


def main():
    unit, gemmd = sys.argv[1:3]
    if not shutil.which("systemd-analyze"):
        print("SKIP: systemd-analyze is missing")
        return 77
    with tempfile.TemporaryDirectory() as directory:
        # An instance, as the administrator would enable; the program is the one just built.
        path = os.path.join(directory, "gemmd@0.service")
        with open(unit, encoding="utf-8") as file:
            text = re.sub(r"^ExecStart=\S+", "ExecStart=" + gemmd, file.read(), flags=re.M)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        result = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", path],
                                capture_output=True, text=True, check=False)
        match = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
        if not match:
            print(f"SKIP: this systemd-analyze has no offline mode: {result.stderr.strip()}")
            return 77
        faults = [line for line in result.stdout.splitlines() if line.startswith("✗")]
        print("\n".join(faults))
        print(f"exposure {match.group(1)}, at most {EXPOSURE_MAX} wanted")
        verify = subprocess.run(["systemd-analyze", "verify", "--man=no", path],
                                capture_output=True, text=True, check=False)
        own = [line for line in verify.stderr.splitlines() if "gemmd@" in line]
        print("\n".join(own))
        return 0 if float(match.group(1)) <= EXPOSURE_MAX and not own else 1


if __name__ == "__main__":
    sys.exit(main())
