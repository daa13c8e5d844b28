// PORT MODE: one operation of io_uring's own, by plain system calls: connect, worker (connect in a worker thread), sqpoll
// (connect in the kernel's polling thread), send (a datagram), raw (a raw socket), waits (as sqpoll; the ring and the
// socket are made first, then it says `ready` and reads a line). Or UID MODE: it becomes that user, without an exec, says
// its number, reads a line, makes a socket with credentials from before, says how that went, and reads on until its input ends:
// polled (by the kernel's polling thread), registered (they are given with the operation).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int said(int error) {
    if (error == 0)
        puts("through");
    else
        printf("%s %s\n", error == ENOSYS || error == EPROTONOSUPPORT ? "absent" : "refused", strerrorname_np(error));
    return 0;
}

struct ring {
    int fd;
    int polled;
    char *sq;
    struct io_uring_sqe *entries;
    struct io_uring_params params;
};

static int make(struct ring *ring, int polled) {
    memset(ring, 0, sizeof *ring);
    ring->polled = polled;
    if (polled) {
        ring->params.flags = IORING_SETUP_SQPOLL;
        ring->params.sq_thread_idle = 10000;
    }
    ring->fd = syscall(SYS_io_uring_setup, 4, &ring->params);
    if (ring->fd < 0)
        return errno;
    if (!(ring->params.features & IORING_FEAT_SINGLE_MMAP))
        return ENOSYS;
    size_t submissions = ring->params.sq_off.array + ring->params.sq_entries * sizeof(unsigned);
    size_t completions = ring->params.cq_off.cqes + ring->params.cq_entries * sizeof(struct io_uring_cqe);
    size_t size = submissions > completions ? submissions : completions;
    ring->sq = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    ring->entries = mmap(0, ring->params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    return ring->sq == MAP_FAILED || ring->entries == MAP_FAILED ? errno : 0;
}

// Its result: not negative, or a negated errno.
static int submit(struct ring *ring, const struct io_uring_sqe *entry) {
    atomic_uint *tail = (atomic_uint *)(ring->sq + ring->params.sq_off.tail);
    unsigned *array = (unsigned *)(ring->sq + ring->params.sq_off.array);
    ring->entries[0] = *entry;
    array[*tail & (ring->params.sq_entries - 1)] = 0;
    atomic_fetch_add(tail, 1);
    unsigned flags = IORING_ENTER_GETEVENTS;
    atomic_uint *state = (atomic_uint *)(ring->sq + ring->params.sq_off.flags);
    if (ring->polled && (*state & IORING_SQ_NEED_WAKEUP))
        flags |= IORING_ENTER_SQ_WAKEUP;
    if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, flags, NULL, 0) < 0)
        return -errno;
    struct io_uring_cqe *results = (struct io_uring_cqe *)(ring->sq + ring->params.cq_off.cqes);
    return results[0].res;
}

static void wait_for_line(void) {
    char line[16];
    if (!fgets(line, sizeof line, stdin))
        exit(2);
}

static int become(uid_t user, int polled) {
    struct ring ring;
    int error = make(&ring, polled);
    if (error)
        return said(error);
    struct io_uring_sqe entry = {.opcode = IORING_OP_SOCKET, .fd = AF_INET, .off = SOCK_STREAM};
    if (!polled)
        entry.personality = syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_PERSONALITY, NULL, 0);
    if (setuid(user))
        return said(errno);
    printf("%d\n", getpid());
    fflush(stdout);
    wait_for_line();
    int result = submit(&ring, &entry);
    said(result < 0 ? -result : 0);
    fflush(stdout);
    wait_for_line();
    return 0;
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    const char *mode = words[2];
    int polled = !strcmp(mode, "polled");
    if (polled || !strcmp(mode, "registered"))
        return become(atoi(words[1]), polled);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int waits = !strcmp(mode, "waits");
    struct ring ring;
    int error = make(&ring, waits || !strcmp(mode, "sqpoll"));
    if (error)
        return said(error);
    struct io_uring_sqe entry = {0};
    struct iovec data = {.iov_base = "agentguard-attempt", .iov_len = 18};
    struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &data, .msg_iovlen = 1};
    if (!strcmp(mode, "raw")) {
        entry.opcode = IORING_OP_SOCKET;
        entry.fd = AF_INET;
        entry.off = SOCK_RAW;
        entry.len = IPPROTO_ICMP;
    } else if (!strcmp(mode, "send")) {
        entry.opcode = IORING_OP_SENDMSG;
        entry.fd = socket(AF_INET, SOCK_DGRAM, 0);
        entry.addr = (unsigned long)&message;
    } else {
        entry.opcode = IORING_OP_CONNECT;
        entry.fd = socket(AF_INET, SOCK_STREAM, 0);
        entry.addr = (unsigned long)&to;
        entry.off = sizeof to;
        entry.flags = strcmp(mode, "worker") ? 0 : IOSQE_ASYNC;
    }
    if (waits) {
        puts("ready");
        fflush(stdout);
        wait_for_line();
    }
    int result = submit(&ring, &entry);
    return said(result < 0 ? -result : 0);
}
