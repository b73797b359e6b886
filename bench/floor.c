/*
 * The kernel's own price of a job: what jobworker does from start to reaped, in C and nothing around it.
 *
 *     floor RUNS [PROGRAM]      prints the microseconds of each run, one a line; needs root
 *
 * The processes are those of the library: this one stands for the launcher, which forks a monitor into a new PID
 * namespace, which forks the program. The steps of the program are those of src/jobworker/runtime/sandbox.py, in
 * their order. Writing the outcome to disk is left out, since its price is the disk's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UID 265535 /* the last one of jobworker's default range */
#define MAX_TREES 8

static char groups[MAX_TREES][256]; /* this run's control group in each tree */
static int trees;

static void die(const char *step)
{
    fprintf(stderr, "floor: %s: %s\n", step, strerror(errno));
    exit(1);
}

static void check(long result, const char *step)
{
    if (result < 0)
        die(step);
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

/* Sets a limit where the tree has it, and reads it back as the library does. */
static void limit(const char *group, const char *file, const char *value)
{
    char path[512], shown[64];
    snprintf(path, sizeof path, "%s/%s", group, file);
    if (access(path, F_OK) < 0)
        return;
    check(write_file(path, value), path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    check(fd, path);
    check(read(fd, shown, sizeof shown), path);
    close(fd);
}

/* The trees that limit jobs: version 2, and each version 1 controller that the library uses. */
static void find_trees(void)
{
    FILE *mountinfo = fopen("/proc/self/mountinfo", "re");
    char line[4096], place[128], kind[64], options[256];
    if (!mountinfo)
        die("/proc/self/mountinfo");
    while (fgets(line, sizeof line, mountinfo) && trees < MAX_TREES) {
        char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*s %*s %*s %*s %127s", place) != 1)
            continue;
        if (sscanf(rest, " - %63s %*s %255s", kind, options) != 2 || strncmp(kind, "cgroup", 6) != 0)
            continue;
        if (strcmp(kind, "cgroup2") != 0 && !strstr(options, "memory") && !strstr(options, "pids") &&
            !strstr(options, "blkio") && !strstr(options, "cpu"))
            continue;
        if (strcmp(kind, "cgroup") == 0 && strstr(options, "cpuset"))
            continue;
        snprintf(groups[trees], sizeof groups[trees], "%s/jobworker-floor", place);
        if (mkdir(groups[trees], 0755) < 0 && errno != EEXIST)
            die(groups[trees]);
        strcat(groups[trees++], "/job");
    }
    fclose(mountinfo);
}

static void remove_parents(void)
{
    for (int tree = 0; tree < trees; tree++) {
        *strrchr(groups[tree], '/') = '\0';
        rmdir(groups[tree]);
    }
}

static void bind_read_only(const char *source, const char *target)
{
    struct { uint64_t set, clear, propagation, userns_fd; } attributes = {
        .set = 0x1 | 0x2 | 0x4, /* MOUNT_ATTR_RDONLY, NOSUID, NODEV */
        .propagation = MS_PRIVATE,
    };
    int tree = syscall(SYS_open_tree, AT_FDCWD, source, 1 | O_CLOEXEC); /* OPEN_TREE_CLONE */
    check(tree, "open_tree");
    check(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes), "mount_setattr");
    check(syscall(SYS_move_mount, tree, "", AT_FDCWD, target, 4), "move_mount"); /* MOVE_MOUNT_F_EMPTY_PATH */
    close(tree);
}

static void mask(const char *path)
{
    struct stat found;
    if (lstat(path, &found) < 0 || S_ISLNK(found.st_mode))
        return;
    check(mount(S_ISDIR(found.st_mode) ? "tmp/directory" : "tmp/file", path, NULL, MS_BIND, NULL), path);
}

static void make_root(void)
{
    static const char *const hidden[] = {
        "/boot", "/etc/gshadow", "/etc/gshadow-", "/etc/shadow", "/etc/shadow-", "/etc/ssl/private", "/etc/sudoers",
        "/home", "/media", "/mnt", "/root", "/run", "/srv", "/var/lib/docker", "/var/log",
    };
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
    int file = open("tmp/file", O_CREAT | O_WRONLY | O_CLOEXEC, 0444);
    check(file, "masks");
    close(file);
    check(mount("mask", "tmp", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | closed, NULL), "masks");
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        mask(hidden[i]);
}

static void fill_proc(void)
{
    static const char *const hidden[] = {
        "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
        "/proc/sched_debug", "/proc/scsi", "/proc/kallsyms", "/proc/interrupts",
    };
    static const char *const read_only[] = {
        "/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger",
    };
    const unsigned long closed = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    check(mount("proc", "/proc", "proc", closed, "hidepid=2"), "/proc");
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        mask(hidden[i]);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        if (access(read_only[i], F_OK) < 0)
            continue;
        check(mount(read_only[i], read_only[i], NULL, MS_BIND, NULL), read_only[i]);
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
    static const struct { int number; rlim_t soft, hard; } limits[] = {
        {RLIMIT_CORE, 0, 0}, {RLIMIT_NOFILE, 1024, 4096}, {RLIMIT_NPROC, 256, 256}, {RLIMIT_MEMLOCK, 65536, 65536},
        {RLIMIT_MSGQUEUE, 0, 0}, {RLIMIT_RTPRIO, 0, 0}, {RLIMIT_NICE, 0, 0}, {RLIMIT_STACK, 8 << 20, 64 << 20},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit values = {limits[i].soft, limits[i].hard};
        check(setrlimit(limits[i].number, &values), "setrlimit");
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
    check(syscall(SYS_capset, &header, none), "capset");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

static void become_program(const char *program, int out, int err, int status)
{
    char *const arguments[] = {(char *)program, NULL};
    char *const environment[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LANG=C.UTF-8", NULL,
    };
    static const int ignored[] = {SIGPIPE, SIGXFSZ, SIGINT, SIGCHLD, SIGTERM, SIGHUP};
    sigset_t nothing;
    char path[4096];

    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    check(dup2(null, 0), "stdin");
    check(dup2(out, 1), "stdout");
    check(dup2(err, 2), "stderr");
    for (int tree = 0; tree < trees; tree++) {
        snprintf(path, sizeof path, "%s/cgroup.procs", groups[tree]);
        check(write_file(path, "0"), path);
    }
    check(write_file("/proc/self/oom_score_adj", "500"), "oom_score_adj");
    check(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP), "unshare");
    make_root();
    fill_proc();
    fill_dev_and_scratch();
    check(sethostname("job-floor", 9), "sethostname");
    raise_loopback();
    check(setsid(), "setsid");
    umask(022);
    set_rlimits();
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_DFL);
    sigemptyset(&nothing);
    sigprocmask(SIG_SETMASK, &nothing, NULL);
    drop_privileges();
    close_range(3, status - 1, 0);
    close_range(status + 1, ~0U, 0);
    check(chdir("/tmp/work"), "workdir");
    execve(program, arguments, environment);
    die(program);
}

/* PID 1 of the new namespace: starts the program, reads its output to the end, reaps it. */
static void supervise(const char *program)
{
    int out[2], err[2], status[2], ended;
    char buffer[65536];
    check(pipe2(out, O_CLOEXEC), "pipe");
    check(pipe2(err, O_CLOEXEC), "pipe");
    check(pipe2(status, O_CLOEXEC), "pipe");
    pid_t child = fork();
    check(child, "fork");
    if (child == 0)
        become_program(program, out[1], err[1], status[1]);
    close(out[1]);
    close(err[1]);
    close(status[1]);
    check(read(status[0], buffer, 1), "exec"); /* the end of this pipe says that the program runs */

    struct pollfd pipes[2] = {{.fd = out[0], .events = POLLIN}, {.fd = err[0], .events = POLLIN}};
    for (int open_pipes = 2; open_pipes > 0;) {
        check(poll(pipes, 2, -1), "poll");
        for (int i = 0; i < 2; i++)
            if (pipes[i].revents && read(pipes[i].fd, buffer, sizeof buffer) <= 0) {
                pipes[i].fd = -1;
                open_pipes--;
            }
    }
    check(waitpid(child, &ended, 0), "waitpid");
    _exit(WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended));
}

