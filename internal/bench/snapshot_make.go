package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
)

// readyLimit bounds how long a guest may take to use its memory.
const readyLimit = time.Minute

// readyGuest is a guest in this process that has said that it is ready.
type readyGuest struct {
	*vmm.VM
	sys *kvm.System
}

// firstByte closes ready when something is written to it.
type firstByte struct {
	once  sync.Once
	ready chan struct{}
}

// Write never fails.
func (f *firstByte) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.ready) })
	return len(p), nil
}

// startReady starts a program with so much memory and waits until it is ready. The
// guest has the devices that "godwit boot" gives it.
func startReady(ctx context.Context, e *Env, program string, memory uint64) (*readyGuest, error) {
	sys, err := kvm.Open("")
	if err != nil {
		return nil, Skip("%v", err)
	}
	said := &firstByte{ready: make(chan struct{})}
	vm := vmm.New(ctx, vmm.Options{System: sys, Name: "bench", Console: said}, vmm.Config{
		CPUs: 1, Memory: memory, Kernel: program, Vsock: &vmm.Vsock{Path: filepath.Join(e.Dir, "vsock")},
	})
	g := &readyGuest{VM: vm, sys: sys}
	if err = vm.Start(); err == nil {
		select {
		case <-said.ready:
			return g, nil
		case <-vm.Done():
			_, err = vm.Wait()
			err = errors.Join(errors.New("the guest ended before it was ready"), err)
		case <-time.After(readyLimit):
			err = fmt.Errorf("the guest was not ready within %v", readyLimit)
		}
	}
	g.close()
	return nil, err
}

// close ends the guest.
func (g *readyGuest) close() {
	g.Kill(nil)
	<-g.Done()
	g.sys.Close()
}

// saved is a snapshot of a guest that waits to be restored, for godwit and for the C
// floor.
type saved struct {
	dir, memory, floorState string
}

// saveWaiter makes the snapshot of a guest with so much memory.
func saveWaiter(ctx context.Context, e *Env, program, name string, memory uint64) (*saved, error) {
	e.progress("a snapshot of %d GiB", memory>>30)
	g, err := startReady(ctx, e, program, memory)
	if err != nil {
		return nil, err
	}
	defer g.close()
	s := &saved{dir: filepath.Join(e.Dir, name)}
	s.memory = filepath.Join(s.dir, vmm.MemoryFile)
	if _, err := g.Snapshot(ctx, vmm.SnapshotRequest{Path: s.dir, Live: true, Stop: true}); err != nil {
		return nil, err
	}
	s.floorState, err = writeFloorState(s.dir)
	return s, err
}
