#!/usr/bin/python3
"""gemmd-top on a terminal of 80 x 24, and of other sizes: its keys sort, switch lists and end it, and
give the cursor back; it outlives its worker; `--once --json` gives the same as numbers, and gemmctl
stats --watch a line each second.

usage: top_test.py GEMMD-TOP GEMMD-STRESS GEMMD GEMMCTL
"""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

TOP, STRESS, GEMMD, CTL = sys.argv[1:5]
HANG_S = 60
KEYS = "j jobs  r rows  e compute"
HEAD = {"sessions": "    ID      PID", "layers": "LAYER "}
# Of the load's processes: many jobs, many rows, much compute.
SHAPES = ("1,64,64", "200,64,64", "8,1024,1024")
# Key, and the column of the sessions' list that then descends (the id ascends).
SORTS = {"j": 2, "r": 3, "e": 4, "i": 0}


class Screen:
    """The program on a terminal, and the last whole picture it has drawn."""

    def __init__(self, socket):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(TOP, [TOP, "--socket", socket, "--interval", "0.2"])
        self.text = ""
        self.lines = []
        self.resize(24, 80)

    def resize(self, lines, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.size = lines, columns

    def read(self):
        """More of the output; False at its end."""
        ready, _, _ = select.select([self.fd], [], [], HANG_S)
        assert ready, "gemmd-top draws nothing"
        try:
            got = os.read(self.fd, 65536)
        except OSError: # EIO: the other side is closed
            got = b""
        self.text += got.decode("ascii")
        return bool(got)

    def picture(self):
        """The next picture that began after this call."""
        start = len(self.text)
        while True:
            pictures = self.text[start:].split("\033[H")[1:]
            if pictures and "\033[K" in pictures[0] and KEYS in pictures[0].split("\n")[-1]:
                break
            assert self.read(), self.text[-2000:]
        self.lines = pictures[0].replace("\033[K", "").replace("\r", "").split("\n")
        self.lines[-1] = self.lines[-1].split("\033")[0] # what follows the picture
        return self.lines

    def fits(self):
        return len(self.lines) == self.size[0] and max(map(len, self.lines)) <= self.size[1]

    def press(self, key):
        os.write(self.fd, key.encode("ascii"))

    def rows(self, head):
        """Of the list below that head; None: it is not there."""
        starts = [i for i, line in enumerate(self.lines) if line.startswith(head)]
        if not starts:
            return None
        return [line.split() for line in self.lines[starts[0] + 1:-1] if line.strip()]


def wait_for(screen, condition, what):
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        screen.picture()
        if condition():
            return
    raise AssertionError(what + "\n" + "\n".join(screen.lines))


def check_order(screen, key):
    """Of three pictures in a row: one could be in that order by chance."""
    screen.press(key)
    screen.picture() # may have been under way
    for _ in range(3):
        rows = screen.rows(HEAD["sessions"]) if screen.picture() else []
        values = [float(row[SORTS[key]]) for row in rows]
        assert len(values) >= len(SHAPES) and values == sorted(values, reverse=key != "i"), \
            f"key {key}\n" + "\n".join(screen.lines)


def check_keys(socket):
    screen = Screen(socket)
    wait_for(screen, lambda: len(screen.rows(HEAD["sessions"]) or []) >= len(SHAPES),
             "the sessions are not shown")
    assert screen.fits(), screen.lines
    assert not termios.tcgetattr(screen.fd)[3] & (termios.ICANON | termios.ECHO)
    for key in SORTS:
        check_order(screen, key)
    screen.press("w") # its column has a unit, and is equal for most
    screen.press("l")
    wait_for(screen, lambda: screen.rows(HEAD["layers"]), "key l shows no layers")
    screen.press("s")
    wait_for(screen, lambda: screen.rows(HEAD["sessions"]), "key s shows no sessions")
    for size in ((15, 60), (50, 200)):
        screen.resize(*size)
        screen.size = min(size[0], 24), min(size[1], 80)
        wait_for(screen, screen.fits, f"a terminal of {size}")
    check_stop(screen)
    return screen


def check_stop(screen):
    """Stopped, it leaves the terminal as it was; afterwards it draws on."""
    os.kill(screen.pid, signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(screen.pid, os.WUNTRACED)[1])
    assert termios.tcgetattr(screen.fd)[3] & (termios.ICANON | termios.ECHO)
    os.kill(screen.pid, signal.SIGCONT)
    screen.picture()
    assert not termios.tcgetattr(screen.fd)[3] & (termios.ICANON | termios.ECHO)


def check_end(screen):
    screen.press("q")
    while screen.read():
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(screen.pid, 0)[1]) == 0
    assert screen.text.endswith("\033[?25h\r\n"), "the cursor is not back"


