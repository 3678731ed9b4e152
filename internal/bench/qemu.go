package bench

import (
	"fmt"
	"os/exec"
)

// The peers.
const (
	microvmName = "QEMU microvm"
	q35Name     = "QEMU q35"
)

// debugExitStatus is what QEMU ends with after micro.DebugExit(0).
const debugExitStatus = 1

// qemu is a command line for QEMU on KVM with no device that args do not ask
// for.
func qemu(args ...string) ([]string, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("qemu-system-x86_64 is not installed")
	}
	return append([]string{path, "-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"}, args...), nil
}

// leanMicroVM is QEMU's smallest machine without the parts that a micro-guest
// does not need, and with the interrupt controller that starts fastest.
const leanMicroVM = "microvm,kernel-irqchip=split,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off,auto-kernel-cmdline=off"
