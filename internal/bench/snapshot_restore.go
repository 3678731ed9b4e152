package bench

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/godwit-vmm/godwit/guest/micro"
)

// restoreAboveFloor is what a restore may cost more than the floor, in ms (issue 4,
// speed).
const restoreAboveFloor = 3.0

// snapshotCases are the cases about snapshots.
func snapshotCases() []Case {
	return []Case{
		{Name: "restore", What: "restore a guest from a snapshot, run it until it powers off at once, end", Run: runRestore},
		{Name: "snapshot-live", What: "take a snapshot of a guest that goes on writing 200 MB/s", Run: runSnapshotLive},
		{Name: "clone", What: "restore many guests from one snapshot, which stay", Run: runClone},
	}
}

// runRestore measures whole processes that restore the same guest, once with little and
// once with much memory: from fork to the first that the guest does, which is to write a
// byte that comes out at the process's standard output, and from fork to wait.
func runRestore(ctx context.Context, e *Env) (*Result, error) {
	program, err := writeProgram(e, "waiter.elf", func(micro.Stop) ([]byte, error) { return waiter() }, nil)
	if err != nil {
		return nil, err
	}
	floor, err := buildRestoreFloor(ctx, e)
	if err != nil {
		return nil, err
	}
	godwit, removeDir, err := installed(e)
	if err != nil {
		return nil, err
	}
	defer removeDir()
	small, err := newRestorePair(ctx, e, program, floor, godwit, 1)
	if err != nil {
		return nil, err
	}
	large, err := newRestorePair(ctx, e, program, floor, godwit, 8)
	if err != nil {
		return nil, err
	}
	r := &Result{Metrics: []*Metric{
		{Name: "to the first instruction", Unit: "ms", goals: []goal{
			atMostAbove(small.godwit.name, small.floor.name, restoreAboveFloor),
			atMostAbove(large.godwit.name, large.floor.name, restoreAboveFloor),
			// The floor's own time depends on the size: a KVM without nested
			// paging allocates a map of all pages.
			sameExcess(large.godwit.name, large.floor.name, small.godwit.name, small.floor.name),
		}},
		{Name: "to the end", Unit: "ms"},
		{Name: "user + system", Unit: "ms"},
	}}
	err = r.compete(ctx, e, e.rounds(25, 5), small.floor, small.godwit, large.floor, large.godwit, qemuRestore(ctx, e, program))
	if err != nil {
		return nil, err
	}
	phases := new(phaseLog)
	for range e.rounds(15, 5) {
		e.progress("where the time goes")
		if err := phases.run(ctx, e, godwit, small.command[1:]...); err != nil {
			return nil, err
		}
	}
	r.Parts = phases.parts()
	return r, nil
}

// restorePair is those who restore the same snapshot.
type restorePair struct {
	floor, godwit contestant
	command       []string // godwit's
}

// newRestorePair makes the snapshot of a guest with so many GiB of memory.
func newRestorePair(ctx context.Context, e *Env, program, floor, godwit string, gib uint64) (*restorePair, error) {
	size := fmt.Sprintf("%d GiB", gib)
	s, err := saveWaiter(ctx, e, program, fmt.Sprintf("snapshot-%d", gib), gib<<30)
	if err != nil {
		return nil, err
	}
	p := &restorePair{command: restoreCommand(godwit, s.dir)}
	p.floor = processContestant(e, floorName+", "+size, floor, s.floorState, s.memory)
	p.godwit = processContestant(e, godwitName+", "+size, p.command...)
	return p, nil
}

// processContestant runs a program whose first output counts.
func processContestant(e *Env, name string, argv ...string) contestant {
	return contestant{name: name, run: func(ctx context.Context) ([]float64, error) {
		c, err := runUntilOutput(ctx, e.Dir, 0, argv...)
		return append([]float64{milliseconds(c.first)}, c.milliseconds()...), err
	}}
}

func restoreCommand(godwit, dir string, more ...string) []string {
	return append([]string{godwit, "restore", dir, "--allow-software-kvm"}, more...)
}

// sameExcess is the goal that a contestant exceeds its reference by as much as another
// one does, to within what that excess differs from round to round: the distance of
// its quartiles.
func sameExcess(contestant, reference, other, otherReference string) goal {
	return func(m *Metric) (Target, bool) {
		var samples [4][]float64
		for i, name := range []string{contestant, reference, other, otherReference} {
			s := m.find(name)
			if s == nil {
				return Target{}, false
			}
			samples[i] = s.Samples
		}
		its, others := excess(samples[0], samples[1]), excess(samples[2], samples[3])
		spread := summarize(others)
		t := Target{Value: paired(its, others, difference), Limit: spread.Q3 - spread.Q1}
		t.What = fmt.Sprintf("%s above its floor is %s above its own, to within its quartiles", contestant, other)
		t.Met = t.Value <= t.Limit
		return t, true
	}
}

// excess is by how much the samples exceed those of a reference, round by round.
func excess(samples, reference []float64) []float64 {
	var all []float64
	for i := range min(len(samples), len(reference)) {
		all = append(all, samples[i]-reference[i])
	}
	return all
}

// qemuRestore is QEMU, which reads the memory of the guest from a file.
func qemuRestore(ctx context.Context, e *Env, program string) contestant {
	const mib = 1024
	file := filepath.Join(e.Dir, "migration")
	err := saveInQEMU(ctx, e, program, mib, file)
	// What the guest writes to this port comes out at QEMU's standard output, or ends QEMU.
	const port = "iobase=0xf4"
	says := []string{"-device", "isa-debugcon," + port + ",chardev=said", "-chardev", "stdio,id=said"}
	ends := []string{"-device", "isa-debug-exit," + port + ",iosize=4"}
	command := func(more []string) ([]string, error) {
		return pausableQEMU(mib, append(more, "-serial", "null", "-kernel", program, "-incoming", "exec:cat "+file)...)
	}
	return contestant{name: microvmName + ", 1 GiB", peer: true, run: func(ctx context.Context) ([]float64, error) {
		if err != nil {
			return nil, err
		}
		argv, err := command(says)
		if err != nil {
			return nil, err
		}
		first, err := runUntilOutput(ctx, e.Dir, killed, argv...)
		if err != nil {
			return nil, err
		}
		if argv, err = command(ends); err != nil {
			return nil, err
		}
		c, err := runProcess(ctx, e.Dir, debugExitStatus, argv...)
		return append([]float64{milliseconds(first.first)}, c.milliseconds()...), err
	}}
}
