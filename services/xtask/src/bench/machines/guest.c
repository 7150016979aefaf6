/* What the agent is measured against. As PID 1 an init that powers off at once; else a server on a vsock port, for each
 * connection of which the first byte says what it wants: 'e' for an echo with a fork and an exec of `true` before each
 * answer, 's' for a stream of as many bytes as the eight that follow say (little endian), answered by one byte. */
#define _GNU_SOURCE
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PORT = 7000 };

static void echo(int peer) {
    char byte;
    while (read(peer, &byte, 1) == 1) {
        pid_t child = fork();
        if (child == 0) {
            execl("/usr/bin/true", "true", (char *)0);
            _exit(127);
        }
        int status = 1;
        if (waitpid(child, &status, 0) != child || status != 0) return;
        if (write(peer, &byte, 1) != 1) return;
    }
}

static void stream(int peer) {
    static char piece[1 << 18];
    uint64_t left;
    if (read(peer, &left, sizeof left) != sizeof left) return;
    while (left > 0) {
        ssize_t got = read(peer, piece, left < sizeof piece ? left : sizeof piece);
        if (got <= 0) return;
        left -= got;
    }
    (void)!write(peer, "", 1);
}

int main(void) {
    if (getpid() == 1) {
        reboot(RB_POWER_OFF);
        return 1;
    }
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT};
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 16)) return 1;
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int peer = accept(listener, 0, 0);
        if (peer < 0) return 1;
        if (fork() == 0) {
            char wish = 0;
            signal(SIGCHLD, SIG_DFL);
            close(listener);
            (void)!read(peer, &wish, 1);
            if (wish == 'e') echo(peer);
            if (wish == 's') stream(peer);
            _exit(0);
        }
        close(peer);
    }
}
