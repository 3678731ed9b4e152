package kvm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	notKVM := filepath.Join(dir, "file")
	ok(t, os.WriteFile(notKVM, nil, 0o600))
	for _, c := range []struct {
		path, says string
		is         error
	}{
		{filepath.Join(dir, "absent"), "kvm_intel or kvm_amd", fs.ErrNotExist},
		{notKVM, "KVM_GET_API_VERSION", unix.ENOTTY},
		{dir, "", unix.EISDIR},
	} {
		s, err := Open(c.path)
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Open(%q): %v, want %v that says %q", c.path, err, c.is, c.says)
		}
	}
	for errno, says := range map[unix.Errno]string{
		unix.EACCES: "usermod -aG kvm", unix.ENODEV: "no driver", unix.ENOENT: "firmware", unix.EMFILE: "",
	} {
		if got := advice("/dev/kvm", errno); !strings.Contains(got, says) || says == "" && got != "" {
			t.Errorf("advice for %v: %q", errno, got)
		}
	}
}

func TestSystem(t *testing.T) {
	s := openSystem(t)
	v, err := s.APIVersion()
	ok(t, err)
	if v != 12 {
		t.Errorf("API version %d", v)
	}
	size, err := s.VCPUMmapSize()
	ok(t, err)
	if size < 4096 || size%4096 != 0 {
		t.Errorf("the shared area is %d bytes", size)
	}
	if n, err := s.CheckExtension(1 << 20); err != nil || n != 0 {
		t.Errorf("a capability that is not: %d, %v", n, err)
	}
	missing, err := s.MissingCapabilities()
	ok(t, err)
	for _, c := range missing {
		t.Logf("missing (%v): %s, for %s", c.Need, c.Name, c.Purpose)
		if c.Need == Required {
			t.Errorf("%s is required and missing", c.Name)
		}
	}
	cpuid, err := s.SupportedCPUID()
	ok(t, err)
	// Leaf 0x40000000 is KVM's own signature (KVM CPUID bits).
	found := false
	for _, e := range cpuid {
		found = found || e.Function == 0x40000000 && e.EBX == 0x4b4d564b
	}
	if !found {
		t.Errorf("no KVM signature among %d leaves", len(cpuid))
	}
	msrs, err := s.MSRIndexList()
	ok(t, err)
	if !slices.Contains(msrs, 0x10) { // IA32_TIME_STAMP_COUNTER
		t.Errorf("no TSC among %d MSRs", len(msrs))
	}
	features, err := s.MSRFeatureIndexList()
	ok(t, err)
	entries := entriesFor(features)
	ok(t, s.GetMSRs(entries))

	ok(t, s.Close())
	ok(t, s.Close())
	if _, err := s.APIVersion(); !errors.Is(err, unix.EBADF) {
		t.Errorf("after Close: %v", err)
	}
}

func entriesFor(indices []uint32) []MSREntry {
	entries := make([]MSREntry, len(indices))
	for i, index := range indices {
		entries[i].Index = index
	}
	return entries
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		KVM_SET_SREGS.String():              "KVM_SET_SREGS",
		Request(0x1234).String():            "ioctl 0x1234",
		KVM_CAP_SPLIT_IRQCHIP.String():      "KVM_CAP_SPLIT_IRQCHIP",
		Capability(9999).String():           "KVM capability 9999",
		KVM_EXIT_IOAPIC_EOI.String():        "KVM_EXIT_IOAPIC_EOI",
		ExitReason(15).String():             "KVM exit 15",
		ExitReason(1 << 30).String():        "KVM exit 1073741824",
		failed(KVM_RUN, unix.EBUSY).Error(): "kvm: KVM_RUN: device or resource busy",
		Migration.String():                  "migration",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	numbers, caps := map[Request]bool{}, map[Capability]bool{}
	for _, r := range Requests() {
		if numbers[r] {
			t.Errorf("%v twice", r)
		}
		numbers[r] = true
	}
	for _, c := range Capabilities() {
		if caps[c.Capability] || c.Purpose == "" || c.Name != c.Capability.String() {
			t.Errorf("capability %+v", c)
		}
		caps[c.Capability] = true
	}
}

func TestVMErrors(t *testing.T) {
	_, vm := newTestVM(t)
	err := vm.SetUserMemoryRegion(0, 0, 0x1001, make([]byte, 4096))
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "KVM_SET_USER_MEMORY_REGION: invalid argument (slot 0: 4096 bytes at guest address 0x1001") {
		t.Errorf("unaligned memory: %v", err)
	}
	if err := vm.EnableCap(KVM_CAP_SPLIT_IRQCHIP, 1, 2, 3, 4, 5); err == nil {
		t.Error("five arguments")
	}
	if err := vm.EnableCap(KVM_CAP_IRQCHIP); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "KVM_CAP_IRQCHIP") {
		t.Errorf("a capability that cannot be enabled: %v", err)
	}
	ok(t, vm.SetIdentityMapAddr(0xfeffc000))
	ok(t, vm.EnableX2APIC())
	splitIRQChip(vm)
	cpu, err := vm.CreateVCPU(5)
	ok(t, err)
	if cpu.ID() != 5 {
		t.Errorf("ID %d", cpu.ID())
	}
	if _, err := vm.CreateVCPU(5); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same vCPU twice: %v", err)
	}
	ok(t, cpu.Close())
	ok(t, cpu.Close())
	if err := cpu.Run(); err != unix.EBADF {
		t.Errorf("Run after Close: %v", err)
	}
}
