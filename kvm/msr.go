package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxMSRBatch is how many MSRs one ioctl takes: KVM refuses 256 (MAX_IO_MSRS).
const maxMSRBatch = 255

// MSRError is the failure of one MSR in a batch. Those before it were read or
// written, it and those after it were not.
type MSRError struct {
	Request  Request // KVM_GET_MSRS or KVM_SET_MSRS
	Entry    MSREntry
	Position int // of the entry in the batch, from 0
	Total    int // entries in the batch
}

// Error names the MSR.
func (e *MSRError) Error() string {
	if e.Request == KVM_SET_MSRS {
		return fmt.Sprintf("kvm: %v: MSR %#x refused value %#x (entry %d of %d)",
			e.Request, e.Entry.Index, e.Entry.Data, e.Position+1, e.Total)
	}
	return fmt.Sprintf("kvm: %v: MSR %#x cannot be read (entry %d of %d)",
		e.Request, e.Entry.Index, e.Position+1, e.Total)
}

// GetMSRs fills in the Data of entries, whose Index the caller has set
// (KVM API §4.18). An MSR that cannot be read makes it stop with an *MSRError.
func (v *VCPU) GetMSRs(entries []MSREntry) error {
	return passMSRs(v.fd, KVM_GET_MSRS, entries)
}

// SetMSRs writes the MSRs in the order given (KVM API §4.19). One that KVM
// refuses makes it stop with an *MSRError.
func (v *VCPU) SetMSRs(entries []MSREntry) error {
	return passMSRs(v.fd, KVM_SET_MSRS, entries)
}

// GetMSRs fills in the host's values of feature MSRs (see
// MSRFeatureIndexList), with KVM_CAP_GET_MSR_FEATURES.
func (s *System) GetMSRs(entries []MSREntry) error {
	return passMSRs(s.fd, KVM_GET_MSRS, entries)
}

func passMSRs(fd int, req Request, entries []MSREntry) error {
	h, e := flexible[msrsHeader, MSREntry](min(len(entries), maxMSRBatch))
	for done := 0; done < len(entries); {
		n := copy(e, entries[done:])
		h.nmsrs = uint32(n)
		// The kernel returns how many it processed, and that is less than n
		// with no error when it stops at an MSR that it does not accept.
		processed, err := pass(fd, req, h)
		if err != nil {
			return err
		}
		copy(entries[done:], e[:min(int(processed), n)])
		done += int(processed)
		if int(processed) < n {
			return &MSRError{Request: req, Entry: entries[done], Position: done, Total: len(entries)}
		}
	}
	return nil
}

// MSRIndexList is the MSRs that KVM saves and restores for a guest
// (KVM API §4.3). KVM may support more than it lists.
func (s *System) MSRIndexList() ([]uint32, error) {
	return msrList(s.fd, KVM_GET_MSR_INDEX_LIST)
}

// MSRFeatureIndexList is the MSRs that describe the host's features
// (KVM API §4.3), for System.GetMSRs.
func (s *System) MSRFeatureIndexList() ([]uint32, error) {
	return msrList(s.fd, KVM_GET_MSR_FEATURE_INDEX_LIST)
}

func msrList(fd int, req Request) ([]uint32, error) {
	// Asked with room for none, the kernel says how many there are.
	h, _ := flexible[msrListHeader, uint32](0)
	if _, err := pass(fd, req, h); err != nil && !errors.Is(err, unix.E2BIG) {
		return nil, err
	}
	n := h.nmsrs
	h, list := flexible[msrListHeader, uint32](int(n))
	h.nmsrs = n
	if _, err := pass(fd, req, h); err != nil {
		return nil, err
	}
	return list[:min(h.nmsrs, n)], nil
}
