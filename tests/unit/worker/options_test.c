/* The command line and the environment. */
#include "unit.h"

#include <sysexits.h>

#include "worker/log.h"
#include "worker/options.h"
#include "worker/scheduler.h"

static const char *const variables[] = {"GEMMD_SOCKET",      "GEMMD_LOG",   "GEMMD_CPU_MASK",
                                        "GEMMD_EVENT_LEVEL", "GEMMD_DEBUG", "XDG_RUNTIME_DIR"};

static char said[4096]; /* on stderr and stdout, by the last parse */

static int clean(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
        unsetenv(variables[i]);
    return 0;
}

/* Parses a line of words between blanks; the result and what was said are kept. */
static int parse(struct options *out, const char *line, int *exit_code)
{
    static char words[1024];
    char *argv[32] = {(char[]){"gemmd"}}, *save = NULL;
    int argc = 1, result, error_fd = dup(2), output_fd = dup(1);
    FILE *file = tmpfile();
    ssize_t length;

    snprintf(words, sizeof(words), "%s", line);
    for (char *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    fflush(NULL);
    dup2(fileno(file), 1);
    dup2(fileno(file), 2);
    result = options_parse(out, argc, argv, exit_code);
    fflush(NULL);
    dup2(output_fd, 1);
    dup2(error_fd, 2);
    close(output_fd);
    close(error_fd);
    length = pread(fileno(file), said, sizeof(said) - 1, 0);
    said[length] = '\0';
    fclose(file);
    return result;
}

static struct options parse_good(const char *line)
{
    struct options options;
    int exit_code = -1;

    if (parse(&options, line, &exit_code) != 0)
        fail_msg("%s: %s", line, said);
    assert_int_equal(exit_code, 0);
    assert_string_equal(said, "");
    return options;
}

/* Refused with this exit code, and with one line that contains `word`. */
static void refuse(const char *line, int expected, const char *word)
{
    struct options options;
    int exit_code = -1;

    if (parse(&options, line, &exit_code) != 1)
        fail_msg("accepted: %s", line);
    assert_int_equal(exit_code, expected);
    if (!strstr(said, word))
        fail_msg("\"%s\" does not name \"%s\": %s", line, word, said);
}

static void defaults(void **state)
{
    struct options options = parse_good("");

    (void)state;
    assert_int_equal(options.node, -1);
    assert_false(options.cpus_set);
    assert_string_equal(options.socket, "");
    assert_int_equal(options.pool_bytes, 1 << 30);
    assert_int_equal(options.hugepages, POOL_POLICY_AUTO);
    assert_false(options.require_hugepages);
    assert_int_equal(options.spin_ns, -1);
    assert_int_equal(options.idle_exit_s, 0);
    assert_int_equal(options.ready_fd, -1);
    assert_int_equal(options.ring_start, 0);
    assert_int_equal(options.verify_sample, 0);
    assert_int_equal(options.event_level_forced, -1);
    assert_false(options.debug);
    assert_true(options.cpu_mask != 0);
}

static void every_option(void **state)
{
    struct options options = parse_good(
        "--node 3 --cpus 0-1,4 --socket /x/y.sock --pool-bytes 3G --hugepages 2m "
        "--require-hugepages --spin-us 7 --idle-exit 30 --ready-fd 1 --ring-start 4294967290 "
        "--verify-sample 4294967295 --window bert:50,a:b/fc:10000 --window x:1");

    (void)state;
    assert_int_equal(options.node, 3);
    assert_true(options.cpus_set);
    assert_int_equal(CPU_COUNT(&options.cpus), 3);
    assert_true(CPU_ISSET(4, &options.cpus));
    assert_string_equal(options.socket, "/x/y.sock");
    assert_int_equal(options.pool_bytes, UINT64_C(3) << 30);
    assert_int_equal(options.hugepages, POOL_POLICY_2M);
    assert_true(options.require_hugepages);
    assert_int_equal(options.spin_ns, 7000);
    assert_int_equal(options.idle_exit_s, 30);
    assert_int_equal(options.ready_fd, 1);
    assert_int_equal(options.ring_start, UINT32_C(4294967290));
    assert_int_equal(options.verify_sample, UINT32_MAX);
    assert_int_equal(options.windows.count, 3);
    assert_string_equal(options.windows.windows[0].name, "bert");
    assert_int_equal(options.windows.windows[0].ns, 50000);
    assert_string_equal(options.windows.windows[1].name, "a:b/fc");
    assert_int_equal(options.windows.windows[1].ns, SCHEDULER_WINDOW_NS_MAX);
    assert_string_equal(options.windows.windows[2].name, "x");
    assert_int_equal(parse_good("--node=auto --spin-us=0").node, -1);
    assert_int_equal(parse_good("--spin-us 0").spin_ns, 0);
    assert_int_equal(parse_good("--pool-bytes 1048576").pool_bytes, 1 << 20);
    assert_int_equal(parse_good("--pool-bytes 2048K").pool_bytes, 2 << 20);
    assert_int_equal(parse_good("--pool-bytes 5M").pool_bytes, 5 << 20);
    assert_int_equal(parse_good("--hugepages none").hugepages, POOL_POLICY_NONE);
    assert_int_equal(parse_good("--hugepages thp").hugepages, POOL_POLICY_THP);
    assert_int_equal(parse_good("--hugepages 1g").hugepages, POOL_POLICY_1G);
    fcntl(1, F_SETFD, 0);
}

static void bad_values(void **state)
{
    static const char *const lines[] = {
        "--node -2",          "--node 1024",       "--node x",
        "--node 99999999999999999999999",          "--cpus x",
        "--cpus 5-1",         "--cpus 9999",       "--pool-bytes 0",
        "--pool-bytes 1",     "--pool-bytes 1T",   "--pool-bytes -1",
        "--pool-bytes 1.5G",  "--pool-bytes G",    "--pool-bytes 99999999999G",
        "--pool-bytes 0x100000", "--pool-bytes 18446744073709551616",
        "--pool-bytes 17179869185G",               "--pool-bytes 18446744073710600192",
        "--hugepages 4k",     "--hugepages AUTO",  "--spin-us -1",
        "--spin-us 1000001",  "--spin-us 5us",     "--idle-exit -1",
        "--verify-sample 4294967296",          "--verify-sample all",
        "--idle-exit 99999999999",                 "--ready-fd 987",
        "--window bert",      "--window :5",       "--window bert:",
        "--window bert:0",    "--window bert:10001",
        "--window bert:50,",  "--window ,bert:50", "--window bert:50us",
        "--window bert:-5",   "--window bert:18446744073709551617",
        "--window 0123456789012345678901234567890123456789012345678901234567890123:5",
        "--ready-fd -1",      "--ring-start 4294967296", "--ring-start -1",
    };
    char option[64];

    (void)state;
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        snprintf(option, sizeof(option), "%.*s", (int)strcspn(lines[i], " "), lines[i]);
        refuse(lines[i], EX_USAGE, option);
        assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); /* one line */
    }
    refuse("--unknown", EX_USAGE, "--unknown");
    refuse("--node", EX_USAGE, "--node");
    refuse("stray", EX_USAGE, "stray");
    refuse("--require-hugepages --hugepages thp", EX_USAGE, "--require-hugepages");
    refuse("--hugepages none --require-hugepages", EX_USAGE, "--require-hugepages");
}

