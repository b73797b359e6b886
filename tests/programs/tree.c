// A job that is hard to end: a child, a grandchild in a session of its own, a double-forked daemon,
// one that ignores SIGTERM and SIGHUP, one that is stopped, and one under ptrace where
// that is allowed. All keep stdout open.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static int ready[2];

static void forever(void) {
    if (write(ready[1], "+", 1) != 1) _exit(9);
    for (;;) pause();
}

static void ignoring(void) {
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    forever();
}

static void own_session(void) {
    if (fork() == 0) {
        setsid();
        ignoring();
    }
    forever();
}

static void daemonise(void) {
    if (fork() != 0) _exit(0);
    setsid();
    if (fork() != 0) _exit(0);
    ignoring();
}

static void stopped(void) {
    if (write(ready[1], "+", 1) != 1) _exit(9);
    raise(SIGSTOP);
    for (;;) pause();
}

static void tracer(void) {
    pid_t traced = fork();
    if (traced == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (;;) pause();
    }
    waitpid(traced, 0, WUNTRACED);  // it stays in its stop, of ptrace or not: nobody continues it
    ignoring();
}

int main(void) {
    static void (*const kinds[])(void) = {own_session, daemonise, ignoring, stopped, tracer};
    const int messages = 6;
    char byte;
    signal(SIGTERM, SIG_IGN);
    if (pipe(ready) != 0) return 1;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (fork() == 0) kinds[i]();
    for (int i = 0; i < messages; i++)
        if (read(ready[0], &byte, 1) != 1) return 2;
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
