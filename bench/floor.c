/*
 * The kernel's own price of a job: the system calls of a job from start to end, in C and with nothing around them.
 *
 *     floor [-b] [-f FILTER] RUNS [CONCURRENCY [STATE]]
 *
 * Runs /bin/true RUNS times, CONCURRENCY (1) of them at a time, with its files in a new directory below
 * STATE (/var/tmp), and prints the microseconds from the end of one run to the end of the next, one a line. Their sum
 * is the time for all runs. Needs root; leaves nothing behind, and takes nothing away while it measures. FILTER is a
 * file with the filter program that seccomp.py makes; -b leaves out all that confines the program but its groups.
 *
 * The processes are those of the library: this one stands for server and launcher and forks a monitor into a new PID
 * namespace, which forks the program. The calls are those of src/jobworker/runtime in their order: job_dir.py,
 * cgroup.py, launcher.py, monitor.py, and sandbox_steps.py for the program. A run has ended when this process
 * has heard so from the monitor, which by then has put the outcome on disk and has removed the groups.
 *
 * `strace -f -c` of a job and of a run differ in
 *   - server and launcher in two processes: the order with its two descriptors, and the event loop's epoll calls;
 *   - what Python's files and sockets ask about themselves: fstat, isatty, lseek, getsockname, getsockopt, getpid;
 *   - memory: mmap, munmap, mremap, brk;
 *   - other file systems than the one at /, of which a job gets read-only copies too, and private keys that are found
 *     by a pattern. A host that has neither shows no difference.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <dirent.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UID 265535 /* the last one of jobworker's default range */
#define MAX_TREES 8
#define MAX_MASKS 64
#define MAX_CONCURRENCY 256
#define MAX_FILTER 1024 /* instructions */
#define SPEC_SIZE 444    /* of a job that asks for nothing but /bin/true */
#define OUTCOME_SIZE 640 /* of its end */
#define REPORT_SIZE 840  /* of its isolation, read back */

struct tree {
    char path[PATH_MAX / 4]; /* our parent group */
    int is_v2, has_cpu, has_cpuacct, has_memory, has_io, has_pids;
};

struct mask {
    char path[PATH_MAX / 4];
    int is_directory;
};

struct run {
    char id[37];
    int directory, lock, listener, output, index, channel, oom; /* what the launcher makes ... */
    int out[2], err[2], status[2], wakeup[2];                   /* ... before it forks */
};

static struct tree trees[MAX_TREES];
static struct mask masks[MAX_MASKS], proc_masks[MAX_MASKS];
static int tree_count, mask_count, proc_mask_count;
static char state[PATH_MAX / 4];
static const char *const program = "/bin/true";
static struct sock_filter filter[MAX_FILTER];
static struct sock_fprog filter_program = {.filter = filter};
static int is_bare, landlock;
static long runs, started;
static int own_namespace, report = STDERR_FILENO, wakeup_end;
static pid_t self;

static void clean_up(void);

static void die(const char *step)
{
    dprintf(report, "floor: %s: %s\n", step, strerror(errno));
    if (getpid() == self)
        clean_up();
    _exit(1);
}

static int check(long result, const char *step)
{
    if (result < 0)
        die(step);
    return (int)result;
}

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, text, strlen(text));
    close(fd);
    return written < 0 ? -1 : 0;
}

/* Reads to the end, as the library does. */
static void read_file(const char *path)
{
    char shown[65536];
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), path);
    while (check(read(fd, shown, sizeof shown), path) > 0)
        ;
    close(fd);
}

/* Control groups. */

static const char *in_group(const struct tree *tree, const char *id, const char *file)
{
    static char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s%s%s", tree->path, id, *file ? "/" : "", file) >= (int)sizeof path)
        die("path");
    return path;
}

static int has_word(const char *list, const char *word)
{
    size_t size = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += size)
        if ((at == list || at[-1] == ',' || at[-1] == ' ') && strchr(", \n", at[size]))
            return 1;
    return 0;
}

static void hand_down(const char *group)
{
    static const char *const wanted[] = {"+cpu", "+memory", "+io", "+pids"};
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/cgroup.subtree_control", group);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        write_file(path, wanted[i]); /* what this tree does not have is not used in it */
}