static void empty_values(void **state)
{
    char *options_with_empty_value[] = {(char[]){"--node"}, (char[]){"--cpus"},
                                        (char[]){"--socket"}, (char[]){"--pool-bytes"},
                                        (char[]){"--ready-fd"}};
    struct options options;
    int exit_code;

    (void)state;
    for (int i = 0; i < 5; i++) {
        char *argv[] = {(char[]){"gemmd"}, options_with_empty_value[i], (char[]){""}, NULL};

        assert_int_equal(options_parse(&options, 3, argv, &exit_code), 1);
        assert_int_equal(exit_code, EX_USAGE);
    }
}

static void read_only_ready_fd(void **state)
{
    char line[64];
    int fd = open("/dev/null", O_RDONLY);

    (void)state;
    snprintf(line, sizeof(line), "--ready-fd %d", fd);
    refuse(line, EX_USAGE, "--ready-fd");
    close(fd);
    fd = open("/dev/null", O_WRONLY);
    snprintf(line, sizeof(line), "--ready-fd %d", fd);
    assert_int_equal(parse_good(line).ready_fd, fd);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    close(fd);
}

static void long_socket(void **state)
{
    char line[256] = "--socket /";

    (void)state;
    memset(line + 10, 'a', 106);
    assert_int_equal(strlen(parse_good(line).socket), 107);
    line[116] = 'a';
    refuse(line, EX_USAGE, "--socket");
}

static void environment(void **state)
{
    struct options options;

    (void)state;
    setenv("GEMMD_SOCKET", "/run/a.sock", 1);
    setenv("GEMMD_LOG", "loop:debug", 1);
    setenv("GEMMD_CPU_MASK", "avx2", 1);
    setenv("GEMMD_EVENT_LEVEL", "F2", 1);
    setenv("GEMMD_DEBUG", "1", 1);
    options = parse_good("");
    assert_string_equal(options.socket, "/run/a.sock");
    assert_int_equal(options.cpu_mask, 3);
    assert_int_equal(options.event_level_forced, 2);
    assert_true(options.debug);
    assert_true(log_enabled(LOG_LEVEL_DEBUG, LOG_TOPIC_LOOP));
    assert_string_equal(parse_good("--socket /b.sock").socket, "/b.sock");
    setenv("GEMMD_EVENT_LEVEL", "", 1);
    setenv("GEMMD_DEBUG", "0", 1);
    setenv("GEMMD_SOCKET", "", 1);
    options = parse_good("");
    assert_int_equal(options.event_level_forced, -1);
    assert_false(options.debug);
    assert_string_equal(options.socket, "");
}

