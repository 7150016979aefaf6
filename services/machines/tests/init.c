/* A guest whose agent is an enemy: knocks without end, and answers each connection with another kind of nonsense. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int vsock(unsigned cid, unsigned port, int listening) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (listening ? bind(fd, (void *)&address, sizeof address) || listen(fd, 64) : connect(fd, (void *)&address, sizeof address)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void answer(int fd, int kind) {
    static char flood[1 << 16];
    char greeting[512];
    memset(flood, kind % 5 == 0 ? 0xff : 'x', sizeof flood);
    if (kind % 5 != 4) (void)!read(fd, greeting, sizeof greeting);
    switch (kind % 5) {
    case 0: /* garbage, without end */
        while (write(fd, flood, sizeof flood) > 0) {}
        break;
    case 1: /* a frame of 64 KiB that says it is one of 4 GiB */
        (void)!write(fd, "\xff\xff\xff\xff", 4);
        (void)!write(fd, flood, sizeof flood);
        break;
    case 2: /* a frame that is never finished */
        (void)!write(fd, "\x00\x00\x10\x00{", 5);
        pause();
        break;
    case 3: /* let in, and then an answer to another question, again and again */
        for (;;) {
            const char *text = "{\"status\":\"ok\",\"data\":{\"path\":\"../../../../etc/passwd\"}}";
            unsigned char length[4] = {0, 0, 0, (unsigned char)strlen(text)};
            if (write(fd, length, 4) < 0 || write(fd, text, strlen(text)) < 0) break;
        }
        break;
    default: /* nothing */
        break;
    }
    close(fd);
}

int main(int count, char **words) {
    char path[256], ready[32] = "";
    mount("devtmpfs", "/dev", "devtmpfs", 0, "");
    dup2(open("/dev/console", O_RDWR), 1);
    FILE *list = fopen("/lib/modules/first", "r");
    while (list && fgets(path, sizeof path, list)) {
        path[strcspn(path, "\n")] = 0;
        int module = open(path, O_RDONLY);
        syscall(SYS_finit_module, module, "", 0);
        close(module);
    }
    FILE *port = fopen("/ready-port", "r");
    if (!port || !fgets(ready, sizeof ready, port)) return 1;
    static const unsigned ports[] = {5000, 5001, 6000, 6005};
    for (int n = 0; n < 4; n++) {
        int listener = vsock(VMADDR_CID_ANY, ports[n], 1);
        if (fork() == 0)
            for (int kind = n;; kind++) {
                int fd = accept(listener, 0, 0);
                if (fork() == 0) {
                    answer(fd, kind);
                    _exit(0);
                }
                close(fd);
            }
    }
    dprintf(1, "the enemy is up\n");
    for (;;) { /* knocks, and words on the console, without end */
        int fd = vsock(VMADDR_CID_HOST, atoi(ready), 0);
        if (fd >= 0) close(fd);
        dprintf(1, "knock %d %s\n", count, words[0]);
    }
}
