// Package kvm is the Linux KVM API (KVM API is Documentation/virt/kvm/api.rst
// in the kernel tree) as typed handles:
//
//	System  /dev/kvm: what the host can do, and where VMs come from
//	VM      memory slots, interrupt controllers, eventfds, clocks, dirty pages
//	VCPU    registers, state, and Run with the exits it returns from
//
// The package is thin: one method is one ioctl, with its arguments typed and
// its answer checked. It holds no policy, starts no goroutine and keeps no
// state but file descriptors and mappings. Structs and constants that cross
// into the kernel have the layout and the values of <linux/kvm.h>, and the
// constants its spelling too, so that they can be looked up there.
//
// Every error names the ioctl and wraps the errno:
//
//	kvm: KVM_SET_SREGS: invalid argument
//
// so errors.Is(err, unix.EINVAL) works. Run alone returns the bare errno.
//
// A minimal guest:
//
//	sys, err := kvm.Open("")
//	vm, err := sys.CreateVM()
//	err = vm.SetUserMemoryRegion(0, 0, 0, mem)
//	cpu, err := vm.CreateVCPU(0)
//	err = cpu.SetRegs(kvm.Regs{RIP: 0x1000, RFLAGS: kvm.RFLAGSFixed})
//	for {
//		if err := cpu.Run(); err != nil { ... }
//		switch cpu.ExitReason() {
//		case kvm.KVM_EXIT_IO:
//			io := cpu.IO()
//		}
//	}
//
// System and VM are safe for use by several goroutines at once, as far as the
// kernel is: it serializes what needs it. A VCPU belongs to one thread (its
// vCPU thread) except for SetImmediateExit. Close must come after every other
// call on the same handle has returned.
//
// All of unsafe is in *_unsafe.go.
package kvm
