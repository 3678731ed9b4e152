package live

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/memory/uffd"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// pagingWorkers is how many pages are asked for at a time: no fewer than a guest has
// processors and devices that wait, as a rule.
const pagingWorkers = 32

// errPagingOver is why nothing is brought any more.
var errPagingOver = errors.New("the migration has ended")

// Paging brings the memory of a guest that runs before all of it is there. Nothing here
// touches that memory: see package uffd. Any goroutine may call its methods.
type Paging struct {
	d       *destination
	mem     *memory.Guest
	fetcher *stream.Fetcher
	// links ends the connections.
	links   context.Context
	hangUp  context.CancelCauseFunc
	told    chan struct{} // closed when the source knows of the end
	telling sync.Once

	mu sync.Mutex
	// fd and server are there from the first list of pages on; stop ends the server,
	// which closes served.
	fd     *uffd.FD
	server *uffd.Server
	stop   context.CancelFunc
	served chan struct{}
	// ended is set, and over closed, when nothing is brought any more.
	ended bool
	over  chan struct{}
	// started is set when the guest runs. cut is why there was no connection the last
	// time that there was none, and lost why the memory cannot come.
	started   bool
	cut, lost error
}

// Left is how many bytes of the memory have not come.
func (p *Paging) Left() uint64 { return p.fetcher.Left() }

// Waits is why none of the memory comes that the guest may wait for; nil while it comes,
// and when all is there.
func (p *Paging) Waits() error {
	linked := p.fetcher.Linked()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended:
		return nil
	case p.lost != nil:
		return p.lost
	case linked:
		return nil
	}
	return p.cut
}

// checkPaging says why a guest cannot run here before all of its memory has come.
func checkPaging(mem *memory.Guest) error {
	if mem.HostPageSize() != memory.PageSize {
		return errors.New("a guest with huge pages cannot run before all of its memory is there: migrate it with --postcopy never")
	}
	fd, err := uffd.Open(uffd.Options{})
	if err != nil {
		return fmt.Errorf("a guest cannot run here before all of its memory is there: %w; or migrate it with --postcopy never", err)
	}
	return fd.Close()
}

func newPaging(ctx context.Context, d *destination, mem *memory.Guest) *Paging {
	p := &Paging{d: d, mem: mem, told: make(chan struct{}), over: make(chan struct{})}
	p.links, p.hangUp = context.WithCancelCause(ctx)
	p.fetcher = stream.NewFetcher(mem.Size(), d.server.Waits.Ready, p.prepare)
	return p
}

// serve takes one of the connections.
func (p *Paging) serve(conn net.Conn, index uint16) {
	defer conn.Close()
	if index == pushedIndex {
		// What is wrong with it the source finds out, too, and dials both again.
		_ = p.fetcher.Pushed(p.links, conn)
		return
	}
	err := p.fetcher.Ask(p.links, conn)
	switch {
	case err == nil:
		p.telling.Do(func() { close(p.told) })
	case errors.Is(err, stream.ErrPagesLost):
		p.lose(err)
	default:
		p.unlinked(err)
	}
}

// unlinked notes why nothing can be asked for, until the source has dialed again.
func (p *Paging) unlinked(err error) {
	if p.fetcher.Linked() {
		return // it has
	}
	p.mu.Lock()
	p.cut = fmt.Errorf("the guest stands still where it needs one of the %d bytes of its memory that are still at its source: %w", p.fetcher.Left(), err)
	tell := p.started && !p.ended
	err = p.cut
	p.mu.Unlock()
	if tell {
		p.d.in.Missing(err, false)
	}
}

