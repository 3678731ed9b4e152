package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/memory"
)

const (
	// postCopyUsed is the memory that the guest writes to all the time, and
	// postCopyBandwidth how fast it may be copied, in bytes a second: slower than the
	// guest writes, which then gets to pages that are not there yet.
	postCopyUsed      = 64 << 20
	postCopyBandwidth = "40M"
	// stallTimes is how long 99 waits in 100 may take, as a multiple of a round trip with
	// a page (issue 5, speed).
	stallTimes = 3
	roundTrips = 2000
	onePage    = "a page asked for in Go"
)

// runMigratePostCopy has a guest move that runs on before its memory is there, and looks
// at how long it waits for pages.
func runMigratePostCopy(ctx context.Context, e *Env) (*Result, error) {
	khz, err := hostTSCKHz()
	if err != nil {
		return nil, err
	}
	build := func(micro.Stop) ([]byte, error) { return watcher(khz, postCopyUsed, writingRate, watcherSlack) }
	program, err := writeProgram(e, "writing.elf", build, nil)
	if err != nil {
		return nil, err
	}
	t, remove, err := startTraveller(ctx, e, program, postCopyUsed+2*guestMargin, saidReady())
	if err != nil {
		return nil, err
	}
	defer remove()
	r := &Result{Metrics: []*Metric{
		{Name: "wait for a page, 99 of 100 (Go: half)", Unit: "ms", goals: []goal{atMostTimes(godwitName, stallTimes, onePage)}},
		{Name: "wait for a page, half", Unit: "ms"},
		{Name: "longest wait for a page (Go: half)", Unit: "ms"},
	}}
	var downtimes, asked []float64
	move := func(ctx context.Context) ([]float64, error) {
		h, err := t.move(ctx, "--postcopy", "now", "--downtime", "1ms", "--bandwidth", postCopyBandwidth)
		if err != nil {
			return nil, err
		}
		p := h.PostCopy
		if p == nil || p.Faults == 0 {
			return nil, errors.New("the guest did not wait for a page: it moved as others do")
		}
		downtimes = append(downtimes, milliseconds(h.Downtime.Total))
		asked = append(asked, float64(p.Faults))
		return []float64{milliseconds(p.P99), milliseconds(p.P50), milliseconds(p.Longest)}, nil
	}
	floor := func(ctx context.Context) ([]float64, error) {
		half, err := pageRoundTrip(ctx, e)
		return []float64{half, half, half}, err
	}
	if err := r.compete(ctx, e, e.rounds(10, 2), contestant{name: onePage, run: floor}, contestant{name: godwitName, run: move}); err != nil {
		return nil, err
	}
	r.Notes = append(r.Notes, fmt.Sprintf("the guest writes 100 MB/s to %d MiB, which follow at 40 MiB/s; it stood still for %s ms and waited %s times (medians)",
		postCopyUsed>>20, number(median(downtimes)), number(median(asked))))
	return r, nil
}

// pageRoundTrip is how long it takes to ask another process for a page over TCP and to get
// it, in ms: half of the times no longer.
func pageRoundTrip(ctx context.Context, e *Env) (float64, error) {
	from, match, err := startChild(ctx, saidCopyAddress(), e.Godwit, "bench", "serve-pages")
	if err != nil {
		return 0, err
	}
	defer from.kill()
	c, err := net.Dial("tcp", match[1])
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(processLimit)); err != nil {
		return 0, err
	}
	var ask [pageQuestion]byte
	var page [memory.PageSize]byte
	var took []float64
	for range roundTrips {
		began := time.Now()
		if _, err := c.Write(ask[:]); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, page[:]); err != nil {
			return 0, err
		}
		took = append(took, milliseconds(time.Since(began)))
	}
	slices.Sort(took)
	return quantile(took, 0.5), nil
}

// pageQuestion is how many bytes ask for a page.
const pageQuestion = 16

// ServePages answers each question of one client with a page, until that is gone. It
// announces where it listens, on this host only, in a line.
func ServePages(announce io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	if _, err := fmt.Fprintf(announce, "%s%s\n", copyAddress, l.Addr()); err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	var ask [pageQuestion]byte
	var page [memory.PageSize]byte
	for {
		if _, err := io.ReadFull(c, ask[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if _, err := c.Write(page[:]); err != nil {
			return err
		}
	}
}
