package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
)

// command runs the command line in this process and returns what it prints.
func command(args ...string) (string, error) {
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

func needKVM(t *testing.T) {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	sys.Close()
}

func TestKernelCmdline(t *testing.T) {
	tests := []struct {
		name string
		o    bootOptions
		want []string // words in this order
		not  string
	}{
		{"console", bootOptions{}, []string{"console=ttyS0", machine.PanicWord, "quiet"}, "godwit.agent"},
		{"virtio console", bootOptions{console: consoleHVC}, []string{"console=hvc0"}, "ttyS0"},
		{"verbose", bootOptions{verbose: true}, []string{"console=ttyS0"}, "quiet"},
		{"command", bootOptions{command: []string{"ls"}}, []string{"godwit.agent=vsock,ttyS1"}, "godwit.term"},
		{"the user's words come last", bootOptions{cmdline: "reboot=t x"}, []string{machine.PanicWord, "reboot=t x"}, ""},
		{"bare", bootOptions{cmdline: "only this", bareCmdline: true}, []string{"only this"}, "console"},
	}
	for _, tt := range tests {
		line, at := tt.o.kernelCmdline(), 0
		for _, w := range tt.want {
			i := strings.Index(line[at:], w)
			if i < 0 {
				t.Errorf("%s: %q is not, or not in order, in %q", tt.name, w, line)
				continue
			}
			at += i
		}
		if tt.not != "" && strings.Contains(line, tt.not) {
			t.Errorf("%s: %q is in %q", tt.name, tt.not, line)
		}
	}
}

// TestMistakes has what users get wrong: each is one clear sentence, and
// nothing is left behind.
func TestMistakes(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	elf, err := micro.Exit(micro.PowerOff())
	if err != nil {
		t.Fatal(err)
	}
	kernel := file("kernel.elf", string(elf))
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"argument", []string{"uname"}, "goes after --"},
		{"argument before the dashes", []string{"uname", "--", "-a"}, "goes after --"},
		{"flag", []string{"--no-such-flag"}, "no-such-flag"},
		{"absent kernel", []string{"--kernel", dir + "/none"}, "no such file"},
		{"not a kernel", []string{"--kernel", file("text", strings.Repeat("not a kernel\n", 1000))}, "text (13000 bytes)"},
		{"truncated kernel", []string{"--kernel", file("cut.elf", string(elf[:len(elf)/2]))}, "truncated"},
		{"empty kernel", []string{"--kernel", file("empty", "")}, "empty (0 bytes)"},
		{"absent initrd", []string{"--kernel", kernel, "--initrd", dir + "/none"}, "no such file"},
		{"large initrd", []string{"--kernel", kernel, "--memory", "8M", "--initrd", file("big", strings.Repeat("x", 16<<20))}, "big (16777216 bytes)"},
		{"long command line", []string{"--kernel", kernel, "--cmdline", strings.Repeat("x", 70000)}, "command line"},
		{"no memory", []string{"--kernel", kernel, "--memory", "0"}, "between"},
		{"little memory", []string{"--kernel", kernel, "--memory", "1M"}, "memory"},
		{"much memory", []string{"--kernel", kernel, "--memory", "1000T"}, "between"},
		{"no CPUs", []string{"--kernel", kernel, "--cpus", "0"}, "1 to 64"},
		{"many CPUs", []string{"--kernel", kernel, "--cpus", "65"}, "1 to 64"},
		{"command without agent", []string{"--kernel", kernel, "--", "ls"}, "initramfs"},
		{"timings", []string{"--kernel", kernel, "--timings", dir + "/none/x"}, "--timings"},
		{"exit trace", []string{"--kernel", kernel, "--exit-trace", dir + "/none/x"}, "--exit-trace"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := command(append([]string{"boot", "--allow-software-kvm"}, tt.args...)...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q in it", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Errorf("not one short line: %s", err)
			}
			if out != "" {
				t.Errorf("printed %q", out)
			}
		})
	}
}

func TestBootMicroGuest(t *testing.T) {
	needKVM(t)
	write := func(elf []byte, err error) string {
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
	times := filepath.Join(t.TempDir(), "times")
	if _, err := command("boot", "--allow-software-kvm", "--memory", "32M", "--timings", times,
		"--kernel", write(micro.Exit(micro.PowerOff()))); err != nil {
		t.Errorf("power off: %v", err)
	}
	if _, err := command("boot", "--allow-software-kvm", "--memory", "32M", "--no-reboot",
		"--kernel", write(micro.Exit(micro.Reset()))); err != nil {
		t.Errorf("reset: %v", err)
	}
	_, err := command("boot", "--allow-software-kvm", "--memory", "32M", "--kernel", write(micro.Fault()))
	if err == nil || !strings.Contains(err.Error(), "triple fault") {
		t.Errorf("fault: %v", err)
	}
	checkTimings(t, times)
}

// checkTimings reads the phases of a start: in order, with rising times.
func checkTimings(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var last int64
	seen := make(map[string]bool)
	for d := json.NewDecoder(f); d.More(); {
		var line struct {
			Phase string
			US    int64
		}
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line.US < last {
			t.Errorf("%s ends at %d us, before the phase before it", line.Phase, line.US)
		}
		last, seen[line.Phase] = line.US, true
	}
	for _, phase := range []string{"open", "vm", "memory", "kernel", "devices", "cpus", "run", "end"} {
		if !seen[phase] {
			t.Errorf("no phase %q", phase)
		}
	}
}

func TestRefusesSoftware(t *testing.T) {
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	defer sys.Close()
	if ns, err := kvm.ProbeRing0(sys); err != nil || ns < kvm.SoftwareNsPerInsn {
		t.Skipf("this machine's KVM is hardware (%.1f ns an instruction, %v)", ns, err)
	}
	elf, err := micro.Exit(micro.PowerOff())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guest.elf")
	if err := os.WriteFile(path, elf, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = command("boot", "--kernel", path)
	if err == nil || !strings.Contains(err.Error(), "godwit-lab run") {
		t.Errorf("error %v, want the lab's command in it", err)
	}
}

func TestStatusOfEnds(t *testing.T) {
	for _, o := range []machine.Outcome{machine.PoweredOff, machine.Reset} {
		if err := ended(o, nil); err != nil {
			t.Errorf("%v: %v", o, err)
		}
	}
	if err := ended(machine.Panicked, nil); err == nil {
		t.Error("panic: no error")
	}
	broken := errors.New("broken")
	if err := ended(machine.PoweredOff, broken); !errors.Is(err, broken) || !strings.Contains(err.Error(), "crashed") {
		t.Errorf("crash: %v", err)
	}
	if err := ended(machine.Reset, broken); err != broken {
		t.Errorf("a reboot that failed: %v", err)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		out, err := command(c.Name(), "--help")
		if err != nil || !strings.Contains(out, c.Short) && !strings.Contains(out, c.Long) {
			t.Errorf("godwit %s --help: %v\n%s", c.Name(), err, out)
		}
	}
	out, err := command("version", "--json")
	var v struct{ Version, Go string }
	if err != nil || json.Unmarshal([]byte(out), &v) != nil || v.Version == "" || v.Go == "" {
		t.Errorf("version --json: %q, %v", out, err)
	}
	if out, err := command("completion", "bash"); err != nil || !strings.Contains(out, "godwit") {
		t.Errorf("completion bash: %d bytes, %v", len(out), err)
	}
}
