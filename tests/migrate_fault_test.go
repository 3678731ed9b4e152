package tests

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// cutTime is how long a link is down.
const cutTime = 8 * time.Second

// labFault is something that goes wrong while a Linux guest moves between two hosts: a
// sample of what internal/vmm tries with every message.
type labFault struct {
	name string
	// at is what godwit migrate has said by then.
	at string
	do func(there *site, receiver *program)
	// stays says that the guest must not arrive; else either is right.
	stays bool
}

func labFaults() []labFault {
	kill := func(_ *site, receiver *program) {
		receiver.kill()
		<-receiver.ended
	}
	cut := func(there *site, _ *program) {
		there.t.Helper()
		script(there.t, there.e, "ip link set eth0 down")
		time.Sleep(cutTime) // that is the fault
		script(there.t, there.e, "ip link set eth0 up")
	}
	return []labFault{
		{name: "the receiver is killed while memory moves", at: `"phase":"copy"`, do: kill, stays: true},
		{name: "the link is down while memory moves", at: `"phase":"copy"`, do: cut},
		{name: "the link is down at the handover", at: `"phase":"stop"`, do: cut},
	}
}

// migrateWith moves the guest with a fault, and returns where it is then, and the other
// host: it runs in one place, and has noticed nothing.
func migrateWith(t *testing.T, f labFault, here, there *site) (at, other *site) {
	t.Helper()
	address := there.address + ":7000"
	receiver := there.runs("waiting for guests", nil, "godwit", "receive", "--listen", address, "--insecure",
		"--disk", "0="+sharedDisk, "--tap", "net0=bridge=br0")
	migrate := here.runs(f.at, nil, "godwit", "migrate", migrating, address, "--json", "--auto-converge", "--downtime", "1s")
	f.do(there, receiver)
	at, other = awaitOwner(t, here, there)
	select {
	case <-migrate.ended:
	case <-time.After(bootTimeout):
		t.Fatalf("%s: godwit migrate goes on: %s", f.name, tailOf(migrate))
	}
	switch {
	case at == there && f.stays:
		t.Errorf("%s: the guest is on the wrong host: %s", f.name, tailOf(migrate))
	case at == here && migrate.status == 0, at == there && migrate.status != 0:
		t.Errorf("%s: status %d, and the guest is on host %s: %s", f.name, migrate.status, at.address, tailOf(migrate))
	}
	t.Logf("%s: the guest is on host %s: %s", f.name, at.address, tailOf(migrate))
	if at == here {
		receiver.kill()
		<-receiver.ended
	}
	on(t, at.e, nil, "wait", migrating).expect(t, 0, "")
	checkSound(t, at.in)
	return at, other
}

// awaitOwner waits until the guest runs on one host and the other does not know it any
// more. It never runs on both.
func awaitOwner(t *testing.T, hosts ...*site) (at, other *site) {
	t.Helper()
	var lists []string
	for end := time.Now().Add(2 * bootTimeout); time.Now().Before(end); {
		var running []*site
		known := 0
		lists = nil
		for _, s := range hosts {
			var guests []struct{ Name, State, Moving string }
			list := script(t, s.e, "godwit ps --json")
			if err := json.Unmarshal([]byte(list), &guests); err != nil {
				t.Fatalf("%v: %s", err, list)
			}
			lists = append(lists, list)
			for _, g := range guests {
				if g.Name != migrating {
					continue
				}
				known++
				if g.State == "running" && g.Moving == "" {
					running = append(running, s)
				}
			}
		}
		if len(running) == 1 && known == 1 {
			for _, s := range hosts {
				if s != running[0] {
					return running[0], s
				}
			}
		}
		if len(running) > 1 {
			t.Fatalf("the guest runs on both hosts: %v", lists)
		}
	}
	t.Fatalf("the guest runs nowhere, or is moving for ever: %v", lists)
	return nil, nil
}

// tailOf is the last line that a program has said.
func tailOf(p *program) string {
	lines := strings.Split(strings.TrimSpace(p.out.text()), "\n")
	return lines[len(lines)-1]
}
