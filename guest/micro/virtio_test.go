package micro

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

// qemuMachine is a kind of machine that QEMU makes.
type qemuMachine struct {
	name, args string
	kvm        bool
}

// The machines differ in what there is around the device: q35 has firmware that
// assigns BARs, and configuration ports; microvm has neither, and ECAM.
var (
	q35        = qemuMachine{"q35", "-M q35 -accel tcg -cpu EPYC", false}
	microvm    = qemuMachine{"microvm", "-M microvm,pcie=on,x-option-roms=off -accel tcg -cpu EPYC", false}
	microvmKVM = qemuMachine{"microvm on KVM", "-M microvm,pcie=on,x-option-roms=off -accel kvm", true}
	machines   = []qemuMachine{q35, microvm, microvmKVM}
)

// needQEMU returns the path of QEMU.
func needQEMU(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		testenv.Lacks(t, "qemu-system-x86_64 (package qemu-system-x86) is not installed")
	}
	return path
}

func needKVM(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		testenv.Lacks(t, "no KVM: %v", err)
	}
	f.Close()
}

// needs ends the test where the machine cannot run.
func (m qemuMachine) needs(t testing.TB) {
	t.Helper()
	if m.kvm {
		needKVM(t)
	}
}

// qemuRAM is the memory of guests under QEMU.
const qemuRAM = 64 << 20

// qemuGuest is a running machine.
type qemuGuest struct {
	t      testing.TB
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ram    *os.File
}

// run runs a program that ends with AnyStop on the machine with some devices,
// and returns what it left in its result words.
func (m qemuMachine) run(t testing.TB, program []byte, devices ...string) Result {
	t.Helper()
	return m.start(t, program, nil, devices...).wait()
}

// start starts a program. QEMU has a file, or nil, as descriptor 4; it is closed
// here. Guest memory is descriptor 3, a memfd, so that it can be read at any time.
func (m qemuMachine) start(t testing.TB, program []byte, extra *os.File, devices ...string) *qemuGuest {
	t.Helper()
	m.needs(t)
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	g := &qemuGuest{t: t, ram: os.NewFile(uintptr(fd), "guest")}
	t.Cleanup(func() { g.ram.Close() })
	if err := g.ram.Truncate(qemuRAM); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "guest.elf")
	if err := os.WriteFile(file, program, 0o600); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields(m.args)
	args = append(args, "-m", fmt.Sprint(qemuRAM>>20), "-machine", "memory-backend=ram",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,share=on,mem-path=/proc/self/fd/3", qemuRAM),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", file)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	g.cmd = exec.CommandContext(ctx, needQEMU(t), append(args, devices...)...)
	g.cmd.ExtraFiles = []*os.File{g.ram}
	g.cmd.Stderr = &g.stderr
	if extra != nil {
		defer extra.Close()
		g.cmd.ExtraFiles = append(g.cmd.ExtraFiles, extra)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return g
}

// result is what the guest has left up to now.
func (g *qemuGuest) result() Result {
	g.t.Helper()
	words := make([]byte, ResultSize)
	if _, err := g.ram.ReadAt(words, ResultStart); err != nil {
		g.t.Fatal(err)
	}
	r, err := ReadResult(words)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// ready returns when the guest has rung a doorbell. There is no event for that.
func (g *qemuGuest) ready() {
	g.t.Helper()
	for deadline := time.Now().Add(time.Minute); g.result().Kicks == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("the guest did not set its queues up: %+v", g.result().Status)
		}
	}
}

// wait waits for the end of the program.
func (g *qemuGuest) wait() Result {
	g.t.Helper()
	err := g.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.t.Fatal(err)
	}
	r := g.result()
	if code := g.cmd.ProcessState.ExitCode(); code != AnyStopStatus {
		g.t.Fatalf("QEMU ended with %v after %d rounds, status %d: %s", g.cmd.ProcessState, r.Count, r.Status, g.stderr.String())
	}
	return r
}
