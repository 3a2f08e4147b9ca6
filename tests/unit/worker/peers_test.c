/* Who is admitted, asked of the kernel through real connections from real users and groups. */
#include "unit.h"

#include <grp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "worker/peers.h"

/* ---- faults put into the kernel's answers, and groups of our own ----------------------------- */

static bool chown_fails, has_default_group;

int __real_chown(const char *file, uid_t uid, gid_t gid);
int __wrap_chown(const char *file, uid_t uid, gid_t gid);
struct group *__real_getgrnam(const char *name);
struct group *__wrap_getgrnam(const char *name);

int __wrap_chown(const char *file, uid_t uid, gid_t gid)
{
    if (!chown_fails)
        return __real_chown(file, uid, gid);
    errno = EPERM;
    return -1;
}

struct group *__wrap_getgrnam(const char *name)
{
    static struct group ours = {.gr_gid = 4711};

    if (strcmp(name, "gemmd") == 0)
        return has_default_group ? &ours : NULL;
    return __real_getgrnam(name);
}

static char directory[] = "/tmp/gemmd-peers-XXXXXX";
static char path[64];

static void test_lists(void **state)
{
    static const char *const bad[] = {"no-such-user-here", ",",    "0,",        ",0", "1x",
                                      "-1",                "4294967295", "99999999999", " 0",
                                      "99999999999999999999999"};
    struct peers peers = {0};
    char many[PEERS_MAX * 2 + 2] = "";

    (void)state;
    assert_true(peers_add_users(&peers, ""));
    assert_int_equal(peers.uid_count, 0);
    assert_true(peers_add_users(&peers, "root,1000,65534"));
    assert_int_equal(peers.uid_count, 3);
    assert_int_equal(peers.uids[0], 0);
    assert_int_equal(peers.uids[1], 1000);
    assert_true(peers_add_groups(&peers, "root"));
    assert_int_equal(peers.gids[0], 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct peers fresh = {0};

        assert_false(peers_add_users(&fresh, bad[i]));
        assert_false(peers_add_groups(&fresh, bad[i]));
    }
    memset(&peers, 0, sizeof(peers));
    memset(many, '7', 64); /* longer than any name or number */
    assert_false(peers_add_users(&peers, many));
    for (int i = 0; i < PEERS_MAX; i++)
        memcpy(many + 2 * i, "7,", 2);
    many[2 * PEERS_MAX - 1] = '\0';
    memset(&peers, 0, sizeof(peers));
    assert_true(peers_add_users(&peers, many));
    assert_false(peers_add_users(&peers, "8"));
    assert_int_equal(peers.uid_count, PEERS_MAX);
}

static void test_weights(void **state)
{
    static const struct {
        const char *list, *why;
    } bad[] = {
        {"no-such-user-here:2", "no-such-user-here: no such user"},
        {"0:1,root", "root: no weight"},
        {"root:", "root:: not a weight"},
        {"root:0", "root:0: not a weight"},
        {"root:65", "root:65: not a weight"},
        {"root:-1", "root:-1: not a weight"},
        {"root:2x", "root:2x: not a weight"},
        {"root:4294967296", "root:4294967296: not a weight"},
        {":2", ": no such user"},
        {",root:4", ": no weight"},
        {"root:4,,", ": no weight"},
        {"root:4,", "root: no user behind the comma"},
        {"root:0000000000000000000000000000000000000000000000000000000000000000000000000004",
         "root:000000000000000000000000000000000000000000000000000000000000000000: too long"},
    };
    char many[PEERS_MAX * 4 + 1] = "";
    struct peers peers = {0};
    struct peers_fault why;

    (void)state;
    assert_true(peers_add_weights(&peers, "", 64, &why));
    assert_int_equal(peers_weight(&peers, 0), 1);
    assert_true(peers_add_weights(&peers, "root:4,1000:64", 64, &why));
    assert_true(peers_add_weights(&peers, "0:5", 64, &why)); /* the last one counts */
    assert_int_equal(peers_weight(&peers, 0), 5);
    assert_int_equal(peers_weight(&peers, 1000), 64);
    assert_int_equal(peers_weight(&peers, 1001), 1);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct peers fresh = {0};

        assert_false(peers_add_weights(&fresh, bad[i].list, 64, &why));
        assert_string_equal(why.text, bad[i].why);
    }
    for (int i = 0; i < PEERS_MAX; i++)
        memcpy(many + 4 * i, "7:2,", 4);
    many[4 * PEERS_MAX - 1] = '\0';
    memset(&peers, 0, sizeof(peers));
    assert_true(peers_add_weights(&peers, many, 64, &why));
    assert_false(peers_add_weights(&peers, "8:2", 64, &why));
    assert_string_equal(why.text, "8:2: too many users");
    assert_int_equal(peers.weight_count, PEERS_MAX);
}

static void test_default_group(void **state)
{
    struct peers peers = {0};

    (void)state;
    peers_add_default_group(&peers);
    assert_int_equal(peers.gid_count, 0);
    has_default_group = true;
    peers_add_default_group(&peers);
    assert_int_equal(peers.gid_count, 1);
    assert_int_equal(peers.gids[0], 4711);
    peers.gid_count = PEERS_MAX;
    peers_add_default_group(&peers);
    assert_int_equal(peers.gid_count, PEERS_MAX);
    has_default_group = false;
}

/* ---- connections ----------------------------------------------------------------------------- */

struct identity {
    uid_t uid;
    gid_t gid, extra; /* extra: a supplementary group; 0: none */
};

