/*
 * The floor of a restore: the least that a program must do to have a saved guest
 * go on until it powers off, and to pass on what it says on its serial port. The memory is mapped from the snapshot's file, and the
 * rest is a list of ioctls to repeat. Nothing is checked that need not be, and no
 * device exists.
 *
 * usage: restore STATE MEMORY [FD]
 *
 * With FD the guest does not run: the program writes a line to FD when all is
 * in place, and waits to be killed.
 *
 * STATE is a struct head, the ranges of RAM, and the calls, each with its argument
 * behind it, padded to 8 bytes.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define GENERATION_ID	0xff000
#define POWER_OFF_PORT	0x604
#define SERIAL_PORT	0x3f8

struct head {
	uint32_t ranges, calls;
};

/* range is RAM at address, which has its bytes one after the other in MEMORY. */
struct range {
	uint64_t address, size;
};

/* call is an ioctl of the VM, or else of the vCPU. */
struct call {
	uint32_t request, size, of_vm, unused;
};

static int must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void *map(size_t size, int prot, int flags, int fd, off_t offset, const char *what)
{
	void *p = mmap(NULL, size, prot, flags, fd, offset);

	if (p == MAP_FAILED)
		err(1, "%s", what);
	return p;
}

static char *map_file(const char *path)
{
	struct stat st;
	int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);

	must(fstat(fd, &st), path);
	char *p = map(st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0, path);
	close(fd);
	return p;
}

/* add_memory gives the VM its RAM, with an ID for the guest's new generation. */
static void add_memory(int vm, const char *path, const struct range *r, uint32_t n)
{
	int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
	off_t offset = 0;

	for (uint32_t slot = 0; slot < n; slot++, offset += r->size, r++) {
		char *p = map(r->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, offset, path);
		struct kvm_userspace_memory_region region = {
			.slot = slot, .guest_phys_addr = r->address, .memory_size = r->size, .userspace_addr = (uintptr_t)p,
		};

		if (slot == 0)
			must(getrandom(p + GENERATION_ID, 16, 0), "getrandom");
		must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	}
	close(fd);
}

int main(int argc, char **argv)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };

	if (argc != 3 && argc != 4)
		errx(2, "usage: restore STATE MEMORY [FD]");
	char *state = map_file(argv[1]);
	struct head *head = (struct head *)state;
	struct range *ranges = (struct range *)(head + 1);

	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	add_memory(vm, argv[2], ranges, head->ranges);
	must(ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");
	int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0, "kvm_run");

	char *at = (char *)(ranges + head->ranges);
	for (uint32_t i = 0; i < head->calls; i++) {
		struct call *c = (struct call *)at;

		if (ioctl(c->of_vm ? vm : vcpu, c->request, c + 1) < 0)
			err(1, "ioctl %#x", c->request);
		at += sizeof *c + (c->size + 7) / 8 * 8;
	}
	if (argc == 4) {
		must(write(atoi(argv[3]), "ready\n", 6), "ready");
		pause();
	}
	do {
		must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		if (run->exit_reason != KVM_EXIT_IO)
			errx(1, "exit reason %u", run->exit_reason);
		if (run->io.port == SERIAL_PORT)
			must(write(STDOUT_FILENO, (char *)run + run->io.data_offset, 1), "standard output");
	} while (run->io.port != POWER_OFF_PORT);
	return 0;
}