static void prepare_tree(const char *place, const char *controllers, int is_v2)
{
    struct tree *tree = &trees[tree_count];
    *tree = (struct tree){
        .is_v2 = is_v2,
        .has_cpu = has_word(controllers, "cpu"),
        .has_cpuacct = has_word(controllers, "cpuacct"),
        .has_memory = has_word(controllers, "memory"),
        .has_io = has_word(controllers, is_v2 ? "io" : "blkio"),
        .has_pids = has_word(controllers, "pids"),
    };
    if (!is_v2 && !tree->has_cpu && !tree->has_cpuacct && !tree->has_memory && !tree->has_io && !tree->has_pids)
        return;
    if (is_v2)
        hand_down(place);
    snprintf(tree->path, sizeof tree->path, "%s/jobworker-floor-%d", place, self);
    check(mkdir(tree->path, 0755), tree->path);
    tree_count++;
    if (is_v2)
        hand_down(tree->path);
}

/* Whether a version 2 tree is mounted, which counts cpu time as well as cpuacct does. */
static int has_v2_tree(void)
{
    FILE *mountinfo = fopen("/proc/self/mountinfo", "re");
    char line[4096];
    int found = 0;
    if (!mountinfo)
        die("/proc/self/mountinfo");
    while (fgets(line, sizeof line, mountinfo))
        found |= strstr(line, " - cgroup2 ") != NULL;
    fclose(mountinfo);
    return found;
}

/* Our groups in the trees that limit jobs: version 2, and each version 1 tree with a controller that jobs use. */
static void prepare_trees(void)
{
    FILE *mountinfo = fopen("/proc/self/mountinfo", "re");
    char line[4096], place[128], kind[64], options[256], path[PATH_MAX];
    int has_v2 = has_v2_tree();
    if (!mountinfo)
        die("/proc/self/mountinfo");
    while (fgets(line, sizeof line, mountinfo) && tree_count < MAX_TREES) {
        const char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*s %*s %*s %*s %127s", place) != 1 ||
            sscanf(rest, " - %63s %*s %255s", kind, options) != 2)
            continue;
        if (strcmp(kind, "cgroup") == 0 && !(has_v2 && strcmp(options, "rw,cpuacct") == 0)) {
            strcat(options, "\n");
            prepare_tree(place, options, 0);
        } else if (strcmp(kind, "cgroup2") == 0) {
            snprintf(path, sizeof path, "%s/cgroup.controllers", place);
            int fd = check(open(path, O_RDONLY | O_CLOEXEC), path);
            ssize_t size = read(fd, options, sizeof options - 1);
            close(fd);
            options[size > 0 ? size : 0] = '\0';
            prepare_tree(place, options, 1);
        }
    }
    fclose(mountinfo);
}

/* Sets a limit where the host has it, and reads it back. */
static void limit(const struct tree *tree, const char *id, const char *file, const char *value)
{
    char shown[4096];
    const char *path = in_group(tree, id, file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return;
    check(fd, path);
    check(write(fd, value, strlen(value)), path);
    check(pread(fd, shown, sizeof shown, 0), path);
    close(fd);
}

static void make_groups(const char *id)
{
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++)
        check(mkdir(in_group(tree, id, ""), 0755), tree->path);
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++) {
        if (tree->has_memory && tree->is_v2) {
            limit(tree, id, "memory.max", "536870912");
            limit(tree, id, "memory.swap.max", "0");
            limit(tree, id, "memory.oom.group", "1");
        } else if (tree->has_memory) {
            limit(tree, id, "memory.limit_in_bytes", "536870912");
            limit(tree, id, "memory.memsw.limit_in_bytes", "536870912");
        }
        if (tree->has_pids)
            limit(tree, id, "pids.max", "256");
        if (tree->has_cpu)
            limit(tree, id, tree->is_v2 ? "cpu.weight" : "cpu.shares", tree->is_v2 ? "100" : "1024");
    }
}

static int watch_oom(const char *id)
{
    char words[32];
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++) {
        if (!tree->has_memory || tree->is_v2)
            continue;
        int event = check(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
        int watched = check(open(in_group(tree, id, "memory.oom_control"), O_RDONLY | O_CLOEXEC), "oom_control");
        snprintf(words, sizeof words, "%d %d", event, watched);
        check(write_file(in_group(tree, id, "cgroup.event_control"), words), "event_control");
        close(watched);
        return event;
    }
    return -1;
}

