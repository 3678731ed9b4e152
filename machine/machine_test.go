package machine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/vcpu"
)

// openKVM is the machine's own KVM; micro-guests run on any.
func openKVM(t testing.TB) *kvm.System {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	t.Cleanup(func() { sys.Close() })
	return sys
}

// program writes a micro-guest to a file.
func program(t testing.TB) func(elf []byte, err error) string {
	return func(elf []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "guest.elf")
		if err := os.WriteFile(path, elf, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// run boots a kernel and returns how it ended and what it printed.
func run(t testing.TB, c Config) (Outcome, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Memory == 0 {
		c.Memory = 32 << 20
	}
	c.Name, c.Console = t.Name(), &out
	m, err := New(openKVM(t), c)
	if err != nil {
		t.Fatal(err)
	}
	outcome, err := m.Run(ctx)
	if e := m.Close(); e != nil {
		t.Error(e)
	}
	if ctx.Err() != nil {
		t.Fatal("the guest did not end within a minute")
	}
	return outcome, out.String(), err
}

func TestEnds(t *testing.T) {
	tests := []struct {
		name    string
		elf     func() ([]byte, error)
		outcome Outcome
		crash   string // part of the crash's reason, if it crashes
	}{
		{"power off", func() ([]byte, error) { return micro.Exit(micro.PowerOff()) }, PoweredOff, ""},
		{"reset", func() ([]byte, error) { return micro.Exit(micro.Reset()) }, Reset, ""},
		{"panic", func() ([]byte, error) {
			return micro.Exit(micro.Stop{{Port: 0x505, Width: micro.Byte, Value: 1}})
		}, Panicked, ""},
		{"keyboard reset", func() ([]byte, error) {
			return micro.Exit(micro.Stop{{Port: 0x64, Width: micro.Byte, Value: 0xfe}})
		}, Reset, ""},
		{"fault", micro.Fault, 0, "triple fault"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			outcome, _, err := run(t, Config{Kernel: program(t)(tt.elf())})
			if outcome != tt.outcome {
				t.Errorf("the guest %v, want %v", outcome, tt.outcome)
			}
			var crash *vcpu.Crash
			if errors.As(err, &crash) != (tt.crash != "") {
				t.Fatalf("error %v, want a crash: %v", err, tt.crash != "")
			}
			if crash != nil && !strings.Contains(crash.Reason, tt.crash) {
				t.Errorf("crash %q, want %q in it\n%s", crash.Reason, tt.crash, crash.Dump())
			}
		})
	}
}

func TestConsoleOutput(t *testing.T) {
	text := strings.Repeat("all that was written before the end arrives\n", 50)
	outcome, out, err := run(t, Config{Kernel: program(t)(micro.Hello(text, micro.PowerOff()))})
	if outcome != PoweredOff || err != nil {
		t.Fatalf("the guest %v: %v", outcome, err)
	}
	if out != text {
		t.Errorf("%d bytes of output, want %d", len(out), len(text))
	}
}

func TestKill(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	started := func(phase string) {
		if phase == "run" {
			cancel()
		}
	}
	m, err := New(openKVM(t), Config{CPUs: 4, Memory: 32 << 20, Kernel: program(t)(micro.Spin()), Trace: started})
	if err != nil {
		t.Fatal(err)
	}
	if outcome, err := m.Run(ctx); outcome != Killed || err != nil {
		t.Errorf("the guest %v: %v", outcome, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestPauseResume pauses a guest in the middle of port writes many times and
// checks that none is lost or repeated.
func TestPauseResume(t *testing.T) {
	const n = 3000
	var out bytes.Buffer
	kernel := program(t)(micro.PortLoop(micro.Write, 0x3f8, micro.Byte, n, micro.PowerOff()))
	m, err := New(openKVM(t), Config{CPUs: 1, Memory: 32 << 20, Kernel: kernel, Console: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	done := make(chan error, 1)
	go func() {
		outcome, err := m.Run(t.Context())
		if outcome != PoweredOff {
			err = errors.Join(err, errors.New(outcome.String()))
		}
		done <- err
	}()
	pauses := 0
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			// The line may lose bytes, as a real one, when the guest
			// does not wait for it; it says so.
			if got := out.Len() + int(m.Console().Overruns()); got != n {
				t.Errorf("%d bytes arrived, want %d; %d pauses", got, n, pauses)
			}
			if pauses == 0 {
				t.Error("the guest was never paused")
			}
			return
		default:
			m.Pause()
			pauses++
			m.Resume()
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	sys := openKVM(t)
	ok := Config{CPUs: 1, Memory: 32 << 20, Kernel: "/nonexistent"}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no CPUs", func(c *Config) { c.CPUs = 0 }, "want 1 to 64"},
		{"many CPUs", func(c *Config) { c.CPUs = 65 }, "want 1 to 64"},
		{"odd memory", func(c *Config) { c.Memory = 5<<20 + 1 }, "page size"},
		{"no kernel", func(c *Config) { c.Kernel = "" }, "no kernel"},
		{"absent kernel", func(*Config) {}, "no such file"},
		{"a directory", func(c *Config) { c.Kernel = "/" }, "not a regular file"},
	} {
		c := ok
		tt.change(&c)
		m, err := New(sys, c)
		if err == nil {
			m.Close()
			t.Errorf("%s: no error", tt.name)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
	}
}

func TestExitTrace(t *testing.T) {
	var trace bytes.Buffer
	_, _, err := run(t, Config{Kernel: program(t)(micro.Exit(micro.PowerOff())), ExitTrace: &trace})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(trace.String(), "port write 0x604 2 0x3400") {
		t.Errorf("the write that powers off is not in the trace:\n%s", trace.String())
	}
}
