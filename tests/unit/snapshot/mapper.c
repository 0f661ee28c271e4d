/* Maps a memory file the way QEMU does, and obeys: mapper FILE; then on stdin "dump PATH", "page N", "poke N", "drop N COUNT". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct stat found;
    int fd = argc > 1 ? open(argv[1], O_RDONLY) : -1;
    if (fd < 0 || fstat(fd, &found) != 0)
        return 1;
    size_t size = found.st_size;
    char *reserved = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *memory = mmap(reserved, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
    if (memory != reserved)
        return 2;
    madvise(memory, size, MADV_HUGEPAGE);
    char line[4096], path[4096];
    unsigned long page, count;
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        struct rusage usage;
        if (sscanf(line, "dump %4095s", path) == 1) {
            int out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
            size_t done = 0;
            for (ssize_t n; done < size && (n = write(out, memory + done, size - done)) > 0; done += n)
                ;
            close(out);
            printf("%zu\n", done);
        } else if (sscanf(line, "page %lu", &page) == 1) {
            for (int i = 0; i < 16; i++)
                printf("%02x", (unsigned char)memory[page * 4096 + i]);
            printf("\n");
        } else if (sscanf(line, "poke %lu", &page) == 1) {
            memory[page * 4096] = 'X';
            printf("poked\n");
        } else if (sscanf(line, "drop %lu %lu", &page, &count) == 2) {
            printf("%d\n", madvise(memory + page * 4096, count * 4096, MADV_DONTNEED));
        } else {
            getrusage(RUSAGE_SELF, &usage);
            printf("%ld\n", usage.ru_majflt);
        }
        fflush(stdout);
    }
    return 0;
}