static pid_t fork_into_group(const char *id)
{
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++) {
        if (!tree->is_v2)
            continue;
        int group = check(open(in_group(tree, id, ""), O_RDONLY | O_DIRECTORY | O_CLOEXEC), tree->path);
        struct clone_args arguments = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)group};
        pid_t child = check(syscall(SYS_clone3, &arguments, sizeof arguments), "clone3");
        close(group);
        return child;
    }
    return check(fork(), "fork");
}

static void kill_all(const char *id)
{
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++)
        if (tree->is_v2)
            check(write_file(in_group(tree, id, "cgroup.kill"), "1"), "cgroup.kill");
    kill(-1, SIGKILL);
}

static void read_usage(const char *id)
{
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++) {
        if (tree->has_cpu || tree->is_v2)
            read_file(in_group(tree, id, "cpu.stat"));
        else if (tree->has_cpuacct)
            read_file(in_group(tree, id, "cpuacct.usage"));
        if (tree->has_memory) {
            read_file(in_group(tree, id, tree->is_v2 ? "memory.peak" : "memory.max_usage_in_bytes"));
            read_file(in_group(tree, id, tree->is_v2 ? "memory.events" : "memory.oom_control"));
        }
        if (tree->has_io)
            read_file(in_group(tree, id, tree->is_v2 ? "io.stat" : "blkio.throttle.io_service_bytes"));
        if (tree->has_io && !tree->is_v2)
            read_file(in_group(tree, id, "blkio.throttle.io_serviced"));
        if (tree->has_pids) {
            read_file(in_group(tree, id, "pids.events"));
            if (access(in_group(tree, id, "pids.peak"), R_OK) == 0) /* from Linux 6.11 on */
                read_file(in_group(tree, id, "pids.peak"));
        }
    }
}

static void remove_groups(const char *id)
{
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++)
        while (rmdir(in_group(tree, id, "")) < 0 && errno == EBUSY)
            sched_yield();
}

/* The sandbox: what is found out once, and the steps in the program's process. */

static void add_mask(struct mask *list, int *count, const char *path)
{
    struct stat found;
    if (lstat(path, &found) < 0 || S_ISLNK(found.st_mode) || *count == MAX_MASKS)
        return;
    snprintf(list[*count].path, sizeof list[*count].path, "%s", path);
    list[(*count)++].is_directory = S_ISDIR(found.st_mode);
}

static void survey(void)
{
    static const char *const hidden[] = {
        "/boot", "/etc/gshadow", "/etc/gshadow-", "/etc/shadow", "/etc/shadow-", "/etc/ssl/private", "/etc/sudoers",
        "/home", "/media", "/mnt", "/root", "/run", "/srv", "/var/lib/containerd", "/var/lib/docker", "/var/log",
    };
    static const char *const hidden_in_proc[] = {
        "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
        "/proc/sched_debug", "/proc/scsi", "/proc/kallsyms", "/proc/interrupts",
    };
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        add_mask(masks, &mask_count, hidden[i]);
    if (strncmp(state, "/tmp/", 5) != 0 && strncmp(state, "/root/", 6) != 0)
        add_mask(masks, &mask_count, state);
    for (size_t i = 0; i < sizeof hidden_in_proc / sizeof *hidden_in_proc; i++)
        add_mask(proc_masks, &proc_mask_count, hidden_in_proc[i]);
}

static void apply_masks(const struct mask *list, int count)
{
    for (int i = 0; i < count; i++)
        check(mount(list[i].is_directory ? "tmp/directory" : "tmp/file", list[i].path, NULL, MS_BIND, NULL), list[i].path);
}

static void bind_read_only(const char *source, const char *target)
{
    struct {
        uint64_t set, clear, propagation, userns_fd;
    } attributes = {
        .set = 0x1 | 0x2 | 0x4, /* MOUNT_ATTR_RDONLY, NOSUID, NODEV */
        .propagation = MS_PRIVATE,
    };
    int tree = check(syscall(SYS_open_tree, AT_FDCWD, source, 1 | O_CLOEXEC), "open_tree"); /* OPEN_TREE_CLONE */
    check(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes), "mount_setattr");
    check(syscall(SYS_move_mount, tree, "", AT_FDCWD, target, 4), "move_mount"); /* MOVE_MOUNT_F_EMPTY_PATH */
    close(tree);
}

