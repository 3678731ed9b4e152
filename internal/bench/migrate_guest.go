package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// A watcher is a guest that reads its time stamp counter all the time and notes when it
// stood still. This is where, in the page before the memory that it uses: 64-bit words.
const (
	watcherPage = usedStart - memory.PageSize
	// watcherWrites counts the pages that it has written at its pace. It grows
	// only while the guest runs.
	watcherWrites = watcherPage
	// watcherGaps counts the gaps between two looks at the counter of more than
	// watcherLeast, and watcherLongest is the longest, in ticks.
	watcherGaps    = watcherPage + 8
	watcherLongest = watcherPage + 16
	// watcherRing has the last gaps: gap n is word n modulo watcherKept.
	watcherRing = watcherPage + memory.PageSize/2
	watcherKept = memory.PageSize / 2 / 8
	// watcherLeast is in ms.
	watcherLeast = 0.1
	// watcherSlack is how much lost time the guest makes up for, in ms, where it is not to
	// be slowed down.
	watcherSlack = 5
)

// heartbeat is how fast an idle guest writes to its memory: a page in 20 ms, by which it
// is seen to be alive. In bytes a second.
const heartbeat = 50 * memory.PageSize

// watcher uses so many bytes of its memory, of which no word is zero afterwards, says so,
// and then writes whole pages of it one after the other, at a rate in bytes a second, or
// as fast as it can where rate is 0.
//
// Time in which it could not write, it makes up for, up to slackTime, in ms.
func watcher(khz float64, used uint64, rate, slackTime float64) ([]byte, error) {
	ticks := uint64(0)
	if rate > 0 {
		ticks = uint64(khz * 1e3 * memory.PageSize / rate)
	}
	return assemble(func(a *micro.Asm) {
		const result, start, end, period, next, last = micro.R15, micro.R14, micro.R13, micro.R12, micro.R9, micro.R8
		const page, value, slack, oldest, least = micro.RBX, micro.RBP, micro.R10, micro.R11, micro.RSI
		a.MovImm(result, watcherPage)
		a.MovImm(start, usedStart)
		a.MovImm(end, usedStart+used)
		a.MovImm(period, ticks)
		a.MovImm(slack, uint64(khz*slackTime))
		a.MovImm(least, uint64(khz*watcherLeast))
		a.MovImm(value, 1)
		a.Mov(micro.RDI, start)
		a.MovImm(micro.RCX, used/8)
		a.Mov(micro.RAX, value)
		a.RepStosq()
		say(a)

		now(a)
		a.Mov(last, micro.RDX)
		a.Mov(next, micro.RDX)
		pass := a.Here()
		a.Inc(value)
		a.Mov(page, start)
		wait, punctual := a.Here(), a.NewLabel()
		now(a)
		noteGap(a, result, last, least)
		a.Op(micro.Cmp, micro.RDX, next)
		a.Jcc(micro.Below, wait)
		a.Op(micro.Add, next, period)
		a.Mov(oldest, micro.RDX)
		a.Op(micro.Sub, oldest, slack)
		a.Op(micro.Cmp, next, oldest)
		a.Jcc(micro.AboveEqual, punctual)
		a.Mov(next, oldest)
		a.Bind(punctual)
		a.Mov(micro.RDI, page)
		a.MovImm(micro.RCX, memory.PageSize/8)
		a.Mov(micro.RAX, value)
		a.RepStosq()
		a.OpMemImm(micro.Add, micro.Quad, micro.Mem{Base: result}, 1)
		a.OpImm(micro.Add, page, memory.PageSize)
		a.Op(micro.Cmp, page, end)
		a.Jcc(micro.Below, wait)
		a.Jmp(pass)
	})
}

// noteGap has the guest note how long ago last was, if that is long, and makes last the
// time in RDX. It changes RAX, RCX and RDI.
func noteGap(a *micro.Asm, result, last, least micro.Reg) {
	short, known := a.NewLabel(), a.NewLabel()
	at := func(gpa int32) micro.Mem { return micro.Mem{Base: result, Disp: gpa - watcherPage} }
	a.Mov(micro.RAX, micro.RDX)
	a.Op(micro.Sub, micro.RAX, last)
	a.Mov(last, micro.RDX)
	a.Op(micro.Cmp, micro.RAX, least)
	a.Jcc(micro.BelowEqual, short)
	a.Load(micro.Quad, micro.RCX, at(watcherGaps))
	a.Mov(micro.RDI, micro.RCX)
	a.OpImm(micro.And, micro.RDI, watcherKept-1)
	a.Shl(micro.RDI, 3)
	a.Op(micro.Add, micro.RDI, result)
	a.Store(micro.Quad, micro.Mem{Base: micro.RDI, Disp: watcherRing - watcherPage}, micro.RAX)
	a.OpMem(micro.Cmp, micro.RAX, at(watcherLongest))
	a.Jcc(micro.BelowEqual, known)
	a.Store(micro.Quad, at(watcherLongest), micro.RAX)
	a.Bind(known)
	a.Inc(micro.RCX)
	a.Store(micro.Quad, at(watcherGaps), micro.RCX)
	a.Bind(short)
}

