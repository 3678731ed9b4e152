package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ioctls of KVM without an argument (KVM API §4).
const (
	kvmCreateVM      = 0xae01
	kvmCreateVCPU    = 0xae41
	kvmCreateIRQChip = 0xae60
)

// How long awaitTSC waits, and how often it looks. The kernel refines its
// measure for one second.
const (
	tscTimeout = 20 * time.Second
	tscPoll    = 5 * time.Millisecond
)

// awaitTSC waits until the kernel has measured the frequency of the TSC for
// good, which the name of the clock source tells; there is no event for it. KVM
// takes the frequency over when it is loaded. Under emulation on a busy machine
// the first measure is off by more than KVM tolerates between the two, and then
// it loses the TSC of every guest (see vcpu.CheckTSC).
func awaitTSC() error {
	const file = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
	for end := time.Now().Add(tscTimeout); ; time.Sleep(tscPoll) {
		name, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("wait for the TSC: %w", err)
		}
		if strings.TrimSpace(string(name)) != "tsc-early" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the kernel has not measured the TSC in %v: virtual machines may stall", tscTimeout)
		}
	}
}

// holdKVM keeps two idle virtual machines for as long as the system runs, one
// with an interrupt controller and one without.
//
// While there are virtual machines, and for each kind of them, Linux switches
// on branches in its scheduler and in KVM by patching its own code. To other
// processors the patch shows a breakpoint for a moment. QEMU 7.2, when it
// emulates several processors with a thread each, can keep that breakpoint in
// the code it has translated; the processor then traps there for ever, with
// the run queue locked, and the whole system hangs. With these two the branches
// are switched once, before anything else runs.
func holdKVM() error {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("hold KVM: %w", err)
	}
	// The descriptors of the machines stay open: that is what holds them.
	defer kvm.Close()
	return errors.Join(idleVM(int(kvm.Fd()), true), idleVM(int(kvm.Fd()), false))
}

// idleVM makes a virtual machine with one vCPU that never runs.
func idleVM(kvm int, irqchip bool) error {
	vm, err := unix.IoctlRetInt(kvm, kvmCreateVM)
	if err != nil {
		return fmt.Errorf("hold KVM: create a VM: %w", err)
	}
	unix.CloseOnExec(vm)
	if irqchip {
		if _, err := unix.IoctlRetInt(vm, kvmCreateIRQChip); err != nil {
			return fmt.Errorf("hold KVM: create an interrupt controller: %w", err)
		}
	}
	vcpu, err := unix.IoctlRetInt(vm, kvmCreateVCPU)
	if err != nil {
		return fmt.Errorf("hold KVM: create a vCPU: %w", err)
	}
	unix.CloseOnExec(vcpu)
	return nil
}