static void make_root(void)
{
    const unsigned long closed = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    check(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
    bind_read_only("/", "/proc");
    check(chdir("/proc"), "chdir");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount2");
    check(chdir("/"), "chdir");

    umask(0);
    check(mount("mask", "tmp", "tmpfs", closed, "mode=0755,size=4k,nr_inodes=4"), "masks");
    check(mkdir("tmp/directory", 0555), "masks");
    close(check(open("tmp/file", O_CREAT | O_WRONLY | O_CLOEXEC, 0444), "masks"));
    check(mount("mask", "tmp", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | closed, NULL), "masks");
    apply_masks(masks, mask_count);
}

static void fill_proc(void)
{
    static const char *const read_only[] = {
        "/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger",
    };
    const unsigned long closed = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    check(mount("proc", "/proc", "proc", closed, "hidepid=2"), "/proc");
    apply_masks(proc_masks, proc_mask_count);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        if (mount(read_only[i], read_only[i], NULL, MS_BIND, NULL) < 0 && errno == ENOENT)
            continue;
        check(mount(read_only[i], read_only[i], NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | closed, NULL), read_only[i]);
    }
}

static void fill_dev_and_scratch(void)
{
    static const struct { const char *path; unsigned int minor; } devices[] = {
        {"/dev/null", 3}, {"/dev/zero", 5}, {"/dev/full", 7}, {"/dev/random", 8}, {"/dev/urandom", 9},
    };
    static const char *const links[][2] = {
        {"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
        {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
    };
    const unsigned long safe = MS_NOSUID | MS_NODEV;
    check(mount("dev", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k,nr_inodes=32"), "/dev");
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        check(mknod(devices[i].path, S_IFCHR | 0666, makedev(1, devices[i].minor)), devices[i].path);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        check(symlink(links[i][0], links[i][1]), links[i][1]);
    check(mkdir("/dev/shm", 0755), "/dev/shm");
    check(mount("dev", "/dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL), "/dev");
    check(mount("tmpfs", "/dev/shm", "tmpfs", safe | MS_NOEXEC, "mode=1777,size=67108864,nr_inodes=16384"), "/dev/shm");
    check(mount("tmpfs", "/tmp", "tmpfs", safe, "mode=1777,size=536870912,nr_inodes=131072"), "/tmp");
    check(mkdir("/tmp/work", 0700), "/tmp/work");
    check(chown("/tmp/work", UID, UID), "/tmp/work");
}

static void raise_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    check(probe, "loopback");
    check(ioctl(probe, SIOCSIFFLAGS, &request), "loopback");
    close(probe);
}

static void set_rlimits(void)
{
    static const struct {
        int number;
        rlim_t soft, hard;
    } limits[] = {
        {RLIMIT_CORE, 0, 0}, {RLIMIT_NOFILE, 1024, 4096}, {RLIMIT_NPROC, 257, 257}, {RLIMIT_MEMLOCK, 65536, 65536},
        {RLIMIT_MSGQUEUE, 0, 0}, {RLIMIT_RTPRIO, 0, 0}, {RLIMIT_NICE, 0, 0}, {RLIMIT_STACK, 8 << 20, 64 << 20},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit now, wanted = {limits[i].soft, limits[i].hard};
        check(getrlimit(limits[i].number, &now), "getrlimit");
        if (wanted.rlim_max > now.rlim_max) /* RLIM_INFINITY is the largest number */
            wanted.rlim_max = now.rlim_max;
        if (wanted.rlim_cur > wanted.rlim_max)
            wanted.rlim_cur = wanted.rlim_max;
        check(setrlimit(limits[i].number, &wanted), "setrlimit");
    }
}

static void drop_privileges(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
        ;
    check(setgroups(0, NULL), "setgroups");
    check(setresgid(UID, UID, UID), "setresgid");
    check(setresuid(UID, UID, UID), "setresuid");
    if (syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 0) > 0)
        check(syscall(SYS_keyctl, KEYCTL_CLEAR, KEY_SPEC_USER_KEYRING), "user keyring");
    check(syscall(SYS_capset, &header, none), "capset");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

static void allow_beneath(int ruleset, const char *path, uint64_t rights)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = rights};
    rule.parent_fd = check(open(path, O_PATH | O_CLOEXEC), path);
    check(syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0), path);
    close(rule.parent_fd);
}

static void restrict_writing(void)
{
    static const char *const directories[] = {"/tmp", "/dev/shm"};
    static const char *const contents[] = {"/proc", "/dev/null", "/dev/zero", "/dev/full"};
    const uint64_t change = 0x3ff << 4; /* LANDLOCK_ACCESS_FS_REMOVE_DIR to _REFER */
    const uint64_t write = LANDLOCK_ACCESS_FS_WRITE_FILE | (landlock >= 3 ? 1 << 14 : 0); /* _TRUNCATE */
    const struct landlock_ruleset_attr handled = {.handled_access_fs = write | change};
    int ruleset = check(syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0), "landlock");
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
        allow_beneath(ruleset, directories[i], write | change);
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++)
        allow_beneath(ruleset, contents[i], write);
    check(syscall(SYS_landlock_restrict_self, ruleset, 0), "landlock");
    close(ruleset);
}

