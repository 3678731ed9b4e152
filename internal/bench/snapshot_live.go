package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
)

// What a live snapshot may cost (issue 4, speed).
const (
	// livePause is for 99 pauses of 100, in ms.
	livePause = 10.0
	// liveTime is of what plain writes of the same bytes take: 80% of their rate.
	liveTime = 1 / 0.8
)

const (
	liveMemory = 1 << 30
	// liveRate is how fast the guest writes to its memory, in bytes a second.
	liveRate = 200e6
	// liveSlack is how much lost time the guest makes up for, in ms.
	liveSlack  = 5
	plainName  = "plain writes"
	plainWrite = 1 << 20
)

// liveRun is the guest of the case, and what is known of its snapshots.
type liveRun struct {
	env    *Env
	guest  *readyGuest
	khz    float64
	plain  []byte // what plain writes write
	bytes  uint64 // of the last snapshot
	pauses []float64
	stalls []float64
	rests  []float64 // MiB
	parts  map[string][]float64
}

// runSnapshotLive takes snapshots of a guest that goes on writing, in turn with plain
// writes of as many bytes to the same file system while the same guest runs.
func runSnapshotLive(ctx context.Context, e *Env) (*Result, error) {
	r := &Result{Metrics: []*Metric{
		{Name: "time", Unit: "ms per 100 MB", goals: []goal{atMostTimes(godwitName, liveTime, plainName)}},
	}}
	l, program, err := startLive(ctx, e)
	if err != nil {
		return nil, err
	}
	defer l.guest.close()
	if _, err := l.snapshot(ctx); err != nil { // tells how many bytes there are to write
		return nil, err
	}
	before, began := l.word(pacedPages), time.Now()
	pauses := &Metric{Name: "pause", Unit: "ms", goals: []goal{atMostQuantile(godwitName, 0.99, livePause)}}
	stalls := &Metric{Name: "longest standstill that the guest saw", Unit: "ms"}
	all := []contestant{{name: plainName, run: l.write}, {name: godwitName, run: l.snapshot}}
	l.pauses, l.stalls, l.rests, l.parts = nil, nil, nil, make(map[string][]float64)
	if err := r.compete(ctx, e, e.rounds(40, 5), all...); err != nil {
		return nil, err
	}
	rate := float64(l.word(pacedPages)-before) * memory.PageSize / time.Since(began).Seconds() / 1e6
	r.Notes = append(r.Notes, fmt.Sprintf("the guest has written %s MB/s on average meanwhile; it is to write %g, and loses what the host's other load takes", number(rate), liveRate/1e6))
	// The first is the one that warms up.
	pauses.Series = []*Series{{Contestant: godwitName, Samples: l.pauses[1:]}}
	stalls.Series = []*Series{{Contestant: godwitName, Samples: l.stalls[1:]}}
	rests := &Metric{Name: "copied within the pause", Unit: "MiB", Series: []*Series{{Contestant: godwitName, Samples: l.rests[1:]}}}
	r.Metrics = append(r.Metrics, pauses, stalls, rests)
	for _, name := range []string{"copying but for the pause", "pause", "checksums, fsync and rename"} {
		r.Parts = append(r.Parts, Part{Name: name, Value: median(l.parts[name])})
	}
	l.guest.Kill(nil)
	return r, r.qemuLive(ctx, e, program)
}

// startLive starts the guest.
func startLive(ctx context.Context, e *Env) (l *liveRun, program string, err error) {
	l = &liveRun{env: e, plain: slices.Repeat([]byte{0x5a}, plainWrite)}
	build := func(micro.Stop) ([]byte, error) {
		return pacedWriter(uint64(l.khz*1e3*memory.PageSize/liveRate), uint64(l.khz*liveSlack))
	}
	if l.khz, err = hostTSCKHz(); err != nil {
		return nil, "", err
	}
	if program, err = writeProgram(e, "paced.elf", build, nil); err != nil {
		return nil, "", err
	}
	e.progress("starting the guest")
	l.guest, err = startReady(ctx, e, program, liveMemory)
	return l, program, err
}

