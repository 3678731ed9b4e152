// Package doctor finds out what a host can do for virtual machines and says so
// in plain words, with what to do about each thing that is missing.
package doctor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/kvm"
	"golang.org/x/sys/unix"
)

// Verdict is how a finding matters.
type Verdict string

const (
	// OK means that all is well.
	OK Verdict = "ok"
	// Limited means that something works less well, or that a feature is
	// missing.
	Limited Verdict = "limited"
	// Missing means that Linux guests cannot boot on this host.
	Missing Verdict = "missing"
)

// Finding is one thing that was looked at.
type Finding struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	// Found says what is there.
	Found string `json:"found"`
	// Advice says what to do, empty if nothing.
	Advice string `json:"advice,omitempty"`
}

// Host is where to look; the zero value is this host.
type Host struct {
	// KVM is the path of the KVM device, /dev/kvm if empty.
	KVM string
	// Root is put before the paths of the other files, for tests.
	Root string
}

// Examine looks at everything. It takes a few milliseconds and leaves nothing
// behind.
func Examine(h Host) []Finding {
	findings := h.kvm()
	return append(findings,
		h.hugePages(),
		h.transparentHugePages(),
		h.tun(),
		userfaultfd(),
		guestKernel(),
		emulator(),
	)
}

// CanBoot tells whether Linux guests boot on a host with these findings.
func CanBoot(findings []Finding) bool {
	for _, f := range findings {
		if f.Verdict == Missing {
			return false
		}
	}
	return true
}

const labAdvice = "boot in an emulated host meanwhile: godwit-lab run -- boot ..."

func (h Host) kvm() []Finding {
	sys, err := kvm.Open(h.KVM)
	if err != nil {
		return []Finding{{"KVM", Missing, err.Error(), labAdvice}}
	}
	defer sys.Close()
	return []Finding{
		{Name: "KVM", Verdict: OK, Found: "there, and you may use it"},
		virtualization(sys),
		capabilities(sys),
	}
}

// virtualization tells hardware from software by speed: it is what a guest
// notices, whatever the modules are called.
func virtualization(sys *kvm.System) Finding {
	f := Finding{Name: "virtualization"}
	ns, err := kvm.ProbeRing0(sys)
	switch {
	case err != nil:
		f.Verdict, f.Found, f.Advice = Missing, fmt.Sprintf("a test guest did not run: %v", err), labAdvice
	case ns >= kvm.SoftwareNsPerInsn:
		f.Verdict = Missing
		f.Found = fmt.Sprintf("software: a guest's kernel is emulated at %.0f ns an instruction, on which Linux does not boot", ns)
		f.Advice = "use a machine with VT-x or AMD-V (in a cloud: one with nested virtualization), or " + labAdvice
	default:
		f.Verdict, f.Found = OK, fmt.Sprintf("hardware: a guest's kernel runs at %.1f ns an instruction", ns)
	}
	return f
}

func capabilities(sys *kvm.System) Finding {
	f := Finding{Name: "KVM capabilities", Verdict: OK, Found: "all that godwit uses"}
	missing, err := sys.MissingCapabilities()
	if err != nil {
		return Finding{f.Name, Missing, err.Error(), ""}
	}
	var names []string
	for _, c := range missing {
		switch c.Need {
		case kvm.Required:
			f.Verdict = Missing
		case kvm.Migration, kvm.Useful:
			if f.Verdict == OK {
				f.Verdict = Limited
			}
		}
		names = append(names, fmt.Sprintf("%v (%v: %s)", c.Capability, c.Need, c.Purpose))
	}
	if len(names) > 0 {
		f.Found = "missing " + strings.Join(names, ", ")
		if f.Verdict != OK {
			f.Advice = "a newer host kernel may have them"
		}
	}
	return f
}

func (h Host) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/", h.Root, path))
	return strings.TrimSpace(string(b)), err
}

func (h Host) hugePages() Finding {
	const pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	f := Finding{Name: "huge page pool", Verdict: Limited, Advice: "for boot --hugepages reserve some: echo 512 > /proc/sys/vm/nr_hugepages"}
	free, err := h.read(pool + "free_hugepages")
	n, parseErr := strconv.Atoi(free)
	switch {
	case errors.Join(err, parseErr) != nil:
		f.Found, f.Advice = "the host kernel has no pool of 2 MiB pages", "leave out boot --hugepages"
	case n == 0:
		f.Found = "no 2 MiB pages are reserved"
	default:
		f.Verdict, f.Found, f.Advice = OK, fmt.Sprintf("%d MiB free", n*2), ""
	}
	return f
}

func (h Host) transparentHugePages() Finding {
	f := Finding{Name: "transparent huge pages", Verdict: OK}
	const path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
	text, err := h.read(path)
	if err != nil {
		f.Verdict, f.Found = Limited, "the host kernel has none for shared memory"
		return f
	}
	f.Found = "for shared memory: " + text
	if strings.Contains(text, "[never]") || strings.Contains(text, "[deny]") {
		f.Verdict = Limited
		f.Advice = "guests touch memory faster with: echo advise > " + path
	}
	return f
}

func (h Host) tun() Finding {
	f := Finding{Name: "tun device", Verdict: OK, Found: "there, and you may use it"}
	fd, err := unix.Open(filepath.Join("/", h.Root, "/dev/net/tun"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Verdict, f.Found = Limited, fmt.Sprintf("/dev/net/tun: %v", err)
		f.Advice = "for guests on a tap device load the module tun and get permission for /dev/net/tun"
		return f
	}
	_ = unix.Close(fd)
	return f
}

// userfaultfd is what post-copy migration and quick restores build on.
func userfaultfd() Finding {
	f := Finding{Name: "userfaultfd", Verdict: OK, Found: "there, and you may use it"}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno == 0 {
		_ = unix.Close(int(fd))
		return f
	}
	f.Verdict, f.Found = Limited, errno.Error()
	f.Advice = "a host kernel with CONFIG_USERFAULTFD is needed"
	if errno == unix.EPERM {
		f.Advice = "run as root, or: echo 1 > /proc/sys/vm/unprivileged_userfaultfd"
	}
	return f
}

func guestKernel() Finding {
	f := Finding{Name: "guest kernel", Verdict: OK}
	k, err := guest.CachedKernel()
	if err != nil {
		f.Verdict, f.Found, f.Advice = Limited, "none is cached", "godwit guest kernel fetches one, or give boot --kernel FILE"
		return f
	}
	f.Found = k.Version
	return f
}

func emulator() Finding {
	f := Finding{Name: "emulated hosts", Verdict: OK}
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		f.Verdict, f.Found, f.Advice = Limited, "no qemu-system-x86_64", "godwit-lab needs it: apt-get install qemu-system-x86"
		return f
	}
	f.Found = path
	return f
}