/* What isolation.py asks the kernel, and the report of it. */
static void read_back(void)
{
    static const char *const namespaces[] = {
        "/proc/self/ns/pid", "/proc/self/ns/mnt", "/proc/self/ns/net", "/proc/self/ns/ipc",
        "/proc/self/ns/uts", "/proc/self/ns/cgroup", "/proc/self/ns/user",
    };
    static const int limits[] = {
        RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_MEMLOCK,
        RLIMIT_MSGQUEUE, RLIMIT_RTPRIO, RLIMIT_NICE, RLIMIT_STACK,
    };
    static char words[REPORT_SIZE];
    struct stat status;
    struct rlimit limit;
    struct utsname host;
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++)
        check(stat(namespaces[i], &status), namespaces[i]);
    read_file("/proc/self/status");
    read_file("/proc/self/mountinfo");
    int refused = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (refused >= 0)
        close(refused);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        check(getrlimit(limits[i], &limit), "getrlimit");
    read_file("/proc/self/oom_score_adj");
    check(getsid(0), "getsid");
    DIR *listing = opendir("/proc/self/fd");
    if (!listing)
        die("/proc/self/fd");
    for (const struct dirent *entry; (entry = readdir(listing));)
        fstat(atoi(entry->d_name), &status);
    closedir(listing);
    check(uname(&host), "uname");
    memset(words, ' ', sizeof words);
    words[sizeof words - 1] = '\n';
    check(write(report, words, sizeof words), "status");
}

static void confine(const char *host)
{
    char place[PATH_MAX];
    struct rlimit files;
    check(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP), "unshare");
    make_root();
    fill_proc();
    fill_dev_and_scratch();
    check(sethostname(host, strlen(host)), "sethostname");
    raise_loopback();
    check(setsid(), "setsid");
    umask(022);
    set_rlimits();
    drop_privileges();
    if (landlock >= 2)
        restrict_writing();
    close_range(3, report - 1, 0);
    check(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
    close_range(report + 1, files.rlim_max - 1, 0);
    if (filter_program.len)
        check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter_program), "seccomp");
    check(chdir("/tmp/work"), "workdir");
    if (!getcwd(place, sizeof place))
        die("workdir");
    read_back();
}

static void become_program(const struct run *run)
{
    char job[sizeof "JOBWORKER_JOB_ID=" + sizeof run->id], host[sizeof "job-" + 8];
    char *const arguments[] = {(char *)program, NULL};
    char *const environment[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LANG=C.UTF-8", job, NULL,
    };
    snprintf(job, sizeof job, "JOBWORKER_JOB_ID=%s", run->id);
    snprintf(host, sizeof host, "job-%.8s", run->id);
    report = run->status[1];
    check(dup2(run->out[1], 1), "stdout"); /* 0 is /dev/null already */
    check(dup2(run->err[1], 2), "stderr");
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++)
        if (!tree->is_v2)
            check(write_file(in_group(tree, run->id, "tasks"), "0"), "tasks");
    check(write_file("/proc/self/oom_score_adj", "500"), "oom_score_adj");
    if (!is_bare)
        confine(host);
    check(write(report, "\n", 1), "status");
    execve(program, arguments, environment);
    die(program);
}

