package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// terminal is a writer that can be stopped.
type terminal struct {
	mu      sync.Mutex
	text    bytes.Buffer
	fail    error
	stopped chan struct{} // nil, or closed by goOn
	waiting chan struct{} // gets a value when a Write waits
}

func newTerminal() *terminal { return &terminal{waiting: make(chan struct{}, 1)} }

func (c *terminal) Write(p []byte) (int, error) {
	c.mu.Lock()
	stopped := c.stopped
	c.mu.Unlock()
	if stopped != nil {
		signal(c.waiting)
		<-stopped
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return 0, c.fail
	}
	return c.text.Write(p)
}

func (c *terminal) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = make(chan struct{})
}

func (c *terminal) goOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.stopped)
	c.stopped = nil
}

func (c *terminal) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

func newDevice(t testing.TB, c Config) *Device {
	t.Helper()
	if c.Warn == nil {
		c.Warn = func(err error) { t.Errorf("warning: %v", err) }
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func flush(t testing.TB, d *Device) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), virtiotest.Patience)
	defer cancel()
	if err := d.Flush(ctx); err != nil {
		t.Error(err)
	}
}

func TestOutput(t *testing.T) {
	out := newTerminal()
	d := newDevice(t, Config{Out: out})
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	q := driver.Queues[queueTransmit]
	var want strings.Builder
	for _, parts := range [][]string{
		{"hello\n"}, {"a chain", " of ", "three\n"}, {strings.Repeat("long ", 40_000)}, {"\x00\xff"},
	} {
		var buffers [][]byte
		for _, p := range parts {
			buffers = append(buffers, []byte(p))
			want.WriteString(p)
		}
		if _, n := q.Do(buffers); n != 0 {
			t.Errorf("the device says that it wrote %d bytes", n)
		}
	}
	flush(t, d)
	if got := out.String(); got != want.String() {
		t.Errorf("%d bytes of output, want %d", len(got), want.Len())
	}
}

// TestSlowTerminal sends more than fits while the terminal is stopped, moves the
// console meanwhile, and goes on.
func TestSlowTerminal(t *testing.T) {
	out := newTerminal()
	out.stop()
	d := newDevice(t, Config{Out: out})
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	q := driver.Queues[queueTransmit]
	text := []byte(strings.Repeat("0123456789abcdef", (2*outputLimit+1000)/16))
	at := driver.Memory.Put(text)
	q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: uint32(len(text))}), q.Chain(virtiotest.Buffer{GPA: at, Len: 4}))
	q.Kick()
	<-out.waiting
	// Input goes on meanwhile.
	in := driver.Queues[queueReceive]
	if _, err := d.Send(t.Context(), []byte("key")); err != nil {
		t.Fatal(err)
	}
	if got, n := in.Do(nil, 16); n != 3 || string(got[0][:3]) != "key" {
		t.Errorf("input %q (%d)", got, n)
	}
	if n := q.UsedIndex(); n != 0 {
		t.Fatalf("%d chains are back while the terminal is stopped", n)
	}
	other := newDevice(t, Config{Out: out})
	driver.Move(other, func() {
		if err := other.Restore(d.Save()); err != nil {
			t.Fatal(err)
		}
		out.goOn()
		flush(t, d)
	})
	q.Wait()
	q.Wait()
	flush(t, other)
	if want := string(text) + "0123"; out.String() != want {
		t.Errorf("%d bytes of output, want %d", len(out.String()), len(want))
	}
}

// TestStoppedTerminal checks that a guest does not wait for ever, and is heard
// again when the terminal goes on.
func TestStoppedTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newTerminal()
		out.stop()
		var warnings, readied atomic.Int32
		o := newOutput(out, func() { readied.Add(1) }, func(string, error) { warnings.Add(1) })
		c := &virtio.Chain{Read: []virtio.Buffer{{Data: make([]byte, 3*outputLimit)}}, ReadLen: 3 * outputLimit}
		taken := o.take(c, 0)
		synctest.Wait() // the first batch is in Write
		if taken != outputLimit || readied.Load() != 1 {
			t.Fatalf("took %d bytes, told %d times to go on", taken, readied.Load())
		}
		if taken += o.take(c, taken); taken != 2*outputLimit {
			t.Fatalf("took %d bytes", taken)
		}
		time.Sleep(Patience - 1)
		if n := o.take(c, taken); n != 0 || warnings.Load() != 0 {
			t.Fatalf("took %d more bytes, %d warnings", n, warnings.Load())
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := o.take(c, taken); n != outputLimit || warnings.Load() != 1 || readied.Load() != 2 {
			t.Fatalf("dropped %d bytes, %d warnings, told %d times to go on", n, warnings.Load(), readied.Load())
		}
		out.goOn()
		synctest.Wait()
		if n := len(out.String()); n != 2*outputLimit {
			t.Errorf("%d bytes were written", n)
		}
		c = &virtio.Chain{Read: []virtio.Buffer{{Data: make([]byte, 10)}}, ReadLen: 10}
		if n := o.take(c, 0); n != 10 {
			t.Errorf("took %d of 10 bytes", n)
		}
		o.close()
		synctest.Wait()
		if n := len(out.String()); n != 2*outputLimit+10 || warnings.Load() != 1 {
			t.Errorf("%d bytes were written, %d warnings", n, warnings.Load())
		}
	})
}

