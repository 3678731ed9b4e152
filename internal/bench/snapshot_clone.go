package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"golang.org/x/sys/unix"
)

// What a clone may cost (issue 4, speed).
const (
	cloneTime   = 2.0 // of the floor
	cloneMemory = 6.0 // MiB
)

const (
	// clones is how many are made in a full run.
	clones = 1000
	// cloneReserve is how much of the host's memory has to stay available, in
	// MiB.
	cloneReserve = 4096
	// cloneLimit bounds the start of one.
	cloneLimit = 30 * time.Second
)

// crowd is the processes of a contestant. They are killed with this one, however it
// ends: to be exact with the thread that made them, to which the caller is locked.
type crowd struct {
	env  *Env
	argv func(n int) []string
	// variables are added to the environment.
	variables []string
	all       []*exec.Cmd
}

// runClone measures, with more and more clones of one guest beside it, how long the
// next one takes: from fork until it says that the guest is in place. None of them
// runs its guest, since a thousand that run would be a measure of the processor.
func runClone(ctx context.Context, e *Env) (*Result, error) {
	// Processes are killed when the thread ends that has made them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	floor, err := buildRestoreFloor(ctx, e)
	if err != nil {
		return nil, err
	}
	program, err := writeProgram(e, "waiter.elf", func(micro.Stop) ([]byte, error) { return waiter() }, nil)
	if err != nil {
		return nil, err
	}
	s, err := saveWaiter(ctx, e, program, "snapshot", 1<<30)
	if err != nil {
		return nil, err
	}
	godwit, removeDir, err := installed(e)
	if err != nil {
		return nil, err
	}
	defer removeDir()
	floors := &crowd{env: e, argv: func(int) []string { return []string{floor, s.floorState, s.memory, "3"} }}
	godwits := &crowd{env: e, variables: []string{"GODWIT_READY_FD=3"}, argv: func(n int) []string {
		return restoreCommand(godwit, s.dir, "--paused", "--detach", "--name", "clone-"+strconv.Itoa(n))
	}}
	defer func() {
		floors.end()
		godwits.end()
	}()
	r := &Result{Metrics: []*Metric{{Name: "time of a clone", Unit: "ms", goals: []goal{atMostTimes(godwitName, cloneTime, floorName)}}}}
	err = r.compete(ctx, e, e.rounds(clones, 20),
		contestant{name: floorName, run: floors.add},
		contestant{name: godwitName, run: godwits.add})
	if err != nil {
		return nil, err
	}
	e.progress("memory of %d clones", len(godwits.all))
	private := &Metric{Name: "private memory of a clone", Unit: "MiB", goals: []goal{atMost(godwitName, cloneMemory)}}
	for _, c := range []struct {
		name string
		*crowd
	}{{floorName, floors}, {godwitName, godwits}} {
		samples, err := c.private()
		if err != nil {
			return nil, err
		}
		private.Series = append(private.Series, &Series{Contestant: c.name, Samples: samples})
	}
	r.Metrics = append(r.Metrics, private)
	return r, nil
}

// add starts one more and waits until it says that it is ready.
func (c *crowd) add(ctx context.Context) ([]float64, error) {
	if err := haveMemory(cloneReserve); err != nil {
		return nil, fmt.Errorf("%d of them are there: %w", len(c.all), err)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	argv := c.argv(len(c.all))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), c.variables...)
	cmd.ExtraFiles = []*os.File{theirs}
	// Not in the group that gets a terminal's Ctrl-C: whatever ends this
	// process kills that one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	stderr, err := os.Create(filepath.Join(c.env.Dir, "stderr"))
	if err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	began := time.Now()
	if err := errors.Join(cmd.Start(), theirs.Close()); err != nil {
		return nil, err
	}
	c.all = append(c.all, cmd)
	if err := ready.SetReadDeadline(time.Now().Add(cloneLimit)); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := bufio.NewReader(ready).ReadString('\n')
	took := time.Since(began)
	if !strings.HasPrefix(line, "ready") {
		message, _ := os.ReadFile(stderr.Name())
		return nil, fmt.Errorf("number %d did not become ready: %w: %s", len(c.all), err, tail(string(message)))
	}
	return []float64{milliseconds(took)}, nil
}

// end kills all.
func (c *crowd) end() {
	for _, cmd := range c.all {
		_ = cmd.Process.Kill()
	}
	for _, cmd := range c.all {
		_ = cmd.Wait() // it was killed
	}
	c.all = nil
}

// private is the memory of each in MiB that no file is behind.
func (c *crowd) private() ([]float64, error) {
	var all []float64
	for _, cmd := range c.all {
		kib, err := readSizes(fmt.Sprintf("/proc/%d/smaps_rollup", cmd.Process.Pid), "Pss", "Pss_File")
		if err != nil {
			return nil, err
		}
		all = append(all, (kib[0]-kib[1])/1024)
	}
	return all, nil
}

// haveMemory fails where the host has less available.
func haveMemory(mib float64) error {
	kib, err := readSizes("/proc/meminfo", "MemAvailable")
	if err != nil {
		return err
	}
	if kib[0] < mib*1024 {
		return fmt.Errorf("the host has %.0f MiB of memory left, want %.0f to go on: use a larger host, or --quick", kib[0]/1024, mib)
	}
	return nil
}

// readSizes reads fields of a file of the form "Pss:     12 kB".
func readSizes(path string, fields ...string) ([]float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sizes := make([]float64, len(fields))
	for i, field := range fields {
		_, rest, ok := strings.Cut("\n"+string(text), "\n"+field+":")
		if !ok {
			return nil, fmt.Errorf("%s: no field %s", path, field)
		}
		if _, err := fmt.Sscanf(rest, "%f kB", &sizes[i]); err != nil {
			return nil, fmt.Errorf("%s: field %s: %w", path, field, err)
		}
	}
	return sizes, nil
}