/* The monitor. */

static void as_service_user(void)
{
    setfsgid(0);
    setfsuid(0);
    setfsuid(-1);
    setfsgid(-1);
}

static void on_child(int number)
{
    char byte = (char)number;
    if (write(wakeup_end, &byte, 1) < 0)
        _exit(1);
}

/* Waits until exec has closed the other end; a last line with anything in it says what went wrong. */
static void check_exec(int status)
{
    char words[4096];
    size_t size = 0;
    ssize_t part;
    while ((part = read(status, words + size, sizeof words - size)) > 0)
        size += (size_t)part;
    close(status);
    if (size == 0 || words[size - 1] != '\n' || (size > 1 && words[size - 2] != '\n')) {
        check(write(STDERR_FILENO, words, size), "status");
        _exit(1);
    }
}

/* The exit status of the program, once it has been read to the end and nothing of it is left. */
static int serve(const struct run *run, pid_t child, int child_fd)
{
    struct pollfd events[] = {
        {.fd = run->out[0], .events = POLLIN}, {.fd = run->err[0], .events = POLLIN},
        {.fd = run->wakeup[0], .events = POLLIN}, {.fd = run->listener, .events = POLLIN},
        {.fd = run->oom, .events = POLLIN}, {.fd = run->channel, .events = POLLIN},
        {.fd = child_fd, .events = POLLIN},
    };
    static char buffer[65536];
    int program_status = -1, status;
    siginfo_t left;
    for (;;) {
        if (poll(events, sizeof events / sizeof *events, -1) < 0 && errno != EINTR)
            die("poll");
        for (int i = 0; i < 2; i++)
            if (events[i].fd >= 0 && events[i].revents && read(events[i].fd, buffer, sizeof buffer) == 0) {
                close(events[i].fd);
                events[i].fd = -1;
            }
        if (events[6].revents) {
            pid_t ended;
            while ((ended = waitpid(-1, &status, WNOHANG)) > 0)
                if (ended == child) {
                    program_status = status;
                    events[6].fd = -1;
                    kill_all(run->id);
                }
        }
        if (program_status >= 0 && waitid(P_ALL, 0, &left, WEXITED | WNOHANG | WNOWAIT) < 0)
            return program_status;
    }
}

static void write_outcome(const struct run *run)
{
    static char outcome[OUTCOME_SIZE];
    memset(outcome, ' ', sizeof outcome);
    as_service_user();
    int fd = check(openat(run->directory, "outcome.json.new", O_WRONLY | O_CLOEXEC | O_NOFOLLOW), "outcome");
    check(write(fd, outcome, sizeof outcome), "outcome");
    check(ftruncate(fd, sizeof outcome), "outcome");
    check(fsync(fd), "outcome");
    close(fd);
    check(renameat(run->directory, "outcome.json.new", run->directory, "outcome.json"), "outcome");
    as_service_user();
}

