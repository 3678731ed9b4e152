package virtio_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"golang.org/x/sys/unix"
)

func newLoop(t testing.TB) *virtio.Loop {
	t.Helper()
	l, err := virtio.NewLoop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Stop()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// await fails the test if nothing comes.
func await(t testing.TB, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(virtiotest.Patience):
		t.Fatalf("%s did not come", what)
	}
}

// TestLoopEdges kicks a queue many times, whose eventfd nobody reads.
func TestLoopEdges(t *testing.T) {
	q := newQueue(t, virtiotest.NewMemory(t, 1<<20), func() {})
	l := newLoop(t)
	kicked := make(chan struct{})
	if err := l.AddQueue(q, func() { kicked <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	l.Start()
	l.Start() // of a running loop does nothing
	for range 10_000 {
		q.Kick()
		await(t, kicked, "a kick")
	}
}

// TestLoopStop checks that nothing is lost between Stop and Start, for 40
// queues, which are more than the loop takes at once.
func TestLoopStop(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	l := newLoop(t)
	var served [40]atomic.Uint64
	var inside atomic.Int32
	progress := make(chan struct{}, 1)
	var queues []*virtio.Queue
	for i := range served {
		q := newQueue(t, mem, func() {})
		queues = append(queues, q)
		if err := l.AddQueue(q, func() {
			if inside.Add(1) != 1 {
				t.Error("two functions of the loop at once")
			}
			served[i].Add(1)
			inside.Add(-1)
			select {
			case progress <- struct{}{}:
			default:
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		var before [len(served)]uint64
		for i := range served {
			before[i] = served[i].Load()
		}
		for _, q := range queues {
			q.Kick()
		}
		l.Start()
		l.Stop()
		if inside.Load() != 0 {
			t.Fatal("a function of the loop runs after Stop")
		}
		l.Start()
		for i := range served {
			for served[i].Load() == before[i] {
				await(t, progress, "a kick from before Stop")
			}
		}
		l.Stop()
		l.Stop() // of a stopped loop does nothing
	}
}

func TestLoopAddRemove(t *testing.T) {
	q := newQueue(t, virtiotest.NewMemory(t, 1<<20), func() {})
	l := newLoop(t)
	first, removed := make(chan struct{}), make(chan struct{})
	if err := l.AddQueue(q, func() { first <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	if err := l.AddQueue(q, func() { t.Error("the function that was refused") }); err == nil {
		t.Error("the same descriptor twice")
	}
	l.Start()
	q.Kick()
	await(t, first, "the first function")

	// A level that is on stays on until somebody takes it away.
	other := newQueue(t, virtiotest.NewMemory(t, 1<<20), func() {})
	times := 0
	err := l.Add(other.EventFD(), unix.EPOLLIN, func(events uint32) {
		if events != unix.EPOLLIN {
			t.Errorf("events %#x", events)
		}
		if times++; times == 3 {
			if err := l.Modify(other.EventFD(), 0); err != nil {
				t.Error(err)
			}
			if err := l.Remove(other.EventFD()); err != nil {
				t.Error(err)
			}
			close(removed)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	other.Kick()
	await(t, removed, "the third time")
	if err := l.Remove(other.EventFD()); err == nil {
		t.Error("removed twice")
	}
	if err := l.Add(-1, unix.EPOLLIN, nil); err == nil {
		t.Error("a descriptor that is none")
	}
	q.Kick()
	await(t, first, "the first function")
	l.Stop()
	if times != 3 {
		t.Errorf("called %d times", times)
	}
}
