package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/godwit-vmm/godwit/kvm"
	"golang.org/x/sys/unix"
)

// Host is the machine that the figures are from. What could not be found out
// is empty or says so.
type Host struct {
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"` // that this process may use
	MemoryMiB uint64 `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	// KVM says what virtualizes: "hardware", "software" or why there is
	// none.
	KVM string `json:"kvm"`
	// Load is how many threads wanted to run in the minute before.
	Load float64 `json:"load"`
}

// busy tells whether others take enough of the machine to spoil figures.
func (h *Host) busy() bool { return h.Load > 0.5*float64(h.CPUs) }

func describeHost() Host {
	h := Host{CPU: cpuModel(), CPUs: runtime.NumCPU(), Go: runtime.Version(), KVM: kvmKind()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		const loadUnit = 1 << 16 // sysinfo(2): SI_LOAD_SHIFT
		h.MemoryMiB = info.Totalram * uint64(info.Unit) >> 20
		h.Load = float64(info.Loads[0]) / loadUnit
	}
	return h
}

func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func kvmKind() string {
	sys, err := kvm.Open("")
	if err != nil {
		return err.Error()
	}
	defer sys.Close()
	ns, err := kvm.ProbeRing0(sys)
	if err != nil {
		return err.Error()
	}
	kind := "hardware"
	if ns >= kvm.SoftwareNsPerInsn {
		kind = "software"
	}
	return fmt.Sprintf("%s (ring 0: %s ns an instruction)", kind, strconv.FormatFloat(ns, 'g', 2, 64))
}
