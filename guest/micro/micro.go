// Package micro makes micro-guests: small 64-bit programs that run alone in a
// virtual machine, without a kernel, for tests and benchmarks.
//
// An Asm assembles the program, Program.ELF wraps it in an ELF file with a PVH
// note, which godwit, QEMU and every other VMM that takes PVH kernels boots
// unchanged. A stub inside the file brings the processor from the 32-bit PVH
// entry to 64-bit mode and drops to ring 3, where the program runs with
// identity-mapped memory and the right to do port I/O. Ring 3 is what makes a
// micro-guest useful everywhere: it runs at native speed also on a KVM that
// has no hardware virtualization below it and emulates ring 0.
//
// What a program finds when it starts:
//
//   - RDI is the address of struct hvm_start_info, RSP the top of a stack of
//     at least 1 KiB, RFLAGS has IOPL 3 and interrupts off. All other
//     registers are undefined.
//   - The addresses from 0 to Program.MapGiB GiB are mapped to themselves,
//     readable, writable and executable. That includes the MMIO windows.
//   - SSE works; no interrupt is ever delivered.
//   - Privileged instructions, HLT among them, fault. A fault ends the guest:
//     the stub writes the vector to FaultPort and causes a triple fault with
//     the vector in RAX, the address in RBX, the error code in RCX and CR2
//     in RDX.
//
// The ready programs (Exit, PortLoop, Touch and others) cover what benchmarks
// and hostile-guest tests want; each ends with a Stop, the port writes that
// make its VMM end the guest.
//
// Some of them are drivers of virtio devices on a PCI bus: Block, Net, Vsock and
// Entropy do what a good driver does, by polling, and VirtioAttack does the
// opposite. They find the device through the configuration ports, or where there
// are none through ECAM at the address that godwit and QEMU's microvm have in
// common, and assign BARs where no firmware did. What they find out they leave in
// the result words, for ReadResult.
package micro

// The addresses that a program and its observer share. All lie in the second
// MiB, which every guest has as RAM.
const (
	// ResultStart is where the ready programs leave their counters, as
	// 64-bit words: see the Result constants.
	ResultStart = 0x1f_f000
	// StackTop is the value of RSP when the program starts. The stack
	// grows down towards the result words of the same page; ResultSize is
	// what those take at most.
	StackTop = 0x20_0000
	// CodeStart is where the program is loaded and starts.
	CodeStart = 0x20_0000
)

// Offsets from ResultStart of what the ready programs leave there.
const (
	// ResultCount counts the rounds that are finished.
	ResultCount = 0
	// ResultFirstTSC and ResultLastTSC are the time stamp counter before
	// the first round and after the last.
	ResultFirstTSC = 8
	ResultLastTSC  = 16
)

// FaultPort gets the vector of an exception as one byte, before the triple
// fault. It is the port of POST codes on every PC.
const FaultPort = 0x80