func TestOutputFails(t *testing.T) {
	out := newTerminal()
	out.fail = io.ErrClosedPipe
	warned := make(chan error, 10)
	d := newDevice(t, Config{Out: out, Warn: func(err error) { warned <- err }})
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	for range 5 {
		driver.Queues[queueTransmit].Do([][]byte{make([]byte, 200<<10)})
	}
	if err := d.Flush(t.Context()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Flush: %v", err)
	}
	if err := <-warned; !errors.Is(err, io.ErrClosedPipe) || len(warned) != 0 {
		t.Errorf("warning %v, and %d more", err, len(warned))
	}
}

func TestInput(t *testing.T) {
	d := newDevice(t, Config{})
	// Before there is a driver.
	if n, err := d.Send(t.Context(), []byte("early ")); n != 6 || err != nil {
		t.Fatal(n, err)
	}
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	q := driver.Queues[queueReceive]
	if got, n := q.Do(nil, 4, 1, 100); n != 6 || string(got[0])+string(got[1])+string(got[2][:1]) != "early " {
		t.Errorf("%q (%d)", got, n)
	}

	// More than the device holds, from several at once.
	const senders, size = 3, 5 * inputLimit
	var all sync.WaitGroup
	for i := range senders {
		all.Go(func() {
			if n, err := d.Send(t.Context(), bytes.Repeat([]byte{'a' + byte(i)}, size)); n != size || err != nil {
				t.Errorf("Send = %d, %v", n, err)
			}
		})
	}
	counts := make(map[byte]int)
	for total := 0; total < senders*size; {
		got, n := q.Do(nil, 1000)
		for _, b := range got[0][:n] {
			counts[b]++
		}
		total += int(n)
	}
	all.Wait()
	if want := map[byte]int{'a': size, 'b': size, 'c': size}; !reflect.DeepEqual(counts, want) {
		t.Errorf("received %v", counts)
	}
}

func TestSendEnds(t *testing.T) {
	d := newDevice(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := d.Send(ctx, make([]byte, inputLimit+1)); n != inputLimit || !errors.Is(err, context.Canceled) {
		t.Errorf("Send with a context that has ended = %d, %v", n, err)
	}
	ended := make(chan error)
	go func() {
		_, err := d.Send(t.Context(), []byte("x"))
		ended <- err
	}()
	d.Close()
	if err := <-ended; !errors.Is(err, devices.ErrClosed) {
		t.Errorf("Send on a console that is closed: %v", err)
	}
	d.Close()
}

func TestMalformed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		queue  int
		buffer virtiotest.Buffer
		want   error
	}{
		{"writable output", queueTransmit, virtiotest.Buffer{GPA: 0x8000, Len: 10, Write: true}, errWritable},
		{"readable input", queueReceive, virtiotest.Buffer{GPA: 0x8000, Len: 10}, errReadable},
		{"output outside RAM", queueTransmit, virtiotest.Buffer{GPA: 1 << 40, Len: 10}, virtio.ErrBroken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := newTerminal()
			d := newDevice(t, Config{Out: out})
			driver := virtiotest.Start(t, d, virtiotest.Options{})
			if _, err := d.Send(t.Context(), []byte("x")); err != nil {
				t.Fatal(err)
			}
			q := driver.Queues[tt.queue]
			q.Publish(q.Chain(tt.buffer))
			q.Kick()
			if err := driver.AwaitFail(); !errors.Is(err, tt.want) {
				t.Errorf("failed with %v, want %v", err, tt.want)
			}
			driver.Reset()
			driver.Queues[queueTransmit].Do([][]byte{[]byte("again")})
			flush(t, d)
			if out.String() != "again" {
				t.Errorf("output after the reset: %q", out.String())
			}
		})
	}
}

