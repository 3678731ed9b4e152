package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/memory/uffd"
)

// handlerGrace is how long a guest that was killed waits for the handler of its page
// faults, which may hang: a device may be in the middle of a request.
const handlerGrace = 3 * time.Second

// serveByHandler has another process, which listens at a socket, bring the memory of a
// restored guest, as Firecracker's back end "Uffd" does. It is for machine.Saved.
func (v *VM) serveByHandler(socket string) func(*memory.Guest) (func() error, error) {
	return func(g *memory.Guest) (end func() error, err error) {
		fd, err := register(g, uffd.Options{Removals: true})
		if err != nil {
			return nil, err
		}
		mappings := uffd.Of(g)
		h, err := uffd.Connect(socket, fd, mappings)
		if err != nil {
			return nil, errors.Join(err, fd.Close())
		}
		g.SetPager(memory.OtherPager)
		over := make(chan struct{})
		gone := make(chan error, 1)
		go func() { gone <- h.Wait() }()
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			if err := v.watchHandler(gone, over); err != nil {
				v.Kill(err)
				v.awaitStop()
				for _, m := range mappings {
					// Where that fails the guest waits until it is killed by force.
					_ = fd.GiveUp(m)
				}
			}
		}()
		return func() error {
			close(over)
			err := h.Close()
			<-watched
			return errors.Join(err, fd.Close())
		}, nil
	}
}

// awaitStop waits until the processors of a guest that was killed have stopped; see
// stopTime.
func (v *VM) awaitStop() {
	m := v.Machine()
	if m == nil {
		return
	}
	late := time.NewTimer(stopTime)
	defer late.Stop()
	select {
	case <-m.Ended():
		m.AwaitStop(stopTime)
	case <-v.done:
	case <-late.C:
	}
}

// watchHandler waits until the guest's memory is not needed any more, and returns nil;
// or until the handler does not bring it any more.
func (v *VM) watchHandler(gone <-chan error, over <-chan struct{}) error {
	select {
	case err := <-gone:
		return err
	case <-over:
		return nil
	case <-v.ctx.Done():
	}
	select {
	case <-over:
		return nil
	case <-time.After(handlerGrace):
		return errors.New("the handler of page faults did not answer when the guest was killed")
	}
}

// register makes a userfaultfd for a guest's memory.
func register(g *memory.Guest, o uffd.Options) (*uffd.FD, error) {
	fd, err := uffd.Open(o)
	if err != nil {
		return nil, err
	}
	for _, m := range uffd.Of(g) {
		if err := fd.Register(m); err != nil {
			return nil, errors.Join(err, fd.Close())
		}
	}
	return fd, nil
}

// serveSaved brings the memory of a restored guest from the files that it was saved in:
// what it asks for at once, and the rest beside it. Memory that cannot be a mapping of
// those files, huge pages, is restored so. It is for machine.Saved.
func (v *VM) serveSaved(extents []memory.Extent) func(*memory.Guest) (func() error, error) {
	return func(g *memory.Guest) (func() error, error) {
		from, err := openSaved(g, extents)
		if err != nil {
			return nil, err
		}
		fd, err := register(g, uffd.Options{})
		if err != nil {
			return nil, errors.Join(err, from.mem.Close())
		}
		s, err := uffd.NewServer(fd, uffd.Config{Mappings: uffd.Of(g), Source: from})
		if err != nil {
			return nil, errors.Join(err, fd.Close(), from.mem.Close())
		}
		g.SetPager(memory.OwnPager)
		ctx, cancel := context.WithCancel(context.Background())
		served, filled := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(served)
			if err := s.Serve(ctx); err != nil {
				v.Kill(fmt.Errorf("bring the memory of the restored guest: %w", err))
			}
		}()
		go func() {
			defer close(filled)
			// What keeps it from that keeps the server, too, or the guest is gone.
			if s.Fetch(ctx, 0, g.Size()) == nil && s.Release() == nil {
				g.SetPager(memory.NoPager)
			}
		}()
		return func() error {
			cancel()
			<-served
			<-filled
			return errors.Join(fd.Close(), from.mem.Close())
		}, nil
	}
}

// saved is saved memory as a source of pages.
type saved struct {
	mem *memory.Guest
	// present has the pages that are not holes, and pageSize is how large those of the
	// guest are that gets them.
	present  []uint64
	pageSize uint64
}

func openSaved(g *memory.Guest, extents []memory.Extent) (*saved, error) {
	mem, err := memory.New(memory.Options{Size: g.Size(), Saved: extents})
	if err != nil {
		return nil, err
	}
	s := &saved{mem, make([]uint64, (g.Size()/memory.PageSize+63)/64), g.HostPageSize()}
	if err := mem.Present(s.present); err != nil {
		return nil, errors.Join(err, mem.Close())
	}
	return s, nil
}

// Page is that of uffd.Source.
func (s *saved) Page(_ context.Context, offset uint64) ([]byte, error) {
	if !s.any(offset/memory.PageSize, s.pageSize/memory.PageSize) {
		return nil, nil
	}
	for _, r := range s.mem.Regions() {
		if offset >= r.Offset && offset-r.Offset < r.Size {
			p := r.Mem[offset-r.Offset:][:s.pageSize]
			// One call, not a fault for each small page.
			return p, memory.Await(p)
		}
	}
	return nil, fmt.Errorf("no memory is saved at offset %#x", offset)
}

// any tells whether one of n pages is not a hole.
func (s *saved) any(first, n uint64) bool {
	for page := first; page < first+n; page++ {
		if s.present[page/64]>>(page%64)&1 == 1 {
			return true
		}
	}
	return false
}
