/* Where a guest's memory comes from, decided while a stock VMM maps it. Loaded with LD_PRELOAD; see shim.py, regions.py.
 *
 *   REWARM_SHIM_MODE    lazy-4k  the memory file, fault by fault: no readahead, no huge pages
 *                       layered  the three layers of REWARM_SHIM_LAYOUT, whose loading set is REWARM_SHIM_LOADING_SET
 *                       uffd     anonymous memory, filled by the pager at the other end of the socket REWARM_SHIM_PAGER
 *   REWARM_SHIM_MEMORY  "DEVICE:INODE" of the memory file, in decimal
 *   REWARM_SHIM_UFFD    the number of an open /dev/userfaultfd, for a VMM that may not open it; not needed otherwise
 *
 * Whatever goes wrong is told on stderr, and the memory file stays mapped as the VMM wanted it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* Linux 6.1 */
#endif
#define PAGE_MASK ((uint64_t)4095)
#define ANONYMOUS UINT64_MAX

struct head {
    char magic[8];
    uint32_t format, records;
    uint64_t memory_bytes;
};
struct record {
    uint64_t begin, size, source;
};

static const char *mode; /* NULL: nothing to do, or not any more */
static unsigned long long device, inode;
static char *base; /* of the guest's memory, once it is mapped */
static size_t length;

__attribute__((constructor)) static void prepare(void) {
    const char *memory = getenv("REWARM_SHIM_MEMORY");
    if (memory && sscanf(memory, "%llu:%llu", &device, &inode) == 2)
        mode = getenv("REWARM_SHIM_MODE");
}

static void *map(void *where, size_t size, int prot, int flags, int fd, off_t offset) {
    return (void *)syscall(SYS_mmap, where, size, prot, flags, fd, offset);
}

static int map_layers(const struct head *head, size_t bytes, int prot, int loading_set) {
    const struct record *record = (const struct record *)(head + 1);
    if (bytes < sizeof *head || memcmp(head->magic, "RWLAYOUT", 8) || head->format != 1 ||
        head->memory_bytes != length || bytes < sizeof *head + head->records * sizeof *record)
        return errno = EINVAL, -1;
    for (uint32_t i = 0; i < head->records; i++, record++) {
        uint64_t begin = record->begin, size = record->size;
        if ((begin | size) & PAGE_MASK || begin > length || size > length - begin)
            return errno = EINVAL, -1;
        int empty = record->source == ANONYMOUS, flags = MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE;
        void *done = empty ? map(base + begin, size, prot, flags | MAP_ANONYMOUS, -1, 0)
                           : map(base + begin, size, prot, flags, loading_set, record->source);
        if (done == MAP_FAILED)
            return -1;
    }
    return 0;
}

static int layered(int prot) {
    const char *paths[] = {getenv("REWARM_SHIM_LAYOUT"), getenv("REWARM_SHIM_LOADING_SET")};
    int fds[2], status = -1;
    struct stat found;
    for (int i = 0; i < 2; i++)
        fds[i] = open(paths[i] ? paths[i] : "", O_RDONLY | O_CLOEXEC);
    if (fds[0] >= 0 && fds[1] >= 0 && fstat(fds[0], &found) == 0) {
        struct head *head = malloc(found.st_size);
        ssize_t bytes = head ? read(fds[0], head, found.st_size) : -1;
        if (bytes >= 0)
            status = map_layers(head, bytes, prot, fds[1]);
        free(head);
    }
    int error = errno;
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    errno = error;
    return status;
}

static int hand_over(int uffd) {
    const char *number = getenv("REWARM_SHIM_PAGER");
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
    struct uffdio_register range = {.range = {(uintptr_t)base, length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (!number || ioctl(uffd, UFFDIO_API, &api) != 0 || ioctl(uffd, UFFDIO_REGISTER, &range) != 0)
        return -1;
    char text[256]; /* as Firecracker says it */
    const char *words = "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096}]";
    int size = snprintf(text, sizeof text, words, (unsigned long long)range.range.start, length);
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), &uffd, sizeof uffd);
    struct iovec part = {text, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = sizeof control;
    return sendmsg(atoi(number), &message, MSG_NOSIGNAL) == size ? 0 : -1;
}

static int paged(int prot) {
    if (map(base, length, prot, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        return -1;
    const char *number = getenv("REWARM_SHIM_UFFD");
    int file = number ? atoi(number) : open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int uffd = file >= 0 ? ioctl(file, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                         : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    int status = uffd < 0 ? -1 : hand_over(uffd), error = errno;
    if (file >= 0)
        close(file);
    if (status != 0 && uffd >= 0)
        close(uffd); /* else it stays open: without it, memory that a dead pager left out would read as zeros */
    errno = error;
    return status;
}

void *mmap(void *where, size_t size, int prot, int flags, int fd, off_t offset) {
    void *found = map(where, size, prot, flags, fd, offset);
    struct stat file;
    if (!mode || found == MAP_FAILED || fd < 0 || offset != 0 || !(flags & MAP_PRIVATE) || fstat(fd, &file) != 0 ||
        file.st_dev != device || file.st_ino != inode)
        return found;
    const char *how = mode;
    int status = 0;
    mode = NULL;
    base = found;
    length = size;
    syscall(SYS_madvise, base, length, MADV_RANDOM); /* a fault on a cold page wants that page, and not megabytes */
    if (!strcmp(how, "layered"))
        status = layered(prot);
    else if (!strcmp(how, "uffd"))
        status = paged(prot);
    if (status != 0) {
        dprintf(STDERR_FILENO, "rewarm shim: %s: %s; the memory file is mapped as it is\n", how, strerror(errno));
        base = NULL;
        return map(found, size, prot, flags | MAP_FIXED, fd, offset);
    }
    return found;
}

void *mmap64(void *where, size_t size, int prot, int flags, int fd, off_t offset) __attribute__((alias("mmap")));

int madvise(void *where, size_t size, int advice) {
    if (base && advice == MADV_HUGEPAGE && (char *)where >= base && (char *)where < base + length)
        return 0; /* one fault would fetch 2 MiB */
    return (int)syscall(SYS_madvise, where, size, advice);
}
