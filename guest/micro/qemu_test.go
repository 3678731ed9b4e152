package micro

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestQEMU runs the same program under QEMU: on KVM, and on emulated
// processors of both vendors, which take the two ways to ring 3.
func TestQEMU(t *testing.T) {
	qemu := needQEMU(t)
	const text = "hello from ring 3\n"
	debugExit := []string{"-device", "isa-debug-exit,iobase=0xf4,iosize=4"}
	for _, test := range []struct {
		name string
		args string
		kvm  bool
		stop Stop
		exit int
	}{
		{"microvm on KVM", "-M microvm -accel kvm", true, DebugExit(5), 11},
		{"microvm on AMD", "-M microvm -accel tcg -cpu EPYC", false, DebugExit(5), 11},
		{"microvm on Intel", "-M microvm -accel tcg -cpu Skylake-Client", false, DebugExit(5), 11},
		{"q35 on AMD", "-M q35 -accel tcg -cpu EPYC", false, QEMUPowerOff(), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.kvm {
				needKVM(t)
			}
			file := filepath.Join(t.TempDir(), "hello.elf")
			if err := os.WriteFile(file, program(t)(Hello(text, test.stop)), 0o600); err != nil {
				t.Fatal(err)
			}
			args := strings.Fields(test.args + " -m 64 -nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel " + file)
			if test.exit != 0 {
				args = append(args, debugExit...)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, qemu, args...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != test.exit {
				t.Errorf("exit status %d, want %d: %s", code, test.exit, stderr.String())
			}
			if !strings.HasSuffix(stdout.String(), text) {
				t.Errorf("serial output %q, want %q at its end", stdout.String(), text)
			}
		})
	}
}
