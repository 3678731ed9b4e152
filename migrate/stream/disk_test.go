package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// diskTarget is a disk in memory.
type diskTarget struct {
	mu      sync.Mutex
	p       []byte
	syncs   int
	written uint64
	fail    error
}

func (d *diskTarget) ReadAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.p[offset:]), d.fail
}

func (d *diskTarget) WriteAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written += uint64(len(p))
	return copy(d.p[offset:], p), d.fail
}

func (d *diskTarget) Zero(offset, length uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.p[offset : offset+length])
	return d.fail
}

func (d *diskTarget) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	return d.fail
}

// diskPair is a sender, and a receiver whose end comes on ended.
func diskPair(t testing.TB, target *diskTarget, o SenderOptions) (*DiskSender, <-chan error) {
	t.Helper()
	here, there := connected(t)
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	r := &DiskReceiver{Target: target, Size: uint64(len(target.p))}
	go func() {
		ended <- r.Serve(ctx, there)
		there.Close()
	}()
	s := NewDiskSender(here, o)
	t.Cleanup(func() {
		s.Close()
		stop()
	})
	return s, ended
}

// connected are the two ends of a connection.
func connected(t testing.TB) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	for {
		if there, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		if there.RemoteAddr().String() == here.LocalAddr().String() {
			return here, there
		}
		// Another program's, which dials a port that was somebody else's before.
		there.Close()
	}
}

// diskContents has zeros, short and long, and a last sector that is no whole page.
func diskContents() []byte {
	p := make([]byte, 3*DiskBlock+512)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(rng.Uint32()) | 1
		if i%(64<<10) > 40<<10 {
			p[i] = byte(i >> 12) // which compresses
		}
	}
	clear(p[4096:8192])
	clear(p[DiskBlock-4096 : 2*DiskBlock])
	return p
}

func sendAll(s *DiskSender, p []byte) error {
	for at := 0; at < len(p); at += DiskBlock {
		n := copy(s.Block(), p[at:])
		if err := s.Send(uint64(at), n); err != nil {
			return err
		}
	}
	return nil
}

func TestDisk(t *testing.T) {
	for _, c := range []Compression{None, Zstd, Auto} {
		want := diskContents()
		target := &diskTarget{p: bytes.Repeat([]byte{0xee}, len(want))}
		s, ended := diskPair(t, target, SenderOptions{Compress: c})
		if err := sendAll(s, want); err != nil {
			t.Fatal(err)
		}
		if err := s.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		target.mu.Lock()
		if !bytes.Equal(target.p, want) || target.syncs != 1 {
			t.Errorf("compression %d: it came as something else, synced %d times", c, target.syncs)
		}
		target.mu.Unlock()
		// What is sent later is there later.
		clear(want[512:2048])
		copy(s.Block(), want[:4096])
		err := errors.Join(s.Zero(uint64(len(want)-512), 512), s.Send(0, 4096), s.Finish(t.Context()))
		clear(want[len(want)-512:])
		if err := errors.Join(err, <-ended); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(target.p, want) {
			t.Errorf("compression %d: what was sent again came as something else", c)
		}
		stats := s.Stats()
		if stats.Data+stats.Zero != uint64(len(want))+4096+512 || stats.Zero < DiskBlock {
			t.Errorf("stats %+v", stats)
		}
		if c == Zstd && stats.Wire > stats.Data {
			t.Errorf("nothing was compressed: %+v", stats)
		}
	}
}

// TestDiskSame: only what the destination has not is sent.
func TestDiskSame(t *testing.T) {
	want := diskContents()
	target := &diskTarget{p: bytes.Clone(want)}
	target.p[DiskBlock+5]++
	target.p[len(want)-1]++
	s, ended := diskPair(t, target, SenderOptions{})
	var sent []uint64
	read := func(p []byte, offset uint64) error {
		copy(p, want[offset:])
		return nil
	}
	err := s.Same(t.Context(), 0, uint64(len(want)), read, func(offset, length uint64) error {
		sent = append(sent, offset, length)
		copy(s.Block(), want[offset:offset+length])
		return s.Send(offset, int(length))
	})
	if err := errors.Join(err, s.Finish(t.Context()), <-ended); err != nil {
		t.Fatal(err)
	}
	if len(sent) != 4 || sent[0] != DiskBlock || sent[1] != DiskBlock || sent[2] != 3*DiskBlock || sent[3] != 512 {
		t.Errorf("sent %v", sent)
	}
	if !bytes.Equal(target.p, want) || s.Stats().Same != 2*DiskBlock {
		t.Errorf("it came as something else, or %+v", s.Stats())
	}
}

