package tests

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
)

// resident is how much memory of a guest is in use on its host, in MiB.
func resident(t *testing.T, e *emulated, name string) int {
	t.Helper()
	var vm struct{ PID int }
	if err := json.Unmarshal([]byte(script(t, e, "cat /run/godwit/"+name+"/vm.json")), &vm); err != nil {
		t.Fatal(err)
	}
	out := script(t, e, fmt.Sprintf("grep RssShmem /proc/%d/status", vm.PID))
	fields := strings.Fields(out)
	if len(fields) != 3 {
		t.Fatalf("memory of guest %s: %q", name, out)
	}
	kib, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// awaitBalloon waits until a guest has given up so many MiB.
func awaitBalloon(t *testing.T, e *emulated, name string, mib uint64) {
	t.Helper()
	for end := time.Now().Add(bootTimeout); ; {
		var s balloon.Stats
		got := on(t, e, nil, "balloon", name, "--json")
		if err := json.Unmarshal([]byte(got.stdout), &s); err != nil {
			t.Fatalf("%v: %v", got, err)
		}
		if s.ActualMiB == mib {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("guest %s has given up %d MiB of %d", name, s.ActualMiB, mib)
		}
	}
}

// TestBalloon takes half of the memory of a guest that has used all of it, and
// gives it back: the host's memory falls and rises with it.
func TestBalloon(t *testing.T) {
	t.Parallel()
	e := emulatedHost(t)
	leave(t, e, "tight", "--memory", "512M", "--balloon", "0")
	fill := func() {
		script(t, e, "godwit exec tight -- sh -c 'dd if=/dev/zero of=/tmp/fill bs=1M count=180 2>/dev/null; sync'")
	}
	fill()
	full := resident(t, e, "tight")
	script(t, e, "godwit exec tight -- rm /tmp/fill")
	on(t, e, nil, "balloon", "tight", "256M").expect(t, 0, "")
	awaitBalloon(t, e, "tight", 256)
	if got := resident(t, e, "tight"); got > 256 || got > full-100 {
		t.Errorf("%d MiB are resident with 256 of 512 given up, %d before", got, full)
	}
	on(t, e, nil, "balloon", "tight", "0").expect(t, 0, "")
	awaitBalloon(t, e, "tight", 0)
	fill()
	if got := resident(t, e, "tight"); got < full-32 {
		t.Errorf("%d MiB are resident after it was given back and used, %d before", got, full)
	}
	if got := on(t, e, nil, "balloon", "tight", "1G"); got.status != 125 || !strings.Contains(got.stderr, "more than it has") {
		t.Errorf("%v, want an error", got)
	}
}
