package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/disk"
	"github.com/godwit-vmm/godwit/internal/lab"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

const (
	// migrating is the guest's name, and its address on the hosts' network.
	migrating        = "web"
	migratingAddress = "10.77.0.100"
	// sharedDisk is the disk that both hosts have.
	sharedDisk = "/dev/vda"
	echopeer   = "/tmp/echopeer"
	// moves is how often the guest moves, there and back being two, unless
	// GODWIT_TEST_MOVES says otherwise.
	moves = 2
)

// site is a host that guests come to, with its network cards and guests on one bridge.
type site struct {
	t *testing.T
	e *emulated
	// address is the host's.
	address string
}

// sites are both emulated hosts.
func sites(t *testing.T) [2]*site {
	t.Helper()
	var all [2]*site
	for i := range all {
		e := emulatedHost(t)
		s := &site{t: t, e: e, address: lab.Address(e.number).Addr().String()}
		s.bridge()
		all[i] = s
	}
	return all
}

// bridge puts the host's card on a bridge, with the host's address, until the test's end.
func (s *site) bridge() {
	s.t.Helper()
	mask := s.address + "/24"
	script(s.t, s.e, "ip link add br0 type bridge && ip link set eth0 master br0 && ip addr del "+mask+" dev eth0 && "+
		"ip addr add "+mask+" dev br0 && ip link set br0 up")
	s.t.Cleanup(func() {
		inLab(s.t, s.e, nil, "ip link set eth0 nomaster; ip link del br0; ip addr add "+mask+" dev eth0")
	})
}

// runs runs a program until the test's end, and returns when it has said something.
func (s *site) runs(said string, stdin io.Reader, args ...string) *program {
	s.t.Helper()
	p := &program{out: newAwaiter(said), ended: make(chan struct{})}
	process, err := s.e.host.Start(lab.Cmd{Args: args, Stdin: stdin, Stdout: p.out, Stderr: p.out})
	if err != nil {
		s.t.Fatal(err)
	}
	p.kill = func() { _ = process.Kill() }
	go func() {
		defer close(p.ended)
		exit, err := process.Wait()
		p.status, p.err = exit.Status(), err
	}()
	s.t.Cleanup(func() {
		p.kill()
		<-p.ended
	})
	select {
	case <-p.out.done:
	case <-p.ended:
		s.t.Fatalf("%v ended: %s", args, p.out.text())
	case <-time.After(bootTimeout):
		s.t.Fatalf("%v has not said %q after %v: %s", args, said, bootTimeout, p.out.text())
	}
	return p
}

// program is one that runs on a host.
type program struct {
	out    *awaiter
	kill   func()
	ended  chan struct{}
	status int
	err    error
}

// in runs a shell script in the guest on this host, which has to succeed.
func (s *site) in(text string) string {
	s.t.Helper()
	r := on(s.t, s.e, nil, "exec", migrating, "--", "sh", "-c", text)
	if r.status != 0 {
		s.t.Fatal(r)
	}
	return r.stdout
}

// TestMigration moves a guest of two processors with a disk and a network card between
// two hosts and back, under load: it checks its memory, timers, TCP and disk itself, and
// a program on the second host keeps one connection to it all the time.
func TestMigration(t *testing.T) {
	t.Parallel()
	hosts := sites(t)
	here, there := hosts[0], hosts[1]
	image := filepath.Join(t.TempDir(), "empty-32M.img")
	if err := disk.Build(t.Context(), t.TempDir(), image, disk.Options{Size: 32 << 20}); err != nil {
		testenv.Lacks(t, "%v", err)
	}
	placed := placeInLab(t, here.e, image)
	script(t, here.e, "dd if="+placed+" of="+sharedDisk+" bs=1048576 && sync && rm "+placed)

	on(t, here.e, nil, "boot", "--name", migrating, "--memory", "192M", "--cpus", "2", "--disk", sharedDisk+",direct",
		"--net", "tap,bridge=br0", "--cmdline", "godwit.ip="+migratingAddress+"/24", "--wait").expect(t, 0, migrating+"\n")
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		for _, s := range hosts {
			inLab(t, s.e, nil, "godwit kill "+migrating+" 2>/dev/null; rm -rf /var/lib/godwit; true")
		}
	})
	on(t, here.e, nil, "cp", testProgram(t, here.e, "selfcheck"), migrating+":"+selfcheck).expect(t, 0, "")
	on(t, here.e, nil, "cp", testProgram(t, here.e, "echopeer"), migrating+":"+echopeer).expect(t, 0, "")
	here.in("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && " + selfcheck + " start /mnt && " +
		echopeer + " leave :6000")

	testProgram(t, there.e, "echopeer")
	stdin, hangUp := io.Pipe()
	client := there.runs("connected", stdin, echopeer, "count", migratingAddress+":6000")

	n := moves
	if text := os.Getenv("GODWIT_TEST_MOVES"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		address := there.address + ":7000"
		receiver := there.runs("waiting for guests", nil, "godwit", "receive", "--listen", address, "--insecure",
			"--disk", "0="+sharedDisk, "--tap", "net0=bridge=br0")
		r := on(t, here.e, nil, "migrate", migrating, address, "--auto-converge", "--downtime", "1s")
		if r.status != 0 {
			t.Fatalf("%v\nthe receiver: %s", r, receiver.out.text())
		}
		t.Log(strings.TrimSpace(r.stdout))
		here, there = there, here
		on(t, here.e, nil, "wait", migrating).expect(t, 0, "")
		checkSound(t, here.in)
		if list := script(t, there.e, "godwit ps"); strings.Contains(list, migrating) {
			t.Fatalf("the guest is still where it was:\n%s", list)
		}
	}
	for _, f := range labFaults() {
		here, there = migrateWith(t, f, here, there)
	}
	if err := hangUp.Close(); err != nil {
		t.Fatal(err)
	}
	<-client.ended
	var result struct {
		Answered uint64        `json:"answered"`
		Longest  time.Duration `json:"longest_ns"`
	}
	lines := bytes.Split(bytes.TrimSpace([]byte(client.out.text())), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &result); err != nil || result.Answered < 100 {
		t.Fatalf("the connection from outside: %v, %s", err, client.out.text())
	}
	if connected := fmt.Sprint(bytes.Count(bytes.Join(lines, nil), []byte("connected"))); connected != "1" {
		t.Errorf("connected %s times: %s", connected, client.out.text())
	}
	t.Logf("one connection, %d answers, the longest wait %v", result.Answered, result.Longest)
}
