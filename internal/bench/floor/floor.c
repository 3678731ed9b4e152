/*
 * The floor: the least that a program must do to run a PVH ELF file on KVM
 * until the guest powers off. Nothing is checked that need not be, no device
 * exists, and a read gets whatever is in the buffer.
 *
 * usage: floor FILE
 *
 * Prints as JSON the number of exits, the difference of the guest's own time
 * stamps (package guest/micro, ResultStart) and the processor time of the run
 * loop.
 */
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define MEMORY		(128UL << 20)
#define START_INFO	0x6000
#define RESULT_FIRST	(0x1ff000 + 8)
#define RESULT_LAST	(0x1ff000 + 16)
#define POWER_OFF_PORT	0x604

static int must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

/* load copies the segments and returns the entry of the program. */
static uint64_t load(const char *path, char *memory)
{
	int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
	Elf64_Ehdr header;
	Elf64_Phdr segment[8];

	if (read(fd, &header, sizeof header) != sizeof header || header.e_phnum > 8)
		errx(1, "%s: not a micro-guest", path);
	if (pread(fd, segment, sizeof *segment * header.e_phnum, header.e_phoff) < 0)
		err(1, "%s", path);
	for (int i = 0; i < header.e_phnum; i++) {
		Elf64_Phdr *p = &segment[i];

		if (p->p_type != PT_LOAD)
			continue;
		if (p->p_paddr > MEMORY || p->p_filesz > MEMORY - p->p_paddr)
			errx(1, "%s: segment outside of memory", path);
		if (pread(fd, memory + p->p_paddr, p->p_filesz, p->p_offset) < 0)
			err(1, "%s", path);
	}
	close(fd);
	return header.e_entry;
}

/* cpu_us is the processor time of this process in microseconds. */
static unsigned long cpu_us(void)
{
	struct rusage u;

	must(getrusage(RUSAGE_SELF, &u), "getrusage");
	return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000UL + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
}

/* enter leaves the vCPU at a PVH entry: 32-bit protected mode, no paging. */
static void enter(int vcpu, uint64_t entry)
{
	struct kvm_regs regs = { .rip = entry, .rbx = START_INFO, .rflags = 2 };
	struct kvm_segment data = {
		.limit = ~0U, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_sregs sregs;

	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cs.selector = 0x10;
	sregs.cs.type = 11;
	sregs.cr0 = 1;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

int main(int argc, char **argv)
{
	static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid = { { 256 } };
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	unsigned long exits = 0;

	if (argc != 2)
		errx(2, "usage: floor FILE");
	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	must(ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");
	char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "guest memory");
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory,
	};
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	uint64_t entry = load(argv[1], memory);

	int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "kvm_run");
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
	enter(vcpu, entry);

	unsigned long before = cpu_us();
	for (;;) {
		must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		exits++;
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.port != POWER_OFF_PORT)
				continue;
			break;
		case KVM_EXIT_MMIO:
			continue;
		default:
			errx(1, "exit reason %u", run->exit_reason);
		}
		break;
	}
	unsigned long after = cpu_us();
	uint64_t first, last;
	memcpy(&first, memory + RESULT_FIRST, sizeof first);
	memcpy(&last, memory + RESULT_LAST, sizeof last);
	printf("{\"exits\": %lu, \"tsc\": %lu, \"khz\": %d, \"cpu_us\": %lu}\n", exits, last - first,
		ioctl(vcpu, KVM_GET_TSC_KHZ, 0), after - before);
	return 0;
}
