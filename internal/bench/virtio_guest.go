package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"golang.org/x/sys/unix"
)

// guestRAM is the memory of guests that drive devices, in bytes.
const guestRAM = 128 << 20

// deviceGuest is a micro-guest that drives a device. The same file runs in each
// VMM, and times itself by its time stamp counter.
type deviceGuest struct {
	env  *Env
	sys  *kvm.System
	path string
	khz  float64 // of the guest's time stamp counter
}

// newDeviceGuest writes a program that ends with micro.AnyStop to the case's
// folder. Close frees what it holds.
func newDeviceGuest(e *Env, build func() ([]byte, error)) (*deviceGuest, error) {
	sys, err := kvm.Open("")
	if err != nil {
		return nil, Skip("%v", err)
	}
	g := &deviceGuest{env: e, sys: sys}
	if g.khz, err = tscKHz(sys); err == nil {
		g.path, err = writeProgram(e, "device.elf", func(micro.Stop) ([]byte, error) { return build() }, nil)
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *deviceGuest) close() { g.sys.Close() }

// tscKHz is the frequency of the time stamp counter that guests see.
func tscKHz(sys *kvm.System) (float64, error) {
	vm, err := sys.CreateVM()
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	khz, err := vm.GetTSCKHz()
	return float64(khz), err
}

// deviceRun is what a run of a deviceGuest took.
type deviceRun struct {
	micro.Result
	khz     float64
	cpu     time.Duration // user and system, of the VMM while the guest ran
	mallocs uint64        // by this process meanwhile
}

// timings are the samples of a run for a result of newDeviceResult, with latencies.
func timings(r *deviceRun, err error) ([]float64, error) {
	if err != nil {
		return nil, err
	}
	return []float64{r.each(), r.cpuEach(), r.latency(0.5), r.latency(0.99)}, nil
}

// microseconds turns ticks of the guest's time stamp counter into microseconds.
func (r *deviceRun) microseconds(ticks float64) float64 { return ratio(ticks, r.khz) * 1e3 }

// each is the time between the guest's time stamps for each of its rounds, in
// microseconds.
func (r *deviceRun) each() float64 {
	return ratio(r.microseconds(float64(r.LastTSC-r.FirstTSC)), float64(r.Count))
}

// latency is a quantile of the time of a round, in microseconds.
func (r *deviceRun) latency(q float64) float64 { return r.microseconds(r.Histogram.Quantile(q)) }

// cpuEach is the processor time of a round in microseconds. It has the guest's
// own in it, which polls all the time.
func (r *deviceRun) cpuEach() float64 {
	return ratio(float64(r.cpu.Nanoseconds())/1e3, float64(r.Count))
}

// finish checks the result words.
func (r *deviceRun) finish(words []byte) error {
	var err error
	if r.Result, err = micro.ReadResult(words); err != nil {
		return err
	}
	if err := r.Err(); err != nil {
		return err
	}
	if r.Errors > 0 || r.Mismatches > 0 {
		return fmt.Errorf("%d requests of %d failed, %d with wrong data", r.Errors, r.Count, r.Mismatches)
	}
	return nil
}

// inMachine runs the guest in a machine in this process.
func (g *deviceGuest) inMachine(ctx context.Context, c machine.Config) (*deviceRun, error) {
	c.Name, c.CPUs, c.Memory, c.Kernel = "bench", 1, guestRAM, g.path
	m, err := machine.New(g.sys, c)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	r := &deviceRun{khz: g.khz}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu := cpuTime()
	outcome, err := m.Run(ctx)
	r.cpu = time.Duration((cpuTime() - cpu) * 1e3)
	runtime.ReadMemStats(&after)
	r.mallocs = after.Mallocs - before.Mallocs
	if err != nil {
		return nil, err
	}
	if outcome != machine.PoweredOff {
		return nil, fmt.Errorf("the micro-guest %v instead of powering off", outcome)
	}
	words := make([]byte, micro.ResultSize)
	if err := m.Memory().Read(micro.ResultStart, words); err != nil {
		return nil, err
	}
	return r, r.finish(words)
}

// pciMicroVM is leanMicroVM with a PCI bus, which takes ACPI.
const pciMicroVM = "microvm,kernel-irqchip=split,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=off,auto-kernel-cmdline=off,pcie=on"

// inQEMU runs the guest in QEMU's microvm with devices on a PCI bus. Guest memory
// is a memfd, from which the result is read when QEMU is gone.
func (g *deviceGuest) inQEMU(ctx context.Context, devices ...string) (*deviceRun, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	ram := os.NewFile(uintptr(fd), "guest memory")
	defer ram.Close()
	if err := ram.Truncate(guestRAM); err != nil {
		return nil, err
	}
	path := filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(fd))
	argv, err := qemu(append([]string{
		"-M", pciMicroVM + ",memory-backend=ram",
		"-m", strconv.Itoa(guestRAM >> 20),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,share=on,mem-path=%s", guestRAM, path),
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-kernel", g.path,
	}, devices...)...)
	if err != nil {
		return nil, err
	}
	c, err := runProcess(ctx, g.env.Dir, micro.AnyStopStatus, argv...)
	if err != nil {
		return nil, err
	}
	words := make([]byte, micro.ResultSize)
	if _, err := ram.ReadAt(words, micro.ResultStart); err != nil {
		return nil, err
	}
	r := &deviceRun{khz: g.khz, cpu: c.cpu}
	return r, r.finish(words)
}