/* Connects as somebody else and holds the connection until the other side closes. */
static int connect_as(void *argument)
{
    const struct identity *who = argument;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    char byte;

    memcpy(address.sun_path, path, strlen(path) + 1);
    if (setgroups(who->extra ? 1 : 0, &who->extra) < 0 ||
        setresgid(who->gid, who->gid, who->gid) < 0 || setresuid(who->uid, who->uid, who->uid) < 0)
        return 98;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return errno == EACCES || errno == EPERM ? 2 : 97;
    if (read(fd, &byte, 1) < 0)
        return 96;
    return 0;
}

static bool is_admitted(const struct peers *peers, int listen_fd, struct identity who)
{
    pid_t child, pid = 0;
    uid_t uid = 12345;
    bool admitted;
    int fd, status;

    fflush(NULL);
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(connect_as(&who));
    fd = accept(listen_fd, NULL, NULL);
    assert_true(fd >= 0);
    admitted = peers_admit(peers, fd, &pid, &uid);
    close(fd);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(pid, child);
    assert_int_equal(uid, who.uid);
    return admitted;
}

static int listen_here(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    mode_t mask;

    memcpy(address.sun_path, path, strlen(path) + 1);
    unlink(path);
    mask = umask(0177);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    umask(mask);
    assert_int_equal(listen(fd, 8), 0);
    return fd;
}

static void test_admission(void **state)
{
    struct peers nobody = {0}, some = {0};
    int fd;

    (void)state;
    if (geteuid() != 0) {
        print_message("SKIP: needs root to become other users\n");
        skip();
    }
    fd = listen_here();
    assert_int_equal(chmod(path, 0666), 0);
    assert_true(peers_add_users(&some, "1001"));
    assert_true(peers_add_groups(&some, "2001"));
    assert_true(is_admitted(&nobody, fd, (struct identity){0, 0, 0}));
    assert_false(is_admitted(&nobody, fd, (struct identity){1001, 2001, 0}));
    assert_true(is_admitted(&some, fd, (struct identity){1001, 5, 0}));
    assert_true(is_admitted(&some, fd, (struct identity){1002, 2001, 0}));
    assert_true(is_admitted(&some, fd, (struct identity){1002, 5, 2001}));
    assert_false(is_admitted(&some, fd, (struct identity){1002, 5, 2002}));
    assert_false(is_admitted(&some, fd, (struct identity){2001, 1001, 0})); /* the lists' mix-up */
    close(fd);
}

static mode_t mode_of(gid_t *gid)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    *gid = status.st_gid;
    return status.st_mode & 07777;
}

/* Without the right to give the file away it stays closed; a peer with more groups than are looked
 * at is judged by its primary one. */
static int open_as_other(void *argument)
{
    const struct peers *peers = argument;
    int fd;

    if (setgroups(0, NULL) < 0 || setresgid(5, 5, 5) < 0 || setresuid(1002, 1002, 1002) < 0)
        return 98;
    snprintf(path, sizeof(path), "/tmp/gemmd-peers-%d", (int)getpid());
    fd = listen_here();
    close(fd);
    if (peers_open_socket(peers, path) != -EPERM)
        return 1;
    unlink(path);
    return 0;
}

static int connect_with_many_groups(void *argument)
{
    gid_t groups[1100];

    for (size_t i = 0; i < 1100; i++)
        groups[i] = (gid_t)(3000 + i);
    if (setgroups(1100, groups) < 0)
        return 98;
    *(struct identity *)argument = (struct identity){1002, 5, 0};
    return setresgid(5, 5, 5) < 0 || setresuid(1002, 1002, 1002) < 0 ? 98 : 0;
}

static void test_edges_of_groups(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct peers peers = {0};
    int fd, status;
    pid_t child;

    (void)state;
    if (geteuid() != 0) {
        print_message("SKIP: needs root to become other users\n");
        skip();
    }
    assert_true(peers_add_groups(&peers, "2001"));
    assert_int_equal(in_child(open_as_other, &peers), 0);
    fd = listen_here();
    assert_int_equal(chmod(path, 0666), 0);
    memcpy(address.sun_path, path, strlen(path) + 1);
    fflush(NULL);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct identity who;
        int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        char byte;

        status = connect_with_many_groups(&who);
        if (status == 0 && connect(client, (struct sockaddr *)&address, sizeof(address)) == 0)
            status = (int)read(client, &byte, 1);
        _exit(status);
    }
    status = accept(fd, NULL, NULL);
    assert_true(status >= 0);
    assert_false(peers_admit(&peers, status, &(pid_t){0}, &(uid_t){0}));
    close(status);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close(fd);
}

static void test_socket_mode(void **state)
{
    struct peers peers = {0};
    int fd = listen_here();
    gid_t gid;

    (void)state;
    assert_int_equal(peers_open_socket(&peers, path), 0);
    assert_int_equal(mode_of(&gid), 0600);
    if (geteuid() == 0) {
        assert_true(peers_add_groups(&peers, "2001"));
        assert_int_equal(peers_open_socket(&peers, path), 0);
        assert_int_equal(mode_of(&gid), 0660);
        assert_int_equal(gid, 2001);
        assert_int_equal(in_child(connect_as, &(struct identity){1002, 5, 0}), 2);
        assert_int_equal(chmod(path, 0600), 0);
        chown_fails = true;
        assert_int_equal(peers_open_socket(&peers, path), -EPERM);
        chown_fails = false;
        assert_int_equal(mode_of(&gid), 0600);
    }
    assert_true(peers_add_users(&peers, "1001"));
    assert_int_equal(peers_open_socket(&peers, path), 0);
    assert_int_equal(mode_of(&gid), 0666);
    close(fd);
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(directory) || chmod(directory, 0755) < 0)
        return -1;
    snprintf(path, sizeof(path), "%s/s", directory);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_default_group),
        cmocka_unit_test(test_admission),
        cmocka_unit_test(test_socket_mode),
        cmocka_unit_test(test_edges_of_groups),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