// TestDiskFails: the sender hears what is wrong at the destination.
func TestDiskFails(t *testing.T) {
	target := &diskTarget{p: make([]byte, DiskBlock), fail: errors.New("no space left")}
	s, ended := diskPair(t, target, SenderOptions{})
	s.Block()[0] = 1
	err := s.Send(0, 512)
	if err == nil {
		err = s.Barrier(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("the sender: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the receiver has no error")
	}
}

// TestDiskEnds: who waits does not any more when the context ends, or the sender is closed.
func TestDiskEnds(t *testing.T) {
	here, there := net.Pipe() // where nobody reads
	defer there.Close()
	s := NewDiskSender(here, SenderOptions{})
	why := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- s.Barrier(ctx) }()
	cancel(why)
	if err := <-failed; !errors.Is(err, why) {
		t.Errorf("barrier: %v", err)
	}
	s.Block()[0] = 1
	if err := s.Send(0, 512); !errors.Is(err, ErrClosed) {
		t.Errorf("send: %v", err)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	go func() {
		failed <- (&DiskReceiver{Target: &diskTarget{p: make([]byte, 512)}, Size: 512}).Serve(ctx, there)
	}()
	cancel(why)
	if err := <-failed; err == nil {
		t.Error("the receiver has no error")
	}
}

// TestDiskLimit: disks keep within the limit of the migration.
func TestDiskLimit(t *testing.T) {
	target := &diskTarget{p: make([]byte, DiskBlock)}
	const rate = 4 << 20
	s, _ := diskPair(t, target, SenderOptions{Limit: NewLimiter(rate)})
	for i := range s.Block() {
		s.Block()[i] = 1
	}
	began := time.Now()
	if err := errors.Join(s.Send(0, DiskBlock), s.Finish(t.Context())); err != nil {
		t.Fatal(err)
	}
	if took, least := time.Since(began), time.Second*DiskBlock/rate*9/10; took < least {
		t.Errorf("%d bytes took %v, want at least %v", DiskBlock, took, least)
	}
}

// diskFrames are frames that a receiver of a disk of 1 MiB must not take.
func diskFrames() map[string][]byte {
	frame := func(h header, p []byte) []byte {
		h.wire, h.sum = uint32(len(p)), checksum(p)
		return append(h.append(nil), p...)
	}
	wrong := frame(header{kind: kindPages, length: 512}, make([]byte, 512))
	wrong[len(wrong)-1] = 1
	return map[string][]byte{
		"beyond the end":      frame(header{kind: kindPages, offset: DiskBlock, length: 512}, make([]byte, 512)),
		"over the end":        frame(header{kind: kindZero, offset: DiskBlock - 512, length: 1024}, nil),
		"around":              frame(header{kind: kindZero, offset: 512, length: 1<<64 - 512}, nil),
		"half a sector":       frame(header{kind: kindPages, length: 256}, make([]byte, 256)),
		"askew":               frame(header{kind: kindPages, offset: 1, length: 512}, make([]byte, 512)),
		"nothing":             frame(header{kind: kindPages}, nil),
		"another length":      frame(header{kind: kindPages, length: 1024}, make([]byte, 512)),
		"zeros with bytes":    frame(header{kind: kindZero, length: 512}, []byte{1}),
		"no zstd":             frame(header{kind: kindZstd, length: 512}, []byte{1, 2, 3}),
		"a wrong checksum":    wrong,
		"hashes missing":      frame(header{kind: kindHash, length: 1024}, make([]byte, 31)),
		"a barrier with":      frame(header{kind: kindBarrier, offset: 1}, []byte{1}),
		"of another kind":     frame(header{kind: kindAck, length: 512}, nil),
		"cut off":             frame(header{kind: kindPages, length: 512}, make([]byte, 512))[:100],
		"an end at the start": {},
	}
}

func serveDisk(p []byte) error {
	here, there := net.Pipe()
	go func() {
		_, _ = here.Write(p)
		here.Close()
	}()
	go func() { _, _ = io.Copy(io.Discard, here) }()
	defer there.Close()
	return (&DiskReceiver{Target: &diskTarget{p: make([]byte, DiskBlock)}, Size: DiskBlock}).Serve(context.Background(), there)
}

func TestDiskHostile(t *testing.T) {
	for name, p := range diskFrames() {
		if err := serveDisk(p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzDisk has a hostile source send to a disk: whatever comes, nothing outside of it is
// touched, and it ends.
func FuzzDisk(f *testing.F) {
	for _, p := range diskFrames() {
		f.Add(p)
	}
	f.Fuzz(func(_ *testing.T, p []byte) { _ = serveDisk(p) })
}

// FuzzDiskAnswers has a hostile destination answer a source.
func FuzzDiskAnswers(f *testing.F) {
	ack := func(n, length uint64) []byte { return header{kind: kindAck, offset: n, length: length}.append(nil) }
	diff := func(n int) []byte {
		p := make([]byte, n)
		return append(header{kind: kindDiff, length: 2 * DiskBlock, wire: uint32(n), sum: checksum(p)}.append(nil), p...)
	}
	f.Add(bytes.Join([][]byte{diff(8), ack(1, 0), ack(2, finished)}, nil))
	f.Add(diff(16))
	f.Add(header{kind: kindDiff, length: 2 * DiskBlock, wire: 1 << 31}.append(nil))
	f.Add(append(diff(8), ack(7, 0)...))
	f.Add(appendFail(nil, "no space left"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		s := NewDiskSender(&script{Reader: bytes.NewReader(p)}, SenderOptions{})
		defer s.Close()
		read := func(p []byte, _ uint64) error { clear(p); return nil }
		err := s.Same(t.Context(), 0, 2*DiskBlock, read, func(offset, length uint64) error {
			if offset+length > 2*DiskBlock || length == 0 {
				t.Errorf("%d bytes from %d differ", length, offset)
			}
			return nil
		})
		if err == nil && s.Barrier(t.Context()) == nil {
			_ = s.Finish(t.Context())
		}
	})
}