/* The monitor keeps of its rights what it still needs. */
static void give_up_rights(void)
{
    const unsigned int kept = 1 << CAP_KILL | 1 << CAP_SETGID | 1 << CAP_SETUID | 1 << CAP_SYS_RESOURCE;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    for (int capability = 0; capability < 64; capability++)
        if ((capability > 31 || !(kept >> capability & 1)) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            break;
    check(syscall(SYS_capget, &header, sets), "capget");
    sets[0] = (struct __user_cap_data_struct){.effective = sets[0].permitted & kept, .permitted = sets[0].permitted & kept};
    sets[1] = (struct __user_cap_data_struct){0};
    check(syscall(SYS_capset, &header, sets), "capset");
}

/* PID 1 of the new namespace: starts the program, reads its output to the end, reaps it, records its end. */
static void supervise(const struct run *run)
{
    struct sigaction reaper = {.sa_handler = on_child, .sa_flags = SA_RESTART};
    prctl(PR_SET_NAME, "floor-monitor", 0, 0, 0);
    check(setsid(), "setsid");
    wakeup_end = run->wakeup[1];
    check(sigaction(SIGCHLD, &reaper, NULL), "sigaction");
    pid_t child = fork_into_group(run->id);
    if (child == 0)
        become_program(run);
    close(run->out[1]);
    close(run->err[1]);
    close(run->status[1]);
    int child_fd = check(syscall(SYS_pidfd_open, child, 0), "pidfd_open");
    check_exec(run->status[0]);
    check(send(run->channel, "running", 7, 0), "channel");
    give_up_rights();
    int status = serve(run, child, child_fd);
    read_usage(run->id);
    write_outcome(run);
    remove_groups(run->id);
    const char *word = WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "ended" : "failed";
    check(send(run->channel, word, strlen(word), 0), "channel");
    _exit(0);
}

/* Server and launcher. */

static void set_id(struct run *run, long number)
{
    snprintf(run->id, sizeof run->id, "%08lx-0000-4000-8000-%012lx", number & 0xffffffff, number & 0xffffffff);
}

static const char *in_jobs(const char *id, const char *file)
{
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/jobs/%s%s%s", state, id, *file ? "/" : "", file);
    return path;
}

static int create(const struct run *run, const char *name, int flags)
{
    return check(openat(run->directory, name, O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, 0600), name);
}

static void request(struct run *run, int channel[2])
{
    static char spec[SPEC_SIZE];
    memset(spec, ' ', sizeof spec);
    check(mkdir(in_jobs(run->id, ""), 0700), "job directory");
    run->directory = check(open(in_jobs(run->id, ""), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW), "job directory");
    int fd = create(run, "spec.json", O_WRONLY | O_EXCL);
    check(write(fd, spec, sizeof spec), "spec.json");
    close(fd);
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel), "socketpair");
    run->channel = channel[1];
}

static int lease_uid(long number)
{
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = number, .l_len = 1};
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/uids", state);
    int lease = check(open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), path);
    check(fcntl(lease, F_OFD_SETLK, &byte), "uids");
    return lease;
}

static void read_request(const struct run *run)
{
    char spec[4096];
    struct stat status;
    check(fstat(run->directory, &status), "job directory");
    int fd = check(openat(run->directory, "spec.json", O_RDONLY | O_CLOEXEC | O_NOFOLLOW), "spec.json");
    while (check(read(fd, spec, sizeof spec), "spec.json") > 0)
        ;
    close(fd);
}

static void make_files(struct run *run)
{
    static const struct sockaddr_un control = {.sun_family = AF_UNIX, .sun_path = "control"};
    as_service_user();
    run->lock = create(run, "lock", O_RDWR);
    check(flock(run->lock, LOCK_EX | LOCK_NB), "lock");
    int outcome = create(run, "outcome.json.new", O_WRONLY | O_EXCL);
    check(fallocate(outcome, 0, 0, 4096), "outcome.json.new");
    close(outcome);
    check(fchdir(run->directory), "control");
    run->listener = check(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "control");
    mode_t before = umask(0177);
    check(bind(run->listener, (const struct sockaddr *)&control, sizeof(sa_family_t) + sizeof "control"), "control");
    check(listen(run->listener, 16), "control");
    umask(before);
    check(chdir("/"), "control");
    run->output = create(run, "output", O_WRONLY | O_EXCL | O_APPEND);
    run->index = create(run, "output.idx", O_WRONLY | O_EXCL | O_APPEND);
    as_service_user();
}

static void make_pipes(struct run *run)
{
    int yes = 1;
    check(pipe2(run->out, O_CLOEXEC), "pipe");
    check(pipe2(run->err, O_CLOEXEC), "pipe");
    check(pipe2(run->status, O_CLOEXEC), "pipe");
    check(pipe2(run->wakeup, O_CLOEXEC | O_NONBLOCK), "pipe");
    const int ends[] = {run->out[0], run->err[0]};
    for (int i = 0; i < 2; i++) {
        check(ioctl(ends[i], FIONBIO, &yes), "pipe");
        check(fchown(ends[i], UID, UID), "pipe");
    }
    check(ioctl(run->channel, FIONBIO, &yes), "channel");
}

static void fork_monitor(const struct run *run, int control)
{
    check(unshare(CLONE_NEWPID), "unshare");
    pid_t monitor = check(fork(), "fork");
    if (monitor == 0) {
        close(control);
        close(own_namespace);
        supervise(run);
    }
    check(setns(own_namespace, CLONE_NEWPID), "setns");
}

