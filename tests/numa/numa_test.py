#!/usr/bin/python3
"""Boots a guest with two NUMA nodes and runs tests/numa/guest.c in it.

usage: numa_test.py GUEST GEMMD LIBRARY_FOLDER

Needs qemu-system-x86_64 and a kernel of Debian's cloud flavour: $GEMMD_TEST_KERNEL, else one in
/boot, else the package extracted to $XDG_CACHE_HOME/gemmd/kernel (tools/check does that).  Exit 77
(SKIP) without them.  Emulated (TCG): about 10 s to boot on a quiet machine, and no KVM is needed.
"""
import glob
import gzip
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile

LIMIT_S = 150
CHECKS = {"two_workers", "no_huge_pages_on_one_node", "no_such_node", "cpu_comes_back"}


def skip(reason):
    print(f"SKIP: {reason}")
    sys.exit(77)


def find_kernel():
    given = os.environ.get("GEMMD_TEST_KERNEL")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    found = [given] if given else []
    for pattern in ("/boot/vmlinuz-*cloud-amd64", f"{cache}/gemmd/kernel/boot/vmlinuz-*"):
        found += sorted(glob.glob(pattern))
    for path in found:
        if os.access(path, os.R_OK):
            return path
    skip("no kernel for the guest: package linux-image-cloud-amd64, or GEMMD_TEST_KERNEL")


def libraries(programs, folder):
    """What the loader would map, the loader included: path in the guest -> file here."""
    environment = dict(os.environ, LD_LIBRARY_PATH=folder)
    files = {}
    for program in programs:
        text = subprocess.run(["ldd", program], env=environment, check=True, text=True,
                              stdout=subprocess.PIPE).stdout
        for name, path in re.findall(r"(\S+) => (/\S+)", text):
            files["/lib/" + name] = path
        for path in re.findall(r"^\s*(/\S*ld-linux\S*)", text, re.M):
            files[path] = path
    return files


def add(archive, name, mode, data=b"", device=(0, 0)):
    """One entry of a cpio archive in the "newc" format."""
    add.inode += 1
    fields = [add.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
    entry = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    entry += b"\0" * (-len(entry) % 4)
    archive.write(entry + data + b"\0" * (-len(data) % 4))


add.inode = 0


def make_initramfs(path, guest, gemmd, folder):
    files = {"/init": guest, "/gemmd": gemmd, **libraries((guest, gemmd), folder)}
    folders = {"/dev"}
    for name in files:
        while os.path.dirname(name) != "/":
            name = os.path.dirname(name)
            folders.add(name)
    with gzip.open(path, "wb", compresslevel=1) as archive:
        for name in sorted(folders):
            add(archive, name[1:], stat.S_IFDIR | 0o755)
        add(archive, "dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        for name, source in files.items():
            with open(source, "rb") as file:
                add(archive, name[1:], stat.S_IFREG | 0o755, file.read())
        add(archive, "TRAILER!!!", 0)


def boot(kernel, initramfs):
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "4",
               "-m", "768M", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
               "-kernel", kernel, "-initrd", initramfs,
               "-append", "console=ttyS0 quiet panic=-1 rdinit=/init",
               "-object", "memory-backend-ram,id=m0,size=384M",
               "-object", "memory-backend-ram,id=m1,size=384M",
               "-numa", "node,nodeid=0,cpus=0-1,memdev=m0",
               "-numa", "node,nodeid=1,cpus=2-3,memdev=m1"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=LIMIT_S)
        return done.stdout
    except subprocess.TimeoutExpired as late:
        print(f"no end after {LIMIT_S} s")
        return late.stdout or b""


def main():
    guest, gemmd, folder = map(os.path.abspath, sys.argv[1:])
    if not shutil.which("qemu-system-x86_64"):
        skip("qemu-system-x86_64 is missing (package qemu-system-x86)")
    kernel = find_kernel()
    with tempfile.TemporaryDirectory() as here:
        initramfs = os.path.join(here, "initramfs")
        make_initramfs(initramfs, guest, gemmd, folder)
        output = boot(kernel, initramfs).decode(errors="replace").replace("\r", "")
    print(output)
    passed = set(re.findall(r"^ok (\w+)$", output, re.M))
    failed = re.findall(r"^FAIL .*$", output, re.M)
    if failed or passed != CHECKS or "\nEND\n" not in output:
        print(f"passed {sorted(passed)} of {sorted(CHECKS)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
