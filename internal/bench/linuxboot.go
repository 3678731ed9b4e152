package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/godwit-vmm/godwit/kvm"
)

// bootOfPeers is what godwit's processor time may be of the better peer's
// (issue 2, acceptance 4).
const bootOfPeers = 0.75

// runLinuxBoot boots one kernel with one initial RAM disk in each VMM, to an
// init that powers off at once. The processor time counts guest and VMM alike.
func runLinuxBoot(ctx context.Context, e *Env) (*Result, error) {
	if e.Kernel == "" {
		return nil, Skip("needs a Linux kernel: --kernel FILE, and --initrd FILE for a RAM disk to unpack on the way")
	}
	if err := needHardware(); err != nil {
		return nil, err
	}
	initrd, err := bootInitrd(e)
	if err != nil {
		return nil, err
	}
	cmdline := "console=ttyS0 panic=-1 quiet rdinit=/" + tinyInitName
	vmm := func(argv ...string) func(context.Context) ([]float64, error) {
		return func(ctx context.Context) ([]float64, error) {
			c, err := runProcess(ctx, e.Dir, 0, argv...)
			if err == nil && !strings.Contains(c.out, tinyInitSays) {
				err = fmt.Errorf("ended before its init ran; console: %s", tail(c.out))
			}
			return []float64{c.cpu.Seconds(), c.wall.Seconds()}, err
		}
	}
	peer := func(machine string) func(context.Context) ([]float64, error) {
		argv, err := qemu("-M", machine, "-cpu", "host", "-m", "512", "-smp", "1", "-serial", "stdio",
			"-kernel", e.Kernel, "-initrd", initrd, "-append", cmdline)
		if err != nil {
			return func(context.Context) ([]float64, error) { return nil, err }
		}
		return vmm(argv...)
	}
	r := &Result{Metrics: []*Metric{
		{Name: "user + system", Unit: "s", goals: []goal{atMostTimes(godwitName, bootOfPeers, q35Name, microvmName)}},
		{Name: "wall clock", Unit: "s"},
	}}
	return r, r.compete(ctx, e, e.rounds(5, 1),
		contestant{name: godwitName, run: vmm(e.Godwit, "boot", "--no-reboot", "--cpus", "1", "--memory", "512M",
			"--kernel", e.Kernel, "--initrd", initrd, "--bare-cmdline", "--cmdline", cmdline)},
		contestant{name: q35Name, peer: true, run: peer("q35")},
		contestant{name: microvmName, peer: true, run: peer("microvm,auto-kernel-cmdline=off")},
	)
}

// needHardware skips where a Linux guest cannot run.
func needHardware() error {
	sys, err := kvm.Open("")
	if err != nil {
		return Skip("%v", err)
	}
	defer sys.Close()
	ns, err := kvm.ProbeRing0(sys)
	if err != nil {
		return err
	}
	if ns >= kvm.SoftwareNsPerInsn {
		return Skip("KVM here has no hardware virtualization (%.0f ns an instruction in ring 0): run this case in an emulated host, see godwit-lab", ns)
	}
	return nil
}

// bootInitrd is the given RAM disk, or none, with the tiny init behind it: the
// kernel unpacks one archive after the other (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst).
func bootInitrd(e *Env) (string, error) {
	var disk []byte
	if e.Initrd != "" {
		var err error
		if disk, err = os.ReadFile(e.Initrd); err != nil {
			return "", err
		}
	}
	init, err := tinyInit()
	if err != nil {
		return "", err
	}
	for len(disk)%4 != 0 {
		disk = append(disk, 0)
	}
	path := filepath.Join(e.Dir, "initrd")
	return path, os.WriteFile(path, append(disk, cpioFile(tinyInitName, init)...), 0o600)
}
