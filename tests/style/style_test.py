#!/usr/bin/python3
"""The test of tools/check-style and tools/check-includes: each fault, put into a clean tree, is caught
under its own rule; the clean tree passes."""
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADER = "#ifndef GEMMD_{0}_H\n#define GEMMD_{0}_H\n{1}#endif\n"
README = "# x\n\n## Environment\n\n| Name | Default |\n|---|---|\n| `GEMMD_LOG` | warn |\n\n## Next\n"

CLEAN = {
    "README.md": README,
    "client/gemmd.h": HEADER.format("GEMMD", "#include <stddef.h>\n"),
    "proto/ring.h": HEADER.format("RING", "#include <stdint.h>\n"),
    "proto/stats.h": HEADER.format("STATS", ""),
    "kernels/gemm.h": HEADER.format("GEMM", ""),
    "kernels/x86/gemm_avx2.c": '#include "kernels/gemm.h"\n#include <immintrin.h>\n',
    "worker/log.h": HEADER.format("LOG", ""),
    "worker/pool.h": HEADER.format("POOL", '#include "worker/log.h"\n'),
    "worker/session.h": HEADER.format("SESSION", '#include "proto/ring.h"\n'),
    "worker/session.c": '#include "worker/session.h"\n#include "worker/pool.h"\n',
    "worker/event_loop.h": HEADER.format("LOOP", ""),
    "worker/event_loop.c": '#include "worker/event_loop.h"\n#include <liburing.h>\n',
    "worker/options.c": 'int f(void)\n{\n    return getenv("GEMMD_LOG") != 0;\n}\n',
    "client/submit.c": '#include "client/gemmd.h"\n#include "proto/ring.h"\n',
    "tools/gemmctl.c": '#include "client/gemmd.h"\n#include "proto/stats.h"\n',
    "tools/run.sh": "#!/bin/bash\necho ok\n",
}

LONG_FUNCTION = "int f(void)\n{\n" + "    g();\n" * 70 + "}\n"
ALLOWED_FUNCTION = "int f(void)\n{\n" + "    g();\n" * 68 + "}\n"

