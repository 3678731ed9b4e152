package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/hostmem"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// streamTime is how much longer memory may take to move than to be copied (issue 5,
// speed): 85% of the rate.
const streamTime = 1 / 0.85

// The floors of a migration, and QEMU's two ways.
const (
	copyFresh    = "Go copy to fresh memory"
	copyBuffer   = "Go copy to a buffer"
	qemuMultifd  = "QEMU microvm, multifd"
	guestMargin  = 32 << 20 // memory that a guest leaves alone
	memoryCopies = 6        // how often the memory of a guest is there at most
)

// moveCases are the cases about live migration.
func moveCases() []Case {
	return []Case{
		{Name: "migrate-stream", What: "memory of an idle guest that moves to another process over TCP", Run: runMigrateStream},
		{Name: "migrate-downtime", What: "how long a guest of 1 GiB stands still that moves, as it sees it", Run: runMigrateDowntime},
		{Name: "migrate-again", What: "a guest that moves there and back, again and again", Run: runMigrateAgain},
		{Name: "migrate-converge", What: "a guest that writes faster than it is copied, slowed down until it has moved", Run: runMigrateConverge},
		{Name: "migrate-postcopy", What: "how long a guest waits for pages that follow it", Run: runMigratePostCopy},
		{Name: "migrate-local", What: "how long a guest stands still that moves to another process of its host", Run: runMigrateLocal},
	}
}

// streamRun is the case migrate-stream.
type streamRun struct {
	env  *Env
	t    *traveller
	q    *qemuTraveller // nil without QEMU
	copy *plainCopy
	cert *certificate
	// parts of a move of godwit's, in ms.
	parts map[string][]float64
}

// runMigrateStream has a guest move from process to process, in turn with plain copies of
// as much memory between two processes, and QEMU with the same guest. The guests are
// paused: an idle guest uses no processor time, and a micro-guest cannot wait for
// anything.
func runMigrateStream(ctx context.Context, e *Env) (*Result, error) {
	size, err := streamSize(e)
	if err != nil {
		return nil, err
	}
	s := &streamRun{env: e, parts: make(map[string][]float64)}
	r := &Result{Metrics: []*Metric{{
		Name: "time", Unit: "ms per 100 MB",
		goals: []goal{atMostTimes(godwitName, streamTime, copyFresh), atMostTimes(godwitName, streamTime, copyBuffer)},
	}}}
	if s.cert, err = newCertificate(e.Dir); err != nil {
		return nil, err
	}
	from, err := memory.New(memory.Options{Size: size - guestMargin})
	if err != nil {
		return nil, err
	}
	defer from.Close()
	s.copy = &plainCopy{env: e, mem: from.Regions()[0].Mem, connections: live.DefaultConnections}
	fill(s.copy.mem)
	remove, err := s.start(ctx, r, size)
	if err != nil {
		return nil, err
	}
	defer remove()
	secure := &Result{Metrics: []*Metric{{
		Name: "with TLS", Unit: "ms per 100 MB",
		goals: []goal{atMostTimes(godwitName, streamTime, copyFresh), atMostTimes(godwitName, streamTime, copyBuffer)},
	}}}
	if err := r.compete(ctx, e, e.rounds(10, 2), s.contestants(nil)...); err != nil {
		return nil, err
	}
	for _, name := range []string{"connect and checks", "memory", "standstill"} {
		r.Parts = append(r.Parts, Part{Name: name, Value: median(s.parts[name])})
	}
	if err := secure.compete(ctx, e, e.rounds(10, 2), s.contestants(s.cert)...); err != nil {
		return nil, err
	}
	r.Metrics = append(r.Metrics, secure.Metrics...)
	r.Notes = append(r.Notes, fmt.Sprintf("a guest of %d MiB over %d connections; QEMU's time has its standstill in it, in which it sends the last of its memory", size>>20, live.DefaultConnections))
	return r, nil
}

// streamSize is the size of the guest: 2 GiB, or 1 GiB where there is not enough memory.
func streamSize(e *Env) (uint64, error) {
	if e.Quick {
		return 256 << 20, nil
	}
	for _, size := range []uint64{2 << 30, 1 << 30} {
		if hostmem.Enough(memoryCopies*size, false) == nil {
			return size, nil
		}
	}
	return 0, Skip("needs 6 GiB of free memory")
}

// fill writes to all pages, none of which is zero then.
func fill(mem []byte) {
	pattern := slices.Repeat([]byte{0x5a}, copyPiece)
	for at := 0; at < len(mem); at += copy(mem[at:], pattern) {
	}
}

// start starts the guests and pauses them.
func (s *streamRun) start(ctx context.Context, r *Result, size uint64) (remove func(), _ error) {
	khz, err := hostTSCKHz()
	if err != nil {
		return nil, err
	}
	build := func(micro.Stop) ([]byte, error) { return watcher(khz, size-guestMargin, heartbeat, watcherSlack) }
	program, err := writeProgram(s.env, "watcher.elf", build, nil)
	if err != nil {
		return nil, err
	}
	t, removeGodwit, err := startTraveller(ctx, s.env, program, size, saidReady())
	if err != nil {
		return nil, err
	}
	s.t = t
	if _, err := runProcess(ctx, s.env.Dir, 0, t.godwit, "pause", t.name); err != nil {
		removeGodwit()
		return nil, err
	}
	s.q, err = startQEMUTraveller(ctx, s.env, program, size, false)
	if err == nil {
		err = s.q.at.do("stop", nil, nil)
	}
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("%s left out: %v", microvmName, err))
		s.q.close()
		s.q = nil
	}
	return func() {
		s.q.close()
		removeGodwit()
	}, nil
}

// contestants are those without TLS, or with it.
func (s *streamRun) contestants(c *certificate) []contestant {
	plain := func(fresh bool) func(context.Context) ([]float64, error) {
		return func(ctx context.Context) ([]float64, error) {
			took, err := s.copy.run(ctx, fresh, c)
			return each(took, uint64(len(s.copy.mem))), err
		}
	}
	all := []contestant{
		{name: copyFresh, run: plain(true)},
		{name: copyBuffer, run: plain(false)},
		{name: godwitName, run: func(ctx context.Context) ([]float64, error) { return s.move(ctx, c) }},
	}
	if c != nil || s.q == nil {
		return all
	}
	qemu := func(multifd bool) func(context.Context) ([]float64, error) {
		return func(ctx context.Context) ([]float64, error) {
			m, err := s.q.move(ctx, qemuMove{multifd: multifd})
			return each(m.memoryTime(), uint64(m.RAM.Transferred)), err
		}
	}
	return append(all,
		contestant{name: microvmName, peer: true, run: qemu(false)},
		contestant{name: qemuMultifd, peer: true, run: qemu(true)})
}

// move has godwit's guest move once.
func (s *streamRun) move(ctx context.Context, c *certificate) ([]float64, error) {
	s.t.secure = nil
	if c != nil {
		s.t.secure = c.flags()
	}
	h, err := s.t.move(ctx, "--connections", strconv.Itoa(live.DefaultConnections))
	if err != nil {
		return nil, err
	}
	if c == nil {
		for name, d := range map[string]time.Duration{
			"connect and checks": h.Total - h.copying - h.Downtime.Total, "memory": h.copying, "standstill": h.Downtime.Total,
		} {
			s.parts[name] = append(s.parts[name], each(d, h.Bytes)...)
		}
	}
	return each(h.copying, h.Bytes), nil
}

// each is the time for 100 MB, in ms.
func each(d time.Duration, bytes uint64) []float64 {
	return []float64{ratio(milliseconds(d), float64(bytes)/1e8)}
}