// prepare is the fetcher's: it makes the pages missing, and begins to bring them.
func (p *Paging) prepare(missing []uint64) (stream.Sink, error) {
	d := p.d
	if err := d.awaitMemory(); err != nil {
		return nil, err
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	d.mu.Lock()
	stated := d.stated
	d.mu.Unlock()
	if stated {
		// The guest may run by now, in memory that is not to be discarded any more.
		return nil, errors.New("the source sent its list of pages after the state")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.gone || p.ended {
		return nil, errPagingOver
	}
	// What earlier rounds brought is stale. Before the memory is registered: the
	// pages would be asked for when they are discarded.
	err := eachMissing(p.links, p.mem, slices.Clone(missing), func(gpa memory.GPA, n uint64) error {
		_, err := p.mem.Discard(gpa, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := p.open(missing); err != nil {
		return nil, err
	}
	p.mem.SetPager(memory.OwnPager)
	ctx, stop := context.WithCancel(context.Background())
	p.stop, p.served = stop, make(chan struct{})
	go func() {
		err := p.server.Serve(ctx)
		close(p.served)
		if err != nil {
			p.lose(err)
		}
	}()
	go func() {
		select {
		case <-p.fetcher.Over():
			p.complete()
		case <-p.over:
		}
	}()
	d.in.Paged(p)
	return p.server, nil
}

// open makes the userfaultfd and its server.
func (p *Paging) open(missing []uint64) error {
	fd, err := uffd.Open(uffd.Options{})
	if err != nil {
		return err
	}
	mappings := uffd.Of(p.mem)
	for _, m := range mappings {
		if err := fd.Register(m); err != nil {
			return errors.Join(err, fd.Close())
		}
	}
	present := make([]uint64, len(missing))
	for i, word := range missing {
		present[i] = ^word
	}
	server, err := uffd.NewServer(fd, uffd.Config{Mappings: mappings, Source: p.fetcher, Present: present, Ahead: 1, Workers: pagingWorkers})
	if err != nil {
		return errors.Join(err, fd.Close())
	}
	p.fd, p.server = fd, server
	return nil
}

// complete makes the memory one like any other: all of it is there.
func (p *Paging) complete() {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	if err := p.server.Release(); err != nil {
		p.mu.Unlock()
		p.lose(err)
		return
	}
	defer p.mu.Unlock()
	p.mem.SetPager(memory.NoPager)
	st := p.server.Stats()
	p.fetcher.Finish(stream.RestDone{Faults: st.Faults, P50: st.P50, P99: st.P99, Longest: st.Longest})
	p.close()
}

// End is for a guest that has ended, or is not to run here: who waits for a page fails,
// and nobody touches the memory from here when it returns. It may be called twice.
func (p *Paging) End() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if p.server != nil {
		if err := p.giveUp(); err != nil {
			// Those who wait must not go on with zeros, which they could write to a
			// disk: the descriptor stays open.
			p.fd = nil
			p.d.in.Missing(fmt.Errorf("who waits for memory of the guest does so until this process is killed: %w", err), true)
		}
		p.fetcher.Finish(stream.RestDone{Unwanted: true})
	}
	p.close()
}

// giveUp has those fail who wait for a page that has not come, or will. Pages that never
// held anything are zeros.
func (p *Paging) giveUp() error {
	for _, m := range uffd.Of(p.mem) {
		for at := uint64(0); at < m.Size; at += m.PageSize {
			first := at
			for at < m.Size && !p.server.Present(m.Offset+at) {
				at += m.PageSize
			}
			if at == first {
				continue
			}
			run := uffd.Mapping{Addr: m.Addr + first, Size: at - first, Offset: m.Offset + first, PageSize: m.PageSize}
			if err := p.fd.GiveUp(run); err != nil {
				return err
			}
		}
	}
	return nil
}

// close ends the server. The caller holds mu.
func (p *Paging) close() {
	p.ended = true
	if p.server != nil {
		p.stop()
		<-p.served
	}
	if p.fd != nil {
		// Nothing depends on it.
		_ = p.fd.Close()
	}
	close(p.over)
}

// lose tells that the memory will never come.
func (p *Paging) lose(err error) {
	p.mu.Lock()
	if p.ended || p.lost != nil {
		p.mu.Unlock()
		return
	}
	p.lost = err
	runs := p.started
	p.mu.Unlock()
	if runs {
		p.d.in.Missing(err, true)
	} else {
		p.d.driver.post(handover.Event{Kind: handover.Failed, Reason: err.Error()})
	}
}

// start notes that the guest runs.
func (p *Paging) start() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.started = true
	cut, lost := p.cut, p.lost
	p.mu.Unlock()
	switch {
	case lost != nil:
		p.d.in.Missing(lost, true)
	case cut != nil && !p.fetcher.Linked():
		p.d.in.Missing(cut, false)
	}
}

// wait returns when all of the guest's memory is there and the source knows, or when the
// guest or ctx has ended.
func (p *Paging) wait(ctx context.Context) {
	if p == nil {
		return
	}
	p.mu.Lock()
	began := p.server != nil
	p.mu.Unlock()
	if !began {
		return
	}
	select {
	case <-p.told:
	case <-p.d.in.Died():
	case <-ctx.Done():
		p.lose(context.Cause(ctx))
	}
}
