/* Preloaded into a program that writes and never synchronises: what it closes is on the disk, and so is its name. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

static void synchronise_folder(int descriptor)
{
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length <= 0)
        return;
    path[length] = '\0';
    int folder = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return;
    fsync(folder);
    close(folder);
}

int fclose(FILE *file)
{
    static int (*original)(FILE *);
    if (!original)
        original = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
    fflush(file);
    fdatasync(fileno(file));
    synchronise_folder(fileno(file));
    return original(file);
}
