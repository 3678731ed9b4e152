package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/rundir"
)

// microKernel is a file with a micro-guest.
func microKernel(t *testing.T, elf []byte, err error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.elf")
	if err == nil {
		err = os.WriteFile(path, elf, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWaitInVain boots guests in the background that never say that they are up.
// Whatever ends the wait, nothing stays behind.
func TestWaitInVain(t *testing.T) {
	needKVM(t)
	kernel := func(elf []byte, err error) string { return microKernel(t, elf, err) }
	ends, stays := kernel(micro.Exit(micro.PowerOff())), kernel(micro.Spin())
	boot := func(kernel string, args ...string) []string {
		return append([]string{"boot", "--allow-software-kvm", "--memory", "32M", "--name", "vain", "--wait", "--kernel", kernel}, args...)
	}
	gone := func(t *testing.T) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			vm, err := rundir.Open("vain")
			if errors.Is(err, rundir.ErrNotRunning) {
				return
			}
			if err == nil {
				vm.Close()
			}
			if time.Now().After(deadline) {
				t.Fatalf("it still runs: %v", err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"the guest ends", boot(ends), "ended before it was up"},
		{"the time is over", boot(stays, "--wait-timeout", "300ms"), "not up within 300ms"},
		{"no such kernel", boot("/no/such/kernel"), "no such file"},
		{"without the device", boot(stays, "--vsock", "off"), "vsock"},
		{"with a command", boot(stays, "--initrd", stays, "--", "true"), "godwit exec"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := runProgram(t, nil, tt.args...); got.status != 125 || !strings.Contains(got.stderr, tt.want) || got.stdout != "" {
				t.Errorf("%+v, want %q", got, tt.want)
			}
			gone(t)
		})
	}
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(s.String(), func(t *testing.T) {
			c := program(t, boot(stays)...)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			vm, err := appear(t.Context(), "vain")
			if err != nil {
				t.Fatal(err)
			}
			vm.Close()
			c.Process.Signal(s)
			if err := c.Wait(); err == nil {
				t.Error("ended without an error")
			}
			gone(t)
		})
	}
}