def check_no_terminal(socket):
    result = subprocess.run([TOP, "--socket", socket], capture_output=True, text=True,
                            timeout=HANG_S)
    assert result.returncode == 64 and "--once" in result.stderr and not result.stdout, result
    os.environ["TERM"] = "dumb"
    screen = Screen(socket)
    while screen.read():
        pass
    os.environ["TERM"] = "vt100"
    assert os.waitstatus_to_exitcode(os.waitpid(screen.pid, 0)[1]) == 64
    assert "--once" in screen.text and "\033" not in screen.text, screen.text


def check_once(socket):
    command = [TOP, "--socket", socket, "--once", "--interval", "0.3"]
    result = subprocess.run([*command, "--json", "--sort", "rows"], capture_output=True, text=True,
                            timeout=HANG_S, check=True)
    got = json.loads(result.stdout)
    rates = [session["rows_per_s"] for session in got["sessions"]]
    assert len(rates) >= len(SHAPES) and rates == sorted(rates, reverse=True) and rates[0] > 0, got
    assert got["seconds"] >= 0.3 and got["rows_per_panel"] >= 1 and got["slices"] > 0, got
    assert sum(core["busy_ns"] for core in got["cores"]) > 0, got
    for core in got["cores"]: # all of the time is accounted for
        parts = [core[key] for key in ("busy_ns", "spin_ns", "sleep_ns")]
        assert min(parts) >= 0 and abs(sum(parts) - got["seconds"] * 1e9) < 10, got
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert "\033" not in result.stdout and re.search(r"^ +ID +PID", result.stdout, re.M), result


def start_worker(socket):
    ready, ready_end = os.pipe()
    worker = subprocess.Popen([GEMMD, "--socket", socket, "--ready-fd", str(ready_end)],
                              pass_fds=[ready_end])
    os.close(ready_end)
    assert os.read(ready, 6) == b"READY\n"
    os.close(ready)
    return worker


def end(process):
    process.send_signal(signal.SIGTERM)
    process.wait(HANG_S)


WATCHED = re.compile(r" *(\d+) jobs/s +(\d+) rows/s +[\d.]+ GOPS while busy, +([\d.]+) rows per panel, "
                     r"0 late, p99 so far: waits [\d.]+ \S+, runs [\d.]+ \S+, "
                     r"busy/spin %:(?:  CPU\d+ +\d+/\d+)+\n")


def start_watch(socket):
    watch = subprocess.Popen([CTL, "--socket", socket, "stats", "--watch"], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(2):
        line = watch.stdout.readline()
        found = WATCHED.fullmatch(line)
        assert found and min(map(float, found.groups())) > 0, line
    return watch


def check_watch_end(watch):
    """With its worker."""
    _, errors = watch.communicate(timeout=HANG_S)
    assert watch.returncode == 69 and "gone" in errors, errors


def check_successor(screen, socket, worker):
    """A worker that ends is said to be gone; the next one is shown."""
    end(worker)
    wait_for(screen, lambda: screen.lines[0].startswith("gemmd-top: "), "the end is not shown")
    assert "\n" not in screen.lines[0] and socket in screen.lines[0], screen.lines
    worker = start_worker(socket)
    wait_for(screen, lambda: f"pid {worker.pid} " in screen.lines[0], "the next is not shown")
    end(worker)


def main():
    with tempfile.TemporaryDirectory(prefix="gemmd-top-") as directory:
        socket = directory + "/worker.sock"
        worker = start_worker(socket)
        load = [subprocess.Popen([STRESS, "--socket", socket, "--sessions", "1", "--seconds", "300",
                                  "--verify", "none", "--shape", shape],
                                 stdout=subprocess.DEVNULL) for shape in SHAPES]
        try:
            screen = check_keys(socket)
            check_once(socket)
            check_no_terminal(socket)
            watch = start_watch(socket)
            for wrong in ("0", "2x", "-1", "3601", ""):
                assert subprocess.run([CTL, "stats", "--watch=" + wrong], stderr=subprocess.PIPE,
                                      check=False).returncode == 64
            assert all(process.poll() is None for process in (*load, worker))
            for process in load:
                end(process)
            check_successor(screen, socket, worker)
            check_watch_end(watch)
            check_end(screen)
        finally:
            for process in (*load, worker):
                if process.poll() is None:
                    end(process)


if __name__ == "__main__":
    main()
