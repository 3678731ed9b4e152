package kvm

// GetClock is kvmclock now, and where the host's clock is its TSC, the TSC and
// wall time it was read at (KVM API §4.29). Check ClockData.Flags.
func (m *VM) GetClock() (ClockData, error) { return get[ClockData](m.fd, KVM_GET_CLOCK) }

// SetClock sets kvmclock (KVM API §4.30). With KVM_CLOCK_REALTIME in Flags it
// is advanced by the wall time that passed since Realtime. KVM ignores the
// other flags of GetClock since Linux 5.16, and refuses any flag before.
func (m *VM) SetClock(c ClockData) error { return set(m.fd, KVM_SET_CLOCK, c) }

// SetTSCKHz sets the TSC frequency in kHz that new vCPUs start with
// (KVM_CAP_VM_TSC_CONTROL, KVM API §4.55; ENOTTY before Linux 5.18). 0 is what
// the host's kernel has measured its own TSC to be by now.
func (m *VM) SetTSCKHz(khz uint32) error { return setTSCKHz(m.fd, khz) }

// GetTSCKHz is the TSC frequency in kHz that new vCPUs start with.
func (m *VM) GetTSCKHz() (uint32, error) { return getTSCKHz(m.fd) }

// SetTSCKHz sets the guest's TSC frequency in kHz. Without KVM_CAP_TSC_CONTROL
// only frequencies within 250 ppm of the host's are taken (KVM API §4.55).
func (v *VCPU) SetTSCKHz(khz uint32) error { return setTSCKHz(v.fd, khz) }

// GetTSCKHz is the guest's TSC frequency in kHz (KVM API §4.56).
func (v *VCPU) GetTSCKHz() (uint32, error) { return getTSCKHz(v.fd) }

func setTSCKHz(fd int, khz uint32) error {
	_, err := call(fd, KVM_SET_TSC_KHZ, uintptr(khz))
	return err
}

func getTSCKHz(fd int) (uint32, error) {
	v, err := call(fd, KVM_GET_TSC_KHZ, 0)
	return uint32(v), err
}

// KVMClockCtrl tells the guest that it was paused, so that its watchdogs
// forgive the gap (KVM API §4.70). EINVAL says that the guest does not use
// kvmclock.
func (v *VCPU) KVMClockCtrl() error {
	_, err := call(v.fd, KVM_KVMCLOCK_CTRL, 0)
	return err
}

const (
	kvmVCPUTSCCtrl   = 0 // group
	kvmVCPUTSCOffset = 0 // attribute
)

// HasTSCOffset tells whether GetTSCOffset and SetTSCOffset work: nil is yes,
// ENXIO no (KVM API §4.81).
func (v *VCPU) HasTSCOffset() error {
	return attribute(v.fd, KVM_HAS_DEVICE_ATTR, kvmVCPUTSCCtrl, kvmVCPUTSCOffset, nil)
}

// GetTSCOffset is what KVM adds to the host's TSC to get the guest's (KVM
// device API, vcpu.rst §4.1). It is signed in two's complement.
func (v *VCPU) GetTSCOffset() (uint64, error) {
	offset := new(uint64)
	err := attribute(v.fd, KVM_GET_DEVICE_ATTR, kvmVCPUTSCCtrl, kvmVCPUTSCOffset, offset)
	return *offset, err
}

// SetTSCOffset sets what KVM adds to the host's TSC to get the guest's.
func (v *VCPU) SetTSCOffset(offset uint64) error {
	return attribute(v.fd, KVM_SET_DEVICE_ATTR, kvmVCPUTSCCtrl, kvmVCPUTSCOffset, &offset)
}