# program, rule that must be reported (None: must pass), file, contents
CASES = [
    ("check-style", "long-line", "client/a.c", "/* " + "x" * 98 + " */\n"),
    ("check-style", None, "client/a.c", "/* " + "x" * 94 + " */\n"),
    ("check-style", "tab", "client/a.c", "\tint x;\n"),
    ("check-style", "trailing-blank", "client/a.c", "int x; \n"),
    ("check-style", "trailing-blank", "docs.md", "text \n"),
    ("check-style", "no-newline", "client/a.c", "int x;"),
    ("check-style", "long-function", "client/a.c", LONG_FUNCTION),
    ("check-style", None, "client/a.c", ALLOWED_FUNCTION),
    ("check-style", "long-file", "client/a.c", "int x;\n" * 501),
    ("check-style", None, "client/a.c", "int x;\n" * 500),
    ("check-style", "banned-call", "worker/a.c", "int f(char *x)\n{\n    strcpy(x, x);\n}\n"),
    ("check-style", "banned-call", "worker/a.c", "    n = sprintf (x, y);\n"),
    ("check-style", "banned-call", "worker/a.c", "    n = atoi(x);\n"),
    ("check-style", "banned-call", "worker/a.c", "    gets(x);\n"),
    ("check-style", "banned-call", "worker/a.c", "    p = alloca(9);\n"),
    ("check-style", "banned-call", "worker/a.c", "    t = time(NULL);\n"),
    ("check-style", None, "worker/a.c", '    /* strcpy(x) */ puts("gets(x) time(NULL)"); uptime(1);\n'),
    ("check-style", "banned-word", "worker/a.c", "    clock_gettime(CLOCK_REALTIME, &now);\n"),
    ("check-style", "typedef", "worker/a.c", "typedef struct x x_t;\n"),
    ("check-style", "todo", "worker/a.c", "/* TODO make it work */\n"),
    ("check-style", None, "worker/a.c", "/* TODO(#12): when it is there */\n"),
    ("check-style", "todo", "tools/b.sh", "#!/bin/bash\n# FIXME\n"),
    ("check-style", "machine-path", "worker/a.c", '    open("/home/someone/x");\n'),
    ("check-style", "machine-path", "docs.md", "see /" "work/tree\n"),
    ("check-style", "guard", "worker/a.h", "#ifndef X\n#endif\n"),
    ("check-style", "emoji", "docs.md", "fast \U0001F680\n"),
    ("check-style", "environment", "worker/a.c", '    x = getenv("GEMMD_SECRET");\n'),
    ("check-style", "environment", "worker/options.c", "int x;\n"),
    ("check-style", "shellcheck", "tools/b.sh", '#!/bin/bash\nfor f in $(ls *.c); do rm $f; done\n'),
    ("check-includes", "layer", "proto/a.c", '#include "kernels/gemm.h"\n'),
    ("check-includes", "layer", "kernels/a.c", '#include "proto/ring.h"\n'),
    ("check-includes", "layer", "kernels/a.c", '#include "kernels/x86/a.h"\n'),
    ("check-includes", "layer", "client/a.c", '#include "worker/log.h"\n'),
    ("check-includes", "layer", "worker/session.c", '#include "client/gemmd.h"\n'),
    ("check-includes", "layer", "worker/session.c", '#include "kernels/x86/a.h"\n'),
    ("check-includes", "layer", "tools/a.c", '#include "proto/ring.h"\n'),
    ("check-includes", "layer", "tools/a.c", '#include "tests/harness.h"\n'),
    ("check-includes", "layer", "worker/session.c", '#include "tools/a.h"\n'),
    ("check-includes", "layer", "examples/a.c", '#include "proto/ring.h"\n'),
    ("check-includes", "public-header", "client/gemmd.h", '#include "proto/ring.h"\n'),
    ("check-includes", "upward", "worker/pool.c", '#include "worker/session.h"\n'),
    ("check-includes", "upward", "worker/log.c", '#include "worker/pool.h"\n'),
    ("check-includes", "unknown-module", "worker/new.c", '#include "worker/log.h"\n'),
    ("check-includes", "home", "worker/session.c", "#include <liburing.h>\n"),
    ("check-includes", "home", "kernels/a.c", "#include <immintrin.h>\n"),
    ("check-includes", "home", "worker/executor.c", "#include <sys/socket.h>\n"),
    ("check-includes", "home", "worker/session.c", "int f(void)\n{\n    mbind(0);\n}\n"),
    ("check-includes", "home", "client/a.c", "_Atomic int x;\n"),
    ("check-includes", None, "client/a.c", "/* no _Atomic, no mbind here */\n"),
    ("check-includes", "libc-only", "proto/a.c", "#include <unistd.h>\n"),
    ("check-includes", "libc-only", "kernels/a.c", "#include <pthread.h>\n"),
    ("check-includes", "unqualified", "client/a.c", '#include "gemmd.h"\n'),
    ("check-includes", "missing", "client/a.c", '#include "client/nowhere.h"\n'),
]


def write(folder, path, text):
    full = os.path.join(folder, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w", encoding="utf-8") as file:
        file.write(text)


def run(program, folder):
    result = subprocess.run([os.path.join(ROOT, "tools", program), folder], capture_output=True,
                            text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def check(program, rule, path, text):
    """None, or what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        for name, contents in CLEAN.items():
            write(folder, name, contents)
        if path:
            write(folder, path, text)
        code, output = run(program, folder)
    if rule is None:
        return None if code == 0 else f"{program}: clean {path} was refused:\n{output}"
    if code != 1:
        return f"{program}: {rule} in {path}: exit {code}, expected 1\n{output}"
    if f" {rule}: " not in output and not output.startswith(rule + ":"):
        return f"{program}: {rule} in {path} was not named:\n{output}"
    return None


def main():
    faults = []
    for case in [("check-style", None, "", ""), ("check-includes", None, "", "")] + CASES:
        fault = check(*case)
        if fault:
            faults.append(fault)
    with tempfile.TemporaryDirectory() as folder: # nothing to check is no success
        for program in ("check-style", "check-includes"):
            code, output = run(program, folder)
            if code == 0:
                faults.append(f"{program}: an empty tree passed: {output}")
    print("\n".join(faults))
    print(f"{len(CASES) + 4} cases, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