func TestConfigSpace(t *testing.T) {
	out := newTerminal()
	d := newDevice(t, Config{Out: out, Cols: 80, Rows: 25})
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	if got := driver.Config(0, 16); !bytes.Equal(got, append([]byte{80, 0, 25}, make([]byte, 13)...)) {
		t.Errorf("configuration is % x", got)
	}
	// Linux looks at the size only then.
	driver.AwaitConfigChange()
	d.Resize(300, 100)
	driver.AwaitConfigChange()
	if got := driver.Config(0, 4); !bytes.Equal(got, []byte{0x2c, 1, 100, 0}) {
		t.Errorf("configuration is % x", got)
	}
	for _, w := range []struct {
		offset uint64
		p      string
	}{{8, "!\x00\x00\x00"}, {0, "12345678e"}, {0, "12345678"}, {9, "x"}, {math.MaxUint64, "xxxxxxxxxxxx"}} {
		d.WriteConfig(w.offset, []byte(w.p))
	}
	flush(t, d)
	if out.String() != "!e" {
		t.Errorf("emergency output %q", out.String())
	}
}

func TestMove(t *testing.T) {
	d := newDevice(t, Config{Cols: 80, Rows: 25})
	if _, err := d.Send(t.Context(), []byte("keys")); err != nil {
		t.Fatal(err)
	}
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	other := newDevice(t, Config{})
	driver.Move(other, func() {
		saved, err := json.Marshal(d.Save())
		if err != nil {
			t.Fatal(err)
		}
		var s State
		if err := errors.Join(json.Unmarshal(saved, &s), other.Restore(s)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(other.Save(), s) {
			t.Errorf("restored %+v, saved %+v", other.Save(), s)
		}
	})
	if got, n := driver.Queues[queueReceive].Do(nil, 10); n != 4 || string(got[0][:4]) != "keys" {
		t.Errorf("input %q (%d)", got, n)
	}
	for _, s := range []State{{}, {Version: 2}, {Version: stateVersion, Input: make([]byte, inputLimit+1)}} {
		if err := other.Restore(s); err == nil {
			t.Errorf("restored version %d with %d bytes of input", s.Version, len(s.Input))
		}
	}
}

// TestAllocs checks that requests do not allocate.
func TestAllocs(t *testing.T) {
	d := newDevice(t, Config{})
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	text := []byte("0123456789")
	for queue, buffer := range map[int]virtiotest.Buffer{
		queueTransmit: {GPA: driver.Memory.Put(text), Len: 10},
		queueReceive:  {GPA: driver.Memory.Put(text), Len: 10, Write: true},
	} {
		q := driver.Queues[queue]
		head := q.Chain(buffer)
		request := func() {
			before := q.UsedIndex()
			q.Publish(head)
			q.Kick()
			if queue == queueReceive {
				if _, err := d.Send(context.Background(), text); err != nil {
					t.Fatal(err)
				}
			}
			for q.UsedIndex() == before {
				runtime.Gosched()
			}
		}
		request()
		if n := testing.AllocsPerRun(100, request); n != 0 {
			t.Errorf("queue %d: %v allocations a request", queue, n)
		}
	}
}

func BenchmarkOutput(b *testing.B) {
	for _, size := range []int{64, 4096} {
		b.Run(map[int]string{64: "64 B", 4096: "4 KiB"}[size], func(b *testing.B) {
			d := newDevice(b, Config{})
			driver := virtiotest.Start(b, d, virtiotest.Options{})
			q := driver.Queues[queueTransmit]
			head := q.Chain(virtiotest.Buffer{GPA: driver.Memory.Alloc(uint64(size), 16), Len: uint32(size)})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				before := q.UsedIndex()
				q.Publish(head)
				q.Kick()
				for q.UsedIndex() == before {
					runtime.Gosched()
				}
			}
		})
	}
}

// TestStopWhileTelling: when Stop has returned nobody speaks to the driver any
// more, for what is behind Driver.ConfigChanged may be gone.
func TestStopWhileTelling(t *testing.T) {
	d := newDevice(t, Config{})
	telling, told := make(chan struct{}), make(chan struct{})
	err := d.Start(virtio.Driver{Queues: make([]*virtio.Queue, queues), ConfigChanged: func() {
		close(telling)
		<-told
	}})
	if err != nil {
		t.Fatal(err)
	}
	resized, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		d.Resize(80, 25)
		close(resized)
	}()
	<-telling
	go func() {
		d.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		t.Error("stopped while the driver is being told")
	case <-time.After(20 * time.Millisecond):
	}
	close(told)
	<-resized
	<-stopped
}

// TestRestoreMakesRoom has somebody who waits for room when the input that takes
// it is gone.
func TestRestoreMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, Config{})
		empty := d.Save()
		if _, err := d.Send(t.Context(), make([]byte, inputLimit)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), virtiotest.Patience)
		defer cancel()
		sent := make(chan error, 1)
		go func() {
			_, err := d.Send(ctx, []byte("more"))
			sent <- err
		}()
		synctest.Wait()
		if err := d.Restore(empty); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}
