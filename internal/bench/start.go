package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/guest/micro"
)

// What the start of godwit may cost (issue 2, acceptance 4).
const (
	startAboveFloor = 4.0 // ms of wall clock time
	startOfMicroVM  = 0.2 // of QEMU microvm
)

// runStart measures whole processes, from fork to wait, that start the same
// micro-guest, which powers off with its first instructions.
func runStart(ctx context.Context, e *Env) (*Result, error) {
	floor, err := buildFloor(ctx, e)
	if err != nil {
		return nil, err
	}
	exit, err := writeProgram(e, "exit.elf", micro.Exit, micro.PowerOff())
	if err != nil {
		return nil, err
	}
	exitQEMU, err := writeProgram(e, "exit-qemu.elf", micro.Exit, micro.DebugExit(0))
	if err != nil {
		return nil, err
	}
	godwit, removeDir, err := installed(e)
	if err != nil {
		return nil, err
	}
	defer removeDir()
	r := &Result{Metrics: []*Metric{
		{Name: "wall clock", Unit: "ms", goals: []goal{
			atMostAbove(godwitName, floorName, startAboveFloor),
			atMostTimes(godwitName, startOfMicroVM, microvmName),
		}},
		{Name: "user + system", Unit: "ms"},
	}}
	phases := new(phaseLog)
	err = r.compete(ctx, e, e.rounds(25, 5),
		contestant{name: floorName, run: func(ctx context.Context) ([]float64, error) {
			c, _, err := floor.run(ctx, exit)
			return c.milliseconds(), err
		}},
		contestant{name: godwitName, run: func(ctx context.Context) ([]float64, error) {
			c, err := runProcess(ctx, e.Dir, 0, godwit, "boot", "--allow-software-kvm", "--memory", "128M", "--kernel", exit)
			return c.milliseconds(), err
		}},
		contestant{name: microvmName, peer: true, run: func(ctx context.Context) ([]float64, error) {
			argv, err := qemu("-M", leanMicroVM+",isa-serial=off", "-m", "128", "-kernel", exitQEMU,
				"-device", "isa-debug-exit,iobase=0xf4,iosize=4")
			if err != nil {
				return nil, err
			}
			c, err := runProcess(ctx, e.Dir, debugExitStatus, argv...)
			return c.milliseconds(), err
		}},
	)
	if err != nil {
		return nil, err
	}
	// The phases come from runs of their own: writing them down costs time.
	for range e.rounds(15, 5) {
		e.progress("where the time goes")
		if err := phases.run(ctx, e, godwit, "boot", "--allow-software-kvm", "--memory", "128M", "--kernel", exit); err != nil {
			return nil, err
		}
	}
	r.Parts = phases.parts()
	return r, nil
}

// install copies the binary to measure, as its installation would (scripts/settle). A
// linker leaves its output in the page cache in single pages, in which a program starts
// slower than in the large folios that a copy is made of which is written at once.
func install(e *Env) (string, error) {
	program, err := os.ReadFile(e.Godwit)
	if err != nil {
		return "", err
	}
	path := filepath.Join(e.Dir, "godwit")
	return path, os.WriteFile(path, program, 0o700)
}

// writeProgram builds a micro-guest and puts it into the case's folder.
func writeProgram(e *Env, name string, build func(micro.Stop) ([]byte, error), stop micro.Stop) (string, error) {
	elf, err := build(stop)
	if err != nil {
		return "", err
	}
	path := filepath.Join(e.Dir, name)
	return path, os.WriteFile(path, elf, 0o600)
}

// milliseconds is the cost as samples: wall clock, then processor time.
func (c cost) milliseconds() []float64 {
	return []float64{milliseconds(c.wall), milliseconds(c.cpu)}
}

// phaseLog collects what --timings of a command of godwit says in several runs.
type phaseLog struct {
	names   []string
	samples map[string][]float64 // ms
}

// run runs a command of godwit once. The file that it writes has a line for the end of
// each phase, in microseconds since its main package was initialized. What
// comes before is about what a godwit takes that does nothing; what comes after
// is the rest of the wall clock time.
func (l *phaseLog) run(ctx context.Context, e *Env, godwit string, argv ...string) error {
	file := filepath.Join(e.Dir, "timings")
	idle, err := runProcess(ctx, e.Dir, 0, godwit, "version")
	if err != nil {
		return fmt.Errorf("%s: %w", godwitName, err)
	}
	l.add("process (godwit version)", milliseconds(idle.wall))
	c, err := runProcess(ctx, e.Dir, 0, append([]string{godwit}, append(argv, "--timings", file)...)...)
	if err != nil {
		return fmt.Errorf("%s: %w", godwitName, err)
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("timings of godwit: %w", err)
	}
	defer f.Close()
	last := 0.0
	for s := bufio.NewScanner(f); s.Scan(); {
		var line struct {
			Phase string
			US    float64
		}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			return fmt.Errorf("timings of godwit: %w", err)
		}
		l.add(line.Phase, line.US/1000-last)
		last = line.US / 1000
	}
	l.add("close and exit", max(0, milliseconds(c.wall-idle.wall)-last))
	return nil
}

func (l *phaseLog) add(name string, ms float64) {
	if l.samples == nil {
		l.samples = make(map[string][]float64)
	}
	if _, ok := l.samples[name]; !ok {
		l.names = append(l.names, name)
	}
	l.samples[name] = append(l.samples[name], ms)
}

func (l *phaseLog) parts() []Part {
	var all []Part
	for _, n := range l.names {
		all = append(all, Part{Name: n, Value: median(l.samples[n])})
	}
	return all
}