/* Starts a run; what its monitor says can be read from the descriptor returned. */
static int start(long number)
{
    struct run run;
    int channel[2];
    set_id(&run, number);
    request(&run, channel);
    read_request(&run);
    int lease = lease_uid(number);
    make_groups(run.id);
    make_files(&run);
    make_pipes(&run);
    run.oom = watch_oom(run.id);
    fork_monitor(&run, channel[0]);
    const int own[] = {
        run.lock, run.listener, run.output, run.index, run.out[0], run.out[1], run.err[0], run.err[1], run.status[0],
        run.status[1], run.wakeup[0], run.wakeup[1], run.oom, lease, run.channel, run.directory,
    };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        close(own[i]);
    return channel[0];
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static void measure(long concurrency)
{
    struct pollfd channels[MAX_CONCURRENCY];
    long running = 0, ended = 0;
    double mark = now();
    while (ended < runs) {
        for (; started < runs && running < concurrency; running++)
            channels[running] = (struct pollfd){.fd = start(started++), .events = POLLIN};
        check(poll(channels, (nfds_t)running, -1), "poll");
        for (long i = running - 1; i >= 0; i--) {
            char word[8] = "";
            if (!channels[i].revents)
                continue;
            check(recv(channels[i].fd, word, sizeof word - 1, 0), "channel");
            if (strcmp(word, "running") == 0)
                continue;
            if (strcmp(word, "ended") != 0) {
                errno = ECANCELED;
                die(program);
            }
            double end = now();
            printf("%.1f\n", end - mark);
            mark = end;
            close(channels[i].fd);
            channels[i] = channels[--running];
            ended++;
        }
    }
}

static void clean_up(void)
{
    static const char *const files[] = {
        "spec.json", "lock", "outcome.json.new", "outcome.json", "control", "output", "output.idx",
    };
    char path[PATH_MAX];
    struct run run;
    for (long number = 0; number < started + 1; number++) {
        set_id(&run, number);
        for (const struct tree *tree = trees; tree < trees + tree_count; tree++)
            rmdir(in_group(tree, run.id, ""));
        for (size_t i = 0; i < sizeof files / sizeof *files; i++)
            unlink(in_jobs(run.id, files[i]));
        rmdir(in_jobs(run.id, ""));
    }
    for (const struct tree *tree = trees; tree < trees + tree_count; tree++)
        rmdir(tree->path);
    snprintf(path, sizeof path, "%s/uids", state);
    unlink(path);
    snprintf(path, sizeof path, "%s/jobs", state);
    rmdir(path);
    rmdir(state);
}

static void load_filter(const char *path)
{
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), path);
    ssize_t size = check(read(fd, filter, sizeof filter), path);
    filter_program.len = (unsigned short)((size_t)size / sizeof *filter);
    close(fd);
}

int main(int argc, char **argv)
{
    char path[PATH_MAX];
    for (int option; (option = getopt(argc, argv, "bf:")) != -1;)
        if (option == 'b')
            is_bare = 1;
        else if (option == 'f')
            load_filter(optarg);
        else
            return 2;
    argc -= optind;
    argv += optind;
    runs = argc > 0 ? strtol(argv[0], NULL, 10) : 0;
    long concurrency = argc > 1 ? strtol(argv[1], NULL, 10) : 1;
    if (argc > 3 || runs <= 0 || concurrency <= 0 || concurrency > MAX_CONCURRENCY) {
        fprintf(stderr, "usage: floor [-b] [-f FILTER] RUNS [CONCURRENCY [STATE]]\n");
        return 2;
    }
    self = getpid();
    snprintf(state, sizeof state, "%s/jobworker-floor-%d", argc > 2 ? argv[2] : "/var/tmp", self);
    check(mkdir(state, 0700), state);
    snprintf(path, sizeof path, "%s/jobs", state);
    check(mkdir(path, 0700), path);
    umask(077);
    check(dup2(check(open("/dev/null", O_RDONLY | O_CLOEXEC), "/dev/null"), 0), "/dev/null");
    own_namespace = check(open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC), "/proc/self/ns/pid");
    signal(SIGCHLD, SIG_IGN); /* monitors put their own end on record */
    landlock = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    prepare_trees();
    survey();
    measure(concurrency);
    clean_up();
    return 0;
}
