package ring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func write(t testing.TB, r *Ring, s string) {
	t.Helper()
	if n, err := io.WriteString(r, s); n != len(s) || err != nil {
		t.Fatalf("wrote %d of %d bytes, %v", n, len(s), err)
	}
}

// next is what a read with room for n bytes gives.
func next(t testing.TB, r *Reader, n int) string {
	t.Helper()
	p := make([]byte, n)
	n, err := r.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(p[:n])
}

func TestKeepsTheEnd(t *testing.T) {
	for _, size := range []int{1, 7, 100, firstSize, 3*firstSize + 1, 64 << 10} {
		r := New(size)
		var all bytes.Buffer
		random := rand.New(rand.NewPCG(1, uint64(size)))
		for range 300 {
			p := make([]byte, random.IntN(2*size/10+3))
			if random.IntN(50) == 0 {
				p = make([]byte, 2*size+random.IntN(100))
			}
			for i := range p {
				p[i] = byte(random.Uint32())
			}
			all.Write(p)
			write(t, r, string(p))
			want := all.Bytes()[max(0, all.Len()-size):]
			if got := r.Bytes(); !bytes.Equal(got, want) {
				t.Fatalf("size %d, after %d bytes: kept %d bytes that are not the last %d", size, all.Len(), len(got), len(want))
			}
		}
		if r.Written() != uint64(all.Len()) || len(r.buf) > size {
			t.Errorf("size %d: %d bytes in all, want %d; room for %d", size, r.Written(), all.Len(), len(r.buf))
		}
	}
}

func TestSmallWhenQuiet(t *testing.T) {
	r := New(DefaultSize)
	write(t, r, "login: ")
	if len(r.buf) > firstSize {
		t.Errorf("%d bytes for 7", len(r.buf))
	}
}

func TestReplayThenLive(t *testing.T) {
	r := New(1000)
	write(t, r, "before ")
	a := r.Attach()
	defer a.Close()
	write(t, r, "after")
	if got := next(t, a, 100); got != "before after" {
		t.Errorf("read %q", got)
	}
	read := make(chan string)
	go func() { read <- next(t, a, 100) }()
	write(t, r, "live")
	if got := <-read; got != "live" {
		t.Errorf("read %q", got)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := iotest.TestReader(a, nil); err != nil {
		t.Errorf("after the end: %v", err)
	}
	write(t, r, "late")
	late := r.Attach()
	defer late.Close()
	if got, err := io.ReadAll(late); err != nil || string(got) != "before afterlive" {
		t.Errorf("attached after the end: %q, %v", got, err)
	}
}

func TestSlowReaderIsTold(t *testing.T) {
	r := New(10)
	write(t, r, "abc")
	slow := r.Attach()
	defer slow.Close()
	if got := next(t, slow, 2); got != "ab" {
		t.Errorf("read %q", got)
	}
	write(t, r, "0123456789ABCDE") // c and 5 digits go
	r.Close()
	got, err := io.ReadAll(slow)
	if want := "\r\n[6 bytes lost]\r\n56789ABCDE"; err != nil || string(got) != want {
		t.Errorf("read %q, %v, want %q", got, err, want)
	}
}

// TestNotesDoNotPileUp has a reader that reads a byte while the ring goes round.
func TestNotesDoNotPileUp(t *testing.T) {
	r := New(10)
	a := r.Attach()
	defer a.Close()
	for range 1000 {
		write(t, r, "0123456789ABC")
		next(t, a, 1)
		if len(a.note) > 40 {
			t.Fatalf("the note is %d bytes long", len(a.note))
		}
	}
}

// TestLosses checks, with readers of all speeds, that every byte is either read
// in its place or counted as lost.
func TestLosses(t *testing.T) {
	const size, total = 4 << 10, 4 << 20
	r := New(size)
	pattern := func(n uint64) byte { return 'a' + byte(n*7/5%26) }
	type outcome struct {
		read, lost uint64
		err        error
	}
	outcomes := make(chan outcome)
	for i := range 4 {
		a := r.Attach()
		go func() {
			defer a.Close()
			var o outcome
			p := make([]byte, 1+i*701)
			var note []byte
			for {
				n, err := a.Read(p)
				for _, b := range p[:n] {
					switch {
					case b == '\r' || len(note) > 0:
						note = append(note, b)
						var lost uint64
						if bytes.Count(note, []byte("\n")) == 2 {
							if _, err := fmt.Sscanf(string(note), "\r\n[%d bytes lost]\r\n", &lost); err != nil {
								o.err = fmt.Errorf("note %q: %w", note, err)
							}
							o.lost += lost
							note = nil
						}
					case b != pattern(o.read+o.lost):
						o.err = fmt.Errorf("byte %d is %q", o.read+o.lost, b)
					default:
						o.read++
					}
				}
				if err != nil {
					if !errors.Is(err, io.EOF) {
						o.err = err
					}
					break
				}
			}
			outcomes <- o
		}()
	}
	p := make([]byte, 100)
	for n := uint64(0); n < total; n += uint64(len(p)) {
		for i := range p {
			p[i] = pattern(n + uint64(i))
		}
		write(t, r, string(p))
	}
	written := r.Written()
	r.Close()
	for range 4 {
		if o := <-outcomes; o.err != nil || o.read+o.lost != written {
			t.Errorf("%d bytes read, %d lost, want %d together; %v", o.read, o.lost, written, o.err)
		}
	}
}

func TestCloseEndsRead(t *testing.T) {
	r := New(10)
	a := r.Attach()
	ended := make(chan error)
	go func() {
		_, err := a.Read(make([]byte, 1))
		ended <- err
	}()
	for range 2 {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read: %v", err)
	}
}

func TestDrain(t *testing.T) {
	r := New(10)
	if err := r.Drain(t.Context()); err != nil {
		t.Errorf("without readers: %v", err)
	}
	a, b := r.Attach(), r.Attach()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := r.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with readers: %v", err)
	}
	drained := make(chan error)
	go func() { drained <- r.Drain(t.Context()) }()
	a.Close()
	b.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// TestWriteDoesNotAllocate: the guest's output passes here.
func TestWriteDoesNotAllocate(t *testing.T) {
	r := New(8 << 10)
	a := r.Attach()
	defer a.Close()
	line := []byte(strings.Repeat("x", 79) + "\n")
	for range 1000 {
		r.Write(line)
	}
	if n := testing.AllocsPerRun(1000, func() { r.Write(line) }); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, readers := range []int{0, 1, 8} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			r := New(DefaultSize)
			defer r.Close()
			for range readers {
				a := r.Attach()
				go func() {
					defer a.Close()
					io.Copy(io.Discard, a)
				}()
			}
			p := make([]byte, 256)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				r.Write(p)
			}
		})
	}
}
