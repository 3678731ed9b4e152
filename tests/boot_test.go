package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestCommand(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		script string
		status int
		stdout string
	}{
		{"output and arithmetic", "echo hello; echo $((6*7))", 0, "hello\n42\n"},
		{"exit status", "exit 3", 3, ""},
		{"killed by a signal", "kill -9 $$", 128 + 9, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			boot(t, "--memory", "256M", "--", "sh", "-c", tt.script).expect(t, tt.status, tt.stdout)
		})
	}
}

// TestNoSuchCommand has the message on stderr and the shell's status.
func TestNoSuchCommand(t *testing.T) {
	t.Parallel()
	r := boot(t, "--memory", "256M", "--", "no-such-command")
	if r.status != 127 || !strings.Contains(r.stderr, "no-such-command") || r.stdout != "" {
		t.Errorf("%v, want status 127 and the command's name on stderr", r)
	}
}

// TestInput sends binary data through the guest and back.
func TestInput(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for i := range 4096 {
		all.WriteByte(byte(i*i>>4 ^ i))
	}
	r := godwit(t, strings.NewReader(all.String()), "boot", "--memory", "256M", "--", "cat")
	if r.status != 0 || r.stdout != all.String() {
		t.Errorf("status %d, %d bytes came back of %d; stderr %q", r.status, len(r.stdout), all.Len(), r.stderr)
	}
}

// TestSizes checks that guests see the processors and memory they were given.
func TestSizes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ cpus, mib int }{{1, 128}, {2, 1024}, {4, 5120}} {
		t.Run(fmt.Sprintf("%d CPUs %d MiB", tt.cpus, tt.mib), func(t *testing.T) {
			r := boot(t, "--cpus", strconv.Itoa(tt.cpus), "--memory", fmt.Sprintf("%dM", tt.mib), "--",
				"sh", "-c", "nproc; cat /proc/meminfo")
			if r.status != 0 {
				t.Fatal(r)
			}
			nproc, meminfo, _ := strings.Cut(r.stdout, "\n")
			if nproc != strconv.Itoa(tt.cpus) {
				t.Errorf("nproc says %s", nproc)
			}
			m := regexp.MustCompile(`MemTotal: +(\d+) kB`).FindStringSubmatch(meminfo)
			if m == nil {
				t.Fatalf("no MemTotal in %q", meminfo)
			}
			// The kernel keeps its code and page tables to itself: up to
			// 64 MiB and 1/32 of the memory.
			total, _ := strconv.Atoi(m[1])
			if most := tt.mib << 10; total > most || total < most-most/32-64<<10 {
				t.Errorf("MemTotal is %d kB of %d", total, most)
			}
		})
	}
}

// TestEnds checks how each way to end a guest ends godwit.
func TestEnds(t *testing.T) {
	t.Parallel()
	prompt := "# "
	t.Run("poweroff", func(t *testing.T) {
		if r := console(t, []step{{prompt, "poweroff\n"}}, "--memory", "256M"); r.status != 0 {
			t.Errorf("%v, want status 0", r)
		}
	})
	t.Run("end of the shell", func(t *testing.T) {
		if r := console(t, []step{{prompt, "exit\n"}}, "--memory", "256M"); r.status != 0 {
			t.Errorf("%v, want status 0", r)
		}
	})
	t.Run("reboot", func(t *testing.T) {
		// The second prompt is that of a second boot: /tmp is empty there.
		r := console(t, []step{
			{prompt, "touch /tmp/mark; ls /tmp; echo up $((1+0))\n"}, {"up 1", ""}, {prompt, "reboot\n"},
			// The old shell may show one more prompt while it ends.
			{"Restarting system", ""}, {prompt, "ls /tmp | wc -l; echo up $((1+1))\n"}, {"up 2", ""}, {prompt, "poweroff\n"},
		}, "--memory", "256M")
		if r.status != 0 {
			t.Errorf("%v, want status 0", r)
		}
	})
	t.Run("no-reboot", func(t *testing.T) {
		if r := console(t, []step{{prompt, "reboot\n"}}, "--memory", "256M", "--no-reboot"); r.status != 0 {
			t.Errorf("%v, want status 0", r)
		}
	})
	t.Run("panic", func(t *testing.T) {
		boot(t, "--memory", "256M", "--", "sh", "-c", "echo c > /proc/sysrq-trigger").expectError(t, "panicked")
	})
	t.Run("panic before init", func(t *testing.T) {
		// Without pvpanic's driver: the warm reset flag tells.
		r := boot(t, "--memory", "256M", "--cmdline", "rdinit=/none init=/none root=")
		r.expectError(t, "panicked")
	})
	t.Run("triple fault", func(t *testing.T) {
		r := boot(t, "--memory", "256M", "--cmdline", "reboot=t", "--", "reboot", "-f")
		r.expectError(t, "triple fault")
		if !strings.Contains(r.stderr, "rip ") {
			t.Errorf("no dump of the registers: %v", r)
		}
	})
}

