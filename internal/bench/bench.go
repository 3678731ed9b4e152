// Package bench measures godwit against two kinds of yardstick: the floor, a
// small C program that does only what KVM itself demands, and its peers, other
// VMMs that do the same job.
//
// A Case is one such comparison. Its contestants run in turn, round after
// round in the same minutes on the same machine, so that a figure stands next
// to the floor it is compared with and not next to one from another day. A
// Report holds the samples of all cases, as a table for people and as JSON for
// programs. Targets are shown as met or missed; they never fail a run.
//
// To add a case, write a function with the signature of Case.Run and add it to
// Cases.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/internal/version"
)

// Case is one benchmark.
type Case struct {
	// Name is what --only takes.
	Name string
	// What says in one line what is measured.
	What string
	// Explicit cases run only when they are asked for by name.
	Explicit bool
	// Run measures. Where the machine lacks something that the case needs,
	// the error is one from Skip.
	Run func(context.Context, *Env) (*Result, error)
}

// Cases lists all benchmarks in the order in which they run.
func Cases() []Case {
	return slices.Concat([]Case{
		{Name: "start", What: "start a VMM, run a guest that powers off at once, end", Run: runStart},
		{Name: "pio", What: "round trip of a port write to a device in the VMM", Run: runPortIO},
		{Name: "mmio", What: "round trip of an MMIO write to a device in the VMM", Run: runMMIO},
		{Name: "rss", What: "resident memory of the VMM beyond guest memory", Run: runRSS},
		{Name: "linux-boot", What: "processor time of the VMM process from start to Linux's init", Explicit: true, Run: runLinuxBoot},
	}, blockCases(), netCases(), vsockCases(), snapshotCases(), moveCases())
}

// Env is what a case gets to work with.
type Env struct {
	// Godwit is the path of the godwit binary to measure.
	Godwit string
	// Quick asks for a rough figure in little time.
	Quick bool
	// Kernel and Initrd are for the cases that boot Linux. Initrd may be
	// empty.
	Kernel, Initrd string
	// Dir is an empty folder that is removed after the case.
	Dir string

	progress func(format string, args ...any)
}

// rounds is how often each contestant runs.
func (e *Env) rounds(full, quick int) int {
	if e.Quick {
		return quick
	}
	return full
}

// Options choose what Run does.
type Options struct {
	// Only lists the cases to run; empty means all that are not explicit.
	Only []string
	// Quick asks for rough figures in little time.
	Quick bool
	// Godwit is the binary to measure; empty means the running program.
	Godwit string
	// Kernel and Initrd are for the cases that boot Linux.
	Kernel, Initrd string
	// Progress gets a line that is overwritten as the run goes on. It
	// should be a terminal; nil shows nothing.
	Progress io.Writer
}

// SkipError says that a case did not run, and why.
type SkipError struct{ Reason string }

// Error has the reason.
func (e *SkipError) Error() string { return "skipped: " + e.Reason }

// Skip makes the error of a case that cannot run here. The reason names what
// is missing.
func Skip(format string, args ...any) error {
	return &SkipError{Reason: fmt.Sprintf(format, args...)}
}

// Run runs the chosen cases one after the other. A case that fails is noted in
// the report and does not keep the others from running; the error is about the
// options, the context, or the folder for temporary files.
func Run(ctx context.Context, o Options) (*Report, error) {
	cases, err := choose(Cases(), o.Only)
	if err != nil {
		return nil, err
	}
	if o.Godwit == "" {
		if o.Godwit, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("benchmark: find my own binary: %w", err)
		}
	}
	r := &Report{Version: reportVersion, Date: time.Now().UTC().Truncate(time.Second), Commit: version.String(), Quick: o.Quick, Host: describeHost()}
	for i, c := range cases {
		p := progress{w: o.Progress, prefix: fmt.Sprintf("%d/%d %s", i+1, len(cases), c.Name)}
		outcome, err := runCase(ctx, c, o, p.show)
		p.clear()
		if err != nil {
			return nil, err
		}
		r.Cases = append(r.Cases, outcome)
	}
	return r, nil
}

func runCase(ctx context.Context, c Case, o Options, show func(string, ...any)) (CaseReport, error) {
	dir, err := os.MkdirTemp("", "godwit-bench-")
	if err != nil {
		return CaseReport{}, fmt.Errorf("benchmark %s: %w", c.Name, err)
	}
	defer os.RemoveAll(dir)
	show("starting")
	began := time.Now()
	result, err := c.Run(ctx, &Env{Godwit: o.Godwit, Quick: o.Quick, Kernel: o.Kernel, Initrd: o.Initrd, Dir: dir, progress: show})
	out := CaseReport{Name: c.Name, What: c.What, Seconds: time.Since(began).Seconds(), Result: result}
	var skip *SkipError
	switch {
	case ctx.Err() != nil:
		return out, ctx.Err()
	case errors.As(err, &skip):
		out.Skipped = skip.Reason
	case err != nil:
		out.Error = err.Error()
	default:
		result.conclude()
	}
	return out, nil
}

// choose picks the cases named in only, or all that are not explicit.
func choose(all []Case, only []string) ([]Case, error) {
	var chosen []Case
	for _, c := range all {
		if slices.Contains(only, c.Name) || len(only) == 0 && !c.Explicit {
			chosen = append(chosen, c)
		}
	}
	for _, name := range only {
		if !slices.ContainsFunc(all, func(c Case) bool { return c.Name == name }) {
			return nil, fmt.Errorf("no benchmark %q: there are %s", name, strings.Join(names(all), ", "))
		}
	}
	return chosen, nil
}

func names(cases []Case) []string {
	var all []string
	for _, c := range cases {
		all = append(all, c.Name)
	}
	return all
}

// progress is one line of a terminal that is written over.
type progress struct {
	w      io.Writer
	prefix string
}

const eraseLine = "\r\x1b[K"

func (p *progress) show(format string, args ...any) {
	if p.w != nil {
		fmt.Fprintf(p.w, eraseLine+"%s: %s", p.prefix, fmt.Sprintf(format, args...))
	}
}

func (p *progress) clear() {
	if p.w != nil {
		fmt.Fprint(p.w, eraseLine)
	}
}
