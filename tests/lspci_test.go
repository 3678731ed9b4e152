package tests

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// virtioDrivers are the drivers of a stock kernel for the devices that a guest can
// have beside a command, by their PCI device IDs (virtio 1.2, 4.1.2 and 5).
var virtioDrivers = map[string]string{
	"1af4:1041": "virtio_net",
	"1af4:1042": "virtio_blk",
	"1af4:1044": "virtio_rng",
	"1af4:1045": "virtio_balloon",
	"1af4:1053": "vmw_vsock_virtio_transport",
}

// TestLspci looks at a guest with one device of each kind by its own tools: all of
// them have their driver and use MSI-X, and the kernel has no complaints.
func TestLspci(t *testing.T) {
	t.Parallel()
	r := withRoot(t, func(t *testing.T) string {
		return debianImage(t, 192<<20, "bash", "coreutils", "dash", "pciutils")
	})
	const mark = "=====\n"
	out := r.boot(`lspci -vvn 2>/dev/null; echo =====
		for d in /sys/bus/virtio/devices/*; do basename "$(readlink $d/driver)" none; done; echo =====
		cat /proc/interrupts; echo =====
		dd if=/dev/kmsg iflag=nonblock bs=8k 2>/dev/null; true`,
		"--root", r.image, "--net", "user", "--balloon", "0")
	parts := strings.Split(out, mark)
	if len(parts) != 4 {
		t.Fatalf("the guest said:\n%s", out)
	}
	checkFunctions(t, parts[0])
	checkInterrupts(t, parts[2])
	checkLog(t, parts[3])

	drivers := strings.Fields(parts[1])
	slices.Sort(drivers)
	if want := slices.Sorted(maps.Values(virtioDrivers)); !slices.Equal(drivers, want) {
		t.Errorf("devices have the drivers %q, want %q", drivers, want)
	}
}

// checkFunctions looks at what "lspci -vvn" says.
func checkFunctions(t *testing.T, lspci string) {
	t.Helper()
	seen := make(map[string]bool)
	for function := range strings.SplitSeq(strings.TrimSpace(lspci), "\n\n") {
		id := regexp.MustCompile(`1af4:10[0-9a-f]{2}`).FindString(function)
		if id == "" {
			continue
		}
		seen[id] = true
		for _, want := range []string{"MSI-X: Enable+", "Masked-", "BusMaster+", "DisINTx+", "Kernel driver in use: virtio-pci"} {
			if !strings.Contains(function, want) {
				t.Errorf("no %q in:\n%s", want, function)
			}
		}
		for _, bad := range []string{"<MAbort+", "<TAbort+", "unassigned", "disabled"} {
			if strings.Contains(function, bad) {
				t.Errorf("%q in:\n%s", bad, function)
			}
		}
	}
	for id, driver := range virtioDrivers {
		if !seen[id] {
			t.Errorf("lspci has no %s, for %s", id, driver)
		}
	}
}

// checkInterrupts looks at /proc/interrupts: each virtio device has vectors of its
// own, and none a shared pin.
func checkInterrupts(t *testing.T, table string) {
	t.Helper()
	devices := make(map[string]bool)
	for line := range strings.Lines(table) {
		device := regexp.MustCompile(`virtio\d+`).FindString(line)
		if device == "" {
			continue
		}
		devices[device] = true
		if !strings.Contains(line, "PCI-MSI") || !strings.Contains(line, "edge") {
			t.Errorf("not by MSI-X: %s", line)
		}
	}
	if len(devices) != len(virtioDrivers) {
		t.Errorf("%d virtio devices have interrupts, want %d:\n%s", len(devices), len(virtioDrivers), table)
	}
}

// checkLog looks at the records of /dev/kmsg (Linux Documentation/ABI/testing/dev-kmsg).
func checkLog(t *testing.T, log string) {
	t.Helper()
	const warning = 4 // and what is worse is below
	devices := regexp.MustCompile(`(?i)virtio|pci|msi|vda|hvc|balloon|vsock|eth0|interrupt|irq`)
	trouble := regexp.MustCompile(`WARNING: CPU|BUG:|Call Trace|I/O error|nobody cared`)
	records := 0
	for line := range strings.Lines(log) {
		prefix, text, ok := strings.Cut(line, ";")
		priority, err := strconv.Atoi(strings.Split(prefix, ",")[0])
		if !ok || err != nil {
			continue // what belongs to the record before
		}
		records++
		if priority&7 <= warning && (devices.MatchString(text) || trouble.MatchString(text)) {
			t.Errorf("the guest's kernel complains: %s", text)
		}
	}
	if records < 50 {
		t.Errorf("%d records in the kernel's log", records)
	}
}