static void bad_environment(void **state)
{
    static const char *const bad[][2] = {
        {"GEMMD_LOG", "shout"},      {"GEMMD_CPU_MASK", "avx9000"}, {"GEMMD_EVENT_LEVEL", "F4"},
        {"GEMMD_EVENT_LEVEL", "2"},  {"GEMMD_EVENT_LEVEL", "F01"},  {"GEMMD_DEBUG", "yes"},
    };
    char long_path[200];

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        setenv(bad[i][0], bad[i][1], 1);
        refuse("", EX_CONFIG, bad[i][0]);
        unsetenv(bad[i][0]);
    }
    memset(long_path, 'a', sizeof(long_path) - 1);
    long_path[sizeof(long_path) - 1] = '\0';
    setenv("GEMMD_SOCKET", long_path, 1);
    refuse("", EX_CONFIG, "GEMMD_SOCKET");
}

static void help_and_version(void **state)
{
    static const char *const names[] = {
        "--node", "--cpus", "--socket", "--pool-bytes", "--hugepages", "--require-hugepages",
        "--spin-us", "--idle-exit", "--ready-fd", "--ring-start", "--version", "--help",
        "--verify-sample",
    };
    struct options options;
    int exit_code = -1;

    (void)state;
    assert_int_equal(parse(&options, "--help", &exit_code), 1);
    assert_int_equal(exit_code, 0);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        assert_non_null(strstr(said, names[i]));
    assert_int_equal(parse(&options, "--version --node bad", &exit_code), 1);
    assert_int_equal(exit_code, 0);
    assert_memory_equal(said, "gemmd ", 6);
}

static void default_sockets(void **state)
{
    char base[] = "/tmp/gemmd-options-XXXXXX", path[OPTIONS_SOCKET_BYTES], directory[64];
    char long_base[120], target[64];
    struct stat status;

    (void)state;
    assert_non_null(mkdtemp(base));
    setenv("XDG_RUNTIME_DIR", base, 1);
    umask(0);
    assert_int_equal(options_default_socket(2, path, sizeof(path)), 0);
    umask(022);
    snprintf(directory, sizeof(directory), "%s/gemmd", base);
    assert_memory_equal(path, directory, strlen(directory));
    assert_string_equal(path + strlen(directory), "/node2.sock");
    assert_int_equal(stat(directory, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0700);
    assert_int_equal(options_default_socket(-1, path, sizeof(path)), 0); /* it may exist */
    assert_string_equal(path + strlen(directory), "/node0.sock");

    chmod(directory, 0720);
    assert_int_equal(options_default_socket(0, path, sizeof(path)), -EPERM);
    chmod(directory, 0702);
    assert_int_equal(options_default_socket(0, path, sizeof(path)), -EPERM);
    chmod(directory, 0700);
    if (geteuid() == 0) {
        assert_int_equal(chown(directory, 12345, 0), 0);
        assert_int_equal(options_default_socket(0, path, sizeof(path)), -EPERM);
    }
    rmdir(directory);
    snprintf(target, sizeof(target), "%s/real", base);
    mkdir(target, 0700);
    assert_int_equal(symlink(target, directory), 0);
    assert_int_equal(options_default_socket(0, path, sizeof(path)), -EPERM);
    unlink(directory);
    close(open(directory, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(options_default_socket(0, path, sizeof(path)), -EPERM);
    unlink(directory);
    rmdir(target);

    assert_int_equal(options_default_socket(0, path, 20), -ENAMETOOLONG);
    memset(long_base, 'a', sizeof(long_base) - 1);
    long_base[0] = '/';
    long_base[sizeof(long_base) - 1] = '\0';
    setenv("XDG_RUNTIME_DIR", long_base, 1);
    assert_int_equal(options_default_socket(0, path, sizeof(path)), -ENAMETOOLONG);
    setenv("XDG_RUNTIME_DIR", "/nonexistent", 1);
    assert_int_equal(options_default_socket(0, path, sizeof(path)), -ENOENT);
    rmdir(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(defaults, clean),
        cmocka_unit_test_setup(every_option, clean),
        cmocka_unit_test_setup(bad_values, clean),
        cmocka_unit_test_setup(empty_values, clean),
        cmocka_unit_test_setup(read_only_ready_fd, clean),
        cmocka_unit_test_setup(long_socket, clean),
        cmocka_unit_test_setup(environment, clean),
        cmocka_unit_test_setup(bad_environment, clean),
        cmocka_unit_test_setup(help_and_version, clean),
        cmocka_unit_test_setup_teardown(default_sockets, clean, clean),
    };

    return cmocka_run_group_tests(tests, NULL, NULL) > 0;
}
