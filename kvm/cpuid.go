package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxCPUIDEntries bounds what is asked for. The kernel's own limit,
// KVM_MAX_CPUID_ENTRIES, is 256.
const maxCPUIDEntries = 4096

// SupportedCPUID is what host and KVM together can show a guest
// (KVM API §4.46). Leaves that depend on the vCPU (APIC IDs, topology) are the
// caller's to fill in, in a copy. KVM is asked once: while it is open it cannot be
// replaced by another one.
func (s *System) SupportedCPUID() ([]CPUIDEntry2, error) { return s.supported() }

// AskCPUID begins to ask KVM for SupportedCPUID, in the background: each leaf traps where
// this host is itself a guest, so that it takes as long as making a VM.
func (s *System) AskCPUID() {
	s.ask.Do(func() {
		s.asking.Go(func() { _, _ = s.supported() }) // who needs it gets the error
	})
}

// GetCPUID2 is what the vCPU shows its guest, with the bits that follow other
// state (OSXSAVE, APIC enabled) up to date.
func (v *VCPU) GetCPUID2() ([]CPUIDEntry2, error) {
	return getCPUID(v.fd, KVM_GET_CPUID2)
}

// SetCPUID2 sets what the vCPU shows its guest (KVM API §4.20). It
// must come before the first Run: KVM refuses a change after that.
func (v *VCPU) SetCPUID2(entries []CPUIDEntry2) error {
	h, e := flexible[cpuidHeader, CPUIDEntry2](len(entries))
	h.nent = uint32(len(entries))
	copy(e, entries)
	_, err := pass(v.fd, KVM_SET_CPUID2, h)
	return err
}

// noLeaf marks entries that the kernel left alone: KVM_GET_CPUID2 of older
// kernels, Linux 6.1 among them, does not say how many it filled in. No
// processor has a leaf of this number.
const noLeaf = ^uint32(0)

func getCPUID(fd int, req Request) ([]CPUIDEntry2, error) {
	for n := 256; n <= maxCPUIDEntries; n *= 2 {
		h, e := flexible[cpuidHeader, CPUIDEntry2](n)
		h.nent = uint32(n)
		for i := range e {
			e[i].Function = noLeaf
		}
		_, err := pass(fd, req, h)
		if errors.Is(err, unix.E2BIG) {
			continue
		}
		if err != nil {
			return nil, err
		}
		e = e[:min(int(h.nent), n)]
		for len(e) > 0 && e[len(e)-1].Function == noLeaf {
			e = e[:len(e)-1]
		}
		return e, nil
	}
	return nil, fmt.Errorf("kvm: %v: more than %d entries", req, maxCPUIDEntries)
}