static void run(const char *program, int own_namespace)
{
    int ended;
    for (int tree = 0; tree < trees; tree++) {
        check(mkdir(groups[tree], 0755), groups[tree]);
        limit(groups[tree], "memory.limit_in_bytes", "536870912");
        limit(groups[tree], "memory.max", "536870912");
        limit(groups[tree], "pids.max", "256");
    }
    check(unshare(CLONE_NEWPID), "unshare");
    pid_t monitor = fork();
    check(monitor, "fork");
    if (monitor == 0)
        supervise(program);
    check(setns(own_namespace, CLONE_NEWPID), "setns");
    check(waitpid(monitor, &ended, 0), "waitpid");
    for (int tree = 0; tree < trees; tree++)
        check(rmdir(groups[tree]), groups[tree]);
    if (!WIFEXITED(ended) || WEXITSTATUS(ended) != 0) {
        remove_parents();
        fprintf(stderr, "floor: %s did not exit with 0\n", program);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    const char *program = argc > 2 ? argv[2] : "/bin/true";
    long runs = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    if (runs <= 0) {
        fprintf(stderr, "usage: floor RUNS [PROGRAM]\n");
        return 2;
    }
    int own_namespace = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    check(own_namespace, "/proc/self/ns/pid");
    find_trees();
    for (long i = 0; i < runs; i++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        run(program, own_namespace);
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%.1f\n", (double)(end.tv_sec - begin.tv_sec) * 1e6 + (double)(end.tv_nsec - begin.tv_nsec) / 1e3);
    }
    remove_parents();
    return 0;
}