// snapshot takes one, and notes how it was for the guest.
func (l *liveRun) snapshot(ctx context.Context) ([]float64, error) {
	dir := filepath.Join(l.env.Dir, "live")
	defer os.RemoveAll(dir)
	if err := l.setWord(pacedStall, 0); err != nil {
		return nil, err
	}
	began := time.Now()
	report, err := l.guest.Snapshot(ctx, vmm.SnapshotRequest{Path: dir, Live: true})
	total := time.Since(began)
	if err != nil {
		return nil, err
	}
	l.bytes = report.Bytes
	l.pauses = append(l.pauses, milliseconds(report.Pause))
	l.rests = append(l.rests, float64(report.Rest)/(1<<20))
	l.stalls = append(l.stalls, ratio(float64(l.word(pacedStall)), l.khz))
	for name, d := range map[string]time.Duration{
		"copying but for the pause": report.Total - report.Pause, "pause": report.Pause,
		"checksums, fsync and rename": total - report.Total,
	} {
		l.note(name, d)
	}
	return []float64{l.each(total)}, nil
}

func (l *liveRun) note(name string, d time.Duration) {
	if l.parts != nil {
		l.parts[name] = append(l.parts[name], l.each(d))
	}
}

// write puts as many bytes as the last snapshot had to the disk.
func (l *liveRun) write(ctx context.Context) ([]float64, error) {
	path := filepath.Join(l.env.Dir, "plain")
	defer os.Remove(path)
	began := time.Now()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for at := uint64(0); at < l.bytes; at += plainWrite {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := f.WriteAt(l.plain[:min(plainWrite, l.bytes-at)], int64(at)); err != nil {
			return nil, err
		}
	}
	err = f.Sync()
	return []float64{l.each(time.Since(began))}, err
}

// each is the time for 100 MB of the last snapshot's bytes, in ms.
func (l *liveRun) each(d time.Duration) float64 {
	return ratio(milliseconds(d), float64(l.bytes)/1e8)
}

// word reads a word of the guest's; it is 0 when the guest is gone.
func (l *liveRun) word(gpa memory.GPA) (v uint64) {
	_ = l.guest.Use(func(m *machine.Machine) (err error) {
		v, err = m.Memory().Uint64(gpa)
		return err
	})
	return v
}

func (l *liveRun) setWord(gpa memory.GPA, v uint64) error {
	return l.guest.Use(func(m *machine.Machine) error { return m.Memory().PutUint64(gpa, v) })
}

// atMostQuantile is the goal that a share q of a contestant's samples does not exceed
// limit.
func atMostQuantile(contestant string, q, limit float64) goal {
	return func(m *Metric) (Target, bool) {
		s := m.find(contestant)
		if s == nil || len(s.Samples) == 0 {
			return Target{}, false
		}
		v := quantile(slices.Sorted(slices.Values(s.Samples)), q)
		what := fmt.Sprintf("%s <= %g %s in %g of 100", contestant, limit, m.Unit, math.Round(100*q))
		return Target{What: what, Value: v, Limit: limit, Met: v <= limit}, true
	}
}

// hostTSCKHz is the frequency of the time stamp counter that guests see.
func hostTSCKHz() (float64, error) {
	sys, err := kvm.Open("")
	if err != nil {
		return 0, Skip("%v", err)
	}
	defer sys.Close()
	return tscKHz(sys)
}

// syncFile puts a file on the disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// qemuLive migrates the same guest to a file in QEMU. It runs after godwit's, and not
// in turn with it: two guests that write would be in each other's way. It adds to the
// figures what QEMU says of its own.
func (r *Result) qemuLive(ctx context.Context, e *Env, program string) error {
	times := &Series{Contestant: microvmName}
	pauses := &Series{Contestant: microvmName}
	err := func() error {
		q, err := startQMP(ctx, e, program, liveMemory>>20)
		if err != nil {
			return err
		}
		defer q.close()
		for n := range e.rounds(10, 2) {
			e.progress("round %d: %s", n, microvmName)
			began := time.Now()
			m, err := q.migrate(ctx, filepath.Join(e.Dir, "live-qemu"))
			if err == nil {
				err = syncFile(filepath.Join(e.Dir, "live-qemu"))
			}
			if err != nil {
				return err
			}
			took := time.Since(began)
			times.Samples = append(times.Samples, ratio(milliseconds(took), m.RAM.Transferred/1e8))
			pauses.Samples = append(pauses.Samples, m.Downtime)
			if err := errors.Join(os.Remove(filepath.Join(e.Dir, "live-qemu")), q.do("cont", nil, nil)); err != nil {
				return err
			}
		}
		return nil
	}()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("%s left out: %v", microvmName, err))
		return nil
	}
	r.Metrics[0].Series = append(r.Metrics[0].Series, times)
	r.Metrics[1].Series = append(r.Metrics[1].Series, pauses)
	return nil
}