// traveller is a guest in a godwit of its own, which moves from process to process.
type traveller struct {
	env    *Env
	godwit string
	memory uint64
	// secure are the flags about TLS of godwit receive and godwit migrate.
	secure []string
	// local has it move within this host, by a unix socket.
	local bool

	at   *child
	name string // of the guest, where it is
	hops int
}

// saidReady is what a guest's say looks like on its console, of which messages of
// godwit's are no part. (A variable would be made at each start of a godwit.)
func saidReady() *regexp.Regexp { return regexp.MustCompile(`(?m)^\.`) }

// saidAddress is what godwit receive says.
func saidAddress() *regexp.Regexp { return regexp.MustCompile(`waiting for guests at (\S+)\n`) }

// startTraveller starts a guest and waits until ready matches what is on its console; nil
// is for a ready program, and waits for its first round. remove ends it.
func startTraveller(ctx context.Context, e *Env, program string, memory uint64, ready *regexp.Regexp) (t *traveller, remove func(), err error) {
	runtime.LockOSThread() // see startChild
	godwit, removeDir, err := installed(e)
	if err != nil {
		return nil, nil, err
	}
	// Each has a journal of its own: the guest before may have ended on the other host.
	state, err := os.MkdirTemp(e.Dir, "state-")
	if err != nil {
		removeDir()
		return nil, nil, err
	}
	restore, err := withVariable("GODWIT_STATE_DIR", state)
	if err != nil {
		removeDir()
		return nil, nil, err
	}
	t = &traveller{env: e, godwit: godwit, memory: memory}
	t.name = t.nameAt(0)
	remove = func() {
		if t.at != nil {
			t.at.kill()
		}
		restore()
		removeDir()
		_ = os.Remove(godwit) // the case may start another
		runtime.UnlockOSThread()
	}
	e.progress("starting the guest")
	t.at, _, err = startChild(ctx, ready, godwit, "boot", "--allow-software-kvm", "--name", t.name,
		"--memory", strconv.FormatUint(memory>>20, 10)+"M", "--kernel", program)
	if err == nil && ready == nil {
		err = t.begun(ctx)
	}
	if err != nil {
		remove()
		return nil, nil, err
	}
	return t, remove, nil
}

// begun waits until a ready program has made its first round.
func (t *traveller) begun(ctx context.Context) error {
	return poll(ctx, readyLimit, func() (bool, error) {
		select {
		case <-t.at.ended:
			return false, fmt.Errorf("godwit boot has ended: %s", tail(t.at.said.String()))
		default:
		}
		words, err := t.words()
		if err != nil {
			return false, nil // not yet
		}
		defer words.close()
		r, err := words.result()
		return r.Count > 0, err
	})
}

// nameAt is the name that the guest has after so many moves: there and back.
func (t *traveller) nameAt(hops int) string { return [...]string{"bench-here", "bench-there"}[hops%2] }

func (t *traveller) pid() int { return t.at.cmd.Process.Pid }

// words opens the guest's memory, where the guest is now.
func (t *traveller) words() (*guestWords, error) { return openGuestWords(t.pid(), t.memory) }

// hop is a move of a guest.
type hop struct {
	live.Report
	// copying is from the first byte of memory to the pause, and whole the time of
	// godwit migrate.
	copying, whole time.Duration
}

// move has the guest move to another process, with flags for godwit migrate. If it does
// not, it is where it was.
func (t *traveller) move(ctx context.Context, flags ...string) (*hop, error) {
	receive := append([]string{t.godwit, "receive", "--allow-software-kvm"}, append(t.receiving(), t.secure...)...)
	to, match, err := startChild(ctx, saidAddress(), receive...)
	if err != nil {
		return nil, err
	}
	migrate := append([]string{t.godwit, "migrate", t.name, match[1], "--json"}, append(flags, t.secure...)...)
	c, err := runProcess(ctx, t.env.Dir, 0, migrate...)
	if err != nil {
		to.kill()
		return nil, err
	}
	h, err := readHop(c.out)
	if err == nil {
		err = t.at.wait(ctx)
	}
	if err != nil {
		to.kill()
		return nil, err
	}
	h.whole = c.wall
	t.hops++
	t.at = to
	if !t.local {
		t.name = t.nameAt(t.hops)
	}
	return h, nil
}

// readHop reads what godwit migrate --json says.
func readHop(text string) (*hop, error) {
	h := &hop{}
	var from, to time.Duration
	for line := range strings.Lines(text) {
		var s api.MigrationStatus
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			return nil, fmt.Errorf("godwit migrate: %w", err)
		}
		switch {
		case s.Error != "":
			return nil, errors.New(s.Error)
		case s.Report != nil:
			h.Report = *s.Report
		case s.Progress == nil:
		case s.Progress.Phase == live.PhaseCopy && from == 0:
			from = s.Progress.Elapsed
		case s.Progress.Phase == live.PhaseStop && to == 0:
			to = s.Progress.Elapsed
		}
	}
	if h.Shared > 0 {
		return h, nil
	}
	if h.Report.Total == 0 || from == 0 || to <= from {
		return nil, fmt.Errorf("godwit migrate has not said when the guest was copied: %s", tail(text))
	}
	h.copying = to - from
	return h, nil
}