// TestPowerButton presses the power button by SIGTERM.
func TestPowerButton(t *testing.T) {
	t.Parallel()
	in := newTypist([]step{{"# ", ""}})
	defer in.Close()
	h, release := host(t)
	defer release()
	// Not before: other tests may have the hosts for longer than that.
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	var stderr bytes.Buffer
	p, err := h.start(ctx, in, in, &stderr, "boot", "--memory", "256M")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-in.done:
		err = p.Signal(syscall.SIGTERM)
	case <-ctx.Done():
	}
	status, waitErr := p.Wait()
	if err = errors.Join(err, waitErr); err != nil || status != 0 || !strings.Contains(stderr.String(), "power button") {
		t.Errorf("status %d, %v\nconsole: %s\nstderr: %s", status, err, in.text(), stderr.String())
	}
}

// TestKernelLog checks that a stock kernel has nothing to complain about that
// is godwit's doing. The patterns are what it also says in a QEMU guest on the
// same kinds of host, with the reason.
func TestKernelLog(t *testing.T) {
	t.Parallel()
	known := regexp.MustCompile(strings.Join([]string{
		`XSAVE consistency problem`,           // emulated hosts: CPUID 0xd of nested SVM
		`^CPUID\[0d,`,                         // the same
		`fpu__init_system_xstate`,             // the same
		`Speculative Return Stack Overflow`,   // host processors without the microcode
		`AMD Zen1 .* bug`,                     // the same
		`Unstable clock detected`,             // emulated hosts: TSC is not steady
		`trace_clock=`, `If you want to keep`, // the same
		`switching default tracing clock`,                         // the same
		`on the kernel command line`,                              // the same
		`TSC.*unstable|TSCs unsynchronized`,                       // the same
		`module verification failed|out-of-tree|taints kernel`,    // modules
		`RETBleed|Spectre|MDS|TAA|MMIO Stale|GDS|ITS|VMSCAPE|TSA`, // processor bugs
		`clocksource: .*(skew|unstable|wd-)`,                      // an overloaded emulated host
		`hrtimer: interrupt took`,                                 // the same
	}, "|"))
	r := boot(t, "--cpus", "2", "--memory", "512M", "--", "dmesg", "-r")
	if r.status != 0 {
		t.Fatal(r)
	}
	traced := false // inside the trace of a known warning
	lines := 0
	for line := range strings.Lines(r.stdout) {
		m := regexp.MustCompile(`^<(\d+)>\[ *[\d.]+\] ?(.*)`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		lines++
		level, _ := strconv.Atoi(m[1])
		text := m[2]
		switch {
		case strings.Contains(text, "[ cut here ]"):
			traced = true
		case strings.Contains(text, "---[ end trace"):
			traced = false
		case level&7 <= 4 && !traced && !known.MatchString(text):
			t.Errorf("level %d: %s", level&7, text)
		}
	}
	if lines < 100 {
		t.Errorf("only %d lines of kernel log", lines)
	}
}
