#!/usr/bin/python3
"""Each system call of the worker fails, one at a time: no crash, no hang, no wrong success.

usage: syscall_fault_test.py GEMMD HELLO [--full]

strace -e inject makes the N-th call of one kind fail with one errno, from the worker's main function
on.  The worker must then either end with an exit code of <sysexits.h> and a reason, or get READY; a
client (HELLO, which checks its result) must succeed or say why not, the others must succeed, and
SIGTERM must still end the worker with 0.
"""
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ERRORS = ("ENOMEM", "EPERM", "EINTR", "EAGAIN", "EMFILE", "EIO")
ERRORS_QUICK = ("ENOMEM", "EPERM", "EINTR")
# Calls whose failure is the end by their nature, and those with which the C library ends the
# process by itself because the kernel never answers them so (futex, rt_sigprocmask).
LEFT_OUT = {"exit", "exit_group", "execve", "rt_sigreturn", "restart_syscall", "arch_prctl",
            "set_tid_address", "set_robust_list", "rseq", "brk", "munmap", "futex",
            "rt_sigprocmask"}
LIMIT_S = 30
# An end by the system's own words counts as a reason, too: the C library's start cannot log.
CODES = set(range(64, 79))


def count_calls(command, stop):
    """Calls by name, over all threads."""
    with tempfile.NamedTemporaryFile("r") as trace:
        process = subprocess.Popen(["strace", "-f", "-qq", "-o", trace.name] + command,
                                   close_fds=False, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        stop(process)
        counts = {}
        for line in trace:
            match = re.match(r"\d+ +(\w+)\(", line)
            if match:
                counts[match.group(1)] = counts.get(match.group(1), 0) + 1
        return counts


def worker_of(strace):
    """The process id of the worker that strace runs; None when it is gone."""
    children = subprocess.run(["pgrep", "-P", str(strace.pid)], capture_output=True, text=True,
                              check=False).stdout.split()
    return int(children[0]) if children else None


class Trial:
    def __init__(self, gemmd, hello):
        self.gemmd, self.hello = gemmd, hello
        self.directory = tempfile.mkdtemp(prefix="gemmd-fault-")
        self.socket = os.path.join(self.directory, "s")

    def close(self):
        shutil.rmtree(self.directory)

    def command(self, ready_fd):
        return [self.gemmd, "--socket", self.socket, "--pool-bytes", "64M", "--spin-us", "0",
                "--ready-fd", str(ready_fd), "--sandbox", "off"]

    def run_client(self):
        try:
            return subprocess.run([self.hello], env=dict(os.environ, GEMMD_SOCKET=self.socket),
                                  capture_output=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            return None

    def normal(self):
        """Counts of a life without faults."""
        ready, write_end = os.pipe()
        os.set_inheritable(write_end, True)

        def live(process):
            select.select([ready], [], [], LIMIT_S)
            self.run_client()
            os.kill(worker_of(process), signal.SIGTERM)
            process.wait(LIMIT_S)

        counts = count_calls(self.command(write_end), live)
        os.close(ready)
        os.close(write_end)
        return counts

    def fault(self, name, error, when):
        """None, or what went wrong; and how it ended."""
        ready, write_end = os.pipe()
        os.set_inheritable(write_end, True)
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}",
                 "-e", f"inject={name}:error={error}:when={when}"] + self.command(write_end),
                close_fds=False, stdout=subprocess.DEVNULL, stderr=log)
            os.close(write_end)
            try:
                return self.judge(process, ready)
            finally:
                os.close(ready)
                if process.poll() is None:
                    worker = worker_of(process)
                    if worker is not None:
                        os.kill(worker, signal.SIGKILL)
                    process.kill()
                    process.wait()

    @staticmethod
    def wait_briefly(process, second):
        """The exit code of a worker that is ending; None when it serves."""
        if second is not None and second.returncode == 0:
            return process.poll()
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            return None

    def judge(self, process, ready):
        deadline = time.monotonic() + LIMIT_S
        said = b""
        while not said.endswith(b"\n") and time.monotonic() < deadline:
            if not select.select([ready], [], [], 0.1)[0]:
                continue
            got = os.read(ready, 16)
            if not got:
                break
            said += got
        if said != b"READY\n":
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return "hangs at the start", None
            return (None if code in CODES else f"ended with {code} at the start"), "refused"
        first, second = self.run_client(), self.run_client()
        ended = self.wait_briefly(process, second)
        if ended is not None:  # by itself, and with a reason
            return (None if ended in CODES else f"ended with {ended}"), "ended"
        if first is None or second is None:
            return "the client hangs", None
        if first.returncode not in (0, 1) or (first.returncode and not first.stderr):
            return f"the client ended with {first.returncode}", None
        if first.returncode == 0 and second.returncode:  # the fault was in the second one's life
            first, second = second, self.run_client()
        if second is None or second.returncode:
            return "the next client fails, too", None
        worker = worker_of(process)
        if worker is None:
            return f"the worker is gone: {process.wait()}", None
        os.kill(worker, signal.SIGTERM)
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            return "does not end", None
        if code:
            return f"ended with {code}", None
        return None, "served" if first.returncode == 0 else "refused a client"


def accept_rests(trial):
    """While accept finds no memory or descriptor a connection waits, and the worker with it: None,
    or what went wrong."""
    for error in ("ENOMEM", "EMFILE"):
        ready, write_end = os.pipe()
        os.set_inheritable(write_end, True)
        with tempfile.NamedTemporaryFile("r") as trace:
            process = subprocess.Popen(
                ["strace", "-f", "-qq", "-o", trace.name, "-e", "trace=accept4", "-e",
                 f"inject=accept4:error={error}"] + trial.command(write_end), close_fds=False,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os.close(write_end)
            os.read(ready, 16)
            os.close(ready)
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.connect(trial.socket)
            before = time.monotonic()
            time.sleep(0.3)
            tries = sum("accept4" in line for line in trace)
            passed_ms = (time.monotonic() - before) * 1000
            client.close()
            os.kill(worker_of(process), signal.SIGTERM)
            process.wait(LIMIT_S)
        if not 1 <= tries <= 2 * (passed_ms / 5 + 1):  # EMFILE tries twice
            return f"{tries} times accept in {passed_ms:.0f} ms after {error}"
    return None


def main():
    gemmd, hello = sys.argv[1:3]
    full = "--full" in sys.argv
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False,
                           stderr=subprocess.DEVNULL) if shutil.which("strace") else None
    if probe is None or probe.returncode:
        print("SKIP: strace is missing or ptrace is not permitted")
        return 77
    trial = Trial(gemmd, hello)
    # What the loader and the C library do before main.
    before = count_calls([gemmd, "--version"], lambda process: process.wait())
    counts = trial.normal()
    outcomes, faults, runs = {}, [], 0
    for name in sorted(set(counts) - LEFT_OUT):
        own = counts[name] - before.get(name, 0)
        for index in range(1, min(own, 20 if full else 3) + 1):
            for error in ERRORS if full else ERRORS_QUICK:
                when = before.get(name, 0) + index
                fault, outcome = trial.fault(name, error, when)
                runs += 1
                if fault:
                    faults.append(f"{name} #{index} {error}: {fault}")
                    print(faults[-1], flush=True)
                else:
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1
    fault = accept_rests(trial)
    if fault:
        faults.append(fault)
        print(fault, flush=True)
    trial.close()
    print(f"{runs} faults in {len(set(counts) - LEFT_OUT)} system calls: {outcomes}, "
          f"{len(faults)} wrong")
    return 1 if faults or runs < 50 else 0


if __name__ == "__main__":
    sys.exit(main())
