package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// DevicePath is where KVM usually is.
const DevicePath = "/dev/kvm"

// apiVersion is the only version of the KVM API there is (KVM API §4.1).
const apiVersion = 12

// System is an open /dev/kvm.
type System struct {
	fd       int
	mmapSize int
	// supported asks for the supported CPUID, the first time.
	supported func() ([]CPUIDEntry2, error)
	ask       sync.Once
	asking    sync.WaitGroup
}

// Open opens KVM at path; "" means DevicePath. The error says what to do
// where KVM is absent (it is an fs.ErrNotExist) or not permitted (it is an
// fs.ErrPermission).
func Open(path string) (*System, error) {
	if path == "" {
		path = DevicePath
	}
	fd, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("kvm: open %s: %w%s", path, err, advice(path, err))
	}
	s := &System{fd: fd}
	s.supported = sync.OnceValues(func() ([]CPUIDEntry2, error) { return getCPUID(s.fd, KVM_GET_SUPPORTED_CPUID) })
	version, err := s.APIVersion()
	if err == nil && version != apiVersion {
		err = fmt.Errorf("kvm: %s speaks API version %d, this program %d", path, version, apiVersion)
	}
	if err == nil {
		s.mmapSize, err = s.VCPUMmapSize()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// open retries, because a signal can interrupt even this.
func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func advice(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ": this host offers no KVM; load kvm_intel or kvm_amd, and if that fails turn on VT-x or AMD-V in the firmware (in a VM: nested virtualization on its host)"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ": the device node is there but no driver; load kvm_intel or kvm_amd"
	case errors.Is(err, fs.ErrPermission):
		return ": join the group that owns " + path + " (usermod -aG kvm USER, then log in again), or run as root"
	}
	return ""
}

// Close closes the handle. VMs made from it live on.
func (s *System) Close() error {
	s.asking.Wait()
	return closeFD(&s.fd)
}

// closeFD closes *fd once and makes later use of it fail with EBADF.
func closeFD(fd *int) error {
	if *fd < 0 {
		return nil
	}
	err := unix.Close(*fd)
	*fd = -1
	if err != nil {
		return fmt.Errorf("kvm: close: %w", err)
	}
	return nil
}

// APIVersion is the version of the API, 12 ever since Linux 2.6.22 (KVM API §4.1).
func (s *System) APIVersion() (int, error) {
	v, err := call(s.fd, KVM_GET_API_VERSION, 0)
	return int(v), err
}

// CheckExtension is 0 for a capability that is absent, and 1 or a number that
// the capability gives meaning to where it is present (KVM API §4.4).
// VM.CheckExtension is the more exact question.
func (s *System) CheckExtension(c Capability) (int, error) {
	return checkExtension(s.fd, c)
}

func checkExtension(fd int, c Capability) (int, error) {
	v, err := call(fd, KVM_CHECK_EXTENSION, uintptr(c))
	if err != nil {
		return 0, fmt.Errorf("%w (%v)", err, c)
	}
	return int(v), nil
}

// VCPUMmapSize is the size in bytes of the area that a vCPU shares with user
// space (KVM API §4.5).
func (s *System) VCPUMmapSize() (int, error) {
	v, err := call(s.fd, KVM_GET_VCPU_MMAP_SIZE, 0)
	return int(v), err
}

// CreateVM makes a VM without memory and processors (KVM API §4.2).
func (s *System) CreateVM() (*VM, error) {
	for {
		fd, err := call(s.fd, KVM_CREATE_VM, 0)
		// The call starts kernel threads and sleeps for it; a signal, such
		// as the ones that Go preempts goroutines with, ends that early.
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		unix.CloseOnExec(int(fd))
		return newVM(int(fd), s.mmapSize)
	}
}
