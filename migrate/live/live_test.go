package live

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

func TestMigrate(t *testing.T) {
	d, g := newThere(t), newFakeGuest(t)
	o := options(t, d.addr)
	var phases []Phase
	o.Progress = func(p Progress) {
		if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
			phases = append(phases, p.Phase)
		}
	}
	report, err := Migrate(t.Context(), t.Context(), g, o)
	if err != nil {
		t.Fatal(err)
	}
	if s := <-d.ended; s != handover.DestinationDone {
		t.Errorf("the destination is %v", s)
	}
	if !g.destroyed || !d.in.runs() || !bytes.Equal(d.in.state, g.state) {
		t.Errorf("destroyed here: %v, runs there: %v, state %q", g.destroyed, d.in.runs(), d.in.state)
	}
	here, err := g.mem.View(0, guestSize)
	if err != nil {
		t.Fatal(err)
	}
	if mem, err := d.in.mem.View(0, guestSize); err != nil || !bytes.Equal(mem, here) {
		t.Errorf("the memory is another one, %v", err)
	}
	if want := []Phase{PhaseConnect, PhaseCopy, PhaseStop, PhaseHandover, PhaseDone}; !slices.Equal(phases, want) {
		t.Errorf("phases %v, want %v", phases, want)
	}
	if report.Bytes != guestUsed || report.Downtime.Total <= 0 || report.Rounds == 0 {
		t.Errorf("report %+v", report)
	}
	if err := o.Journal.MayStart("traveller"); !errors.Is(err, handover.ErrHandedOver) {
		t.Errorf("here: %v", err)
	}
	if epoch, err := d.Journal.Epoch("traveller"); epoch != 2 || err != nil {
		t.Errorf("there: epoch %d, %v", epoch, err)
	}
	if open, err := d.Journal.Unsettled(); len(open) > 0 || err != nil {
		t.Errorf("there: %v, %v", open, err)
	}
}

// TestNotMoved: whatever goes wrong before the destination owns the guest, it goes on.
func TestNotMoved(t *testing.T) {
	for _, tt := range []struct {
		name  string
		wrong func(d *there, o *SourceOptions)
		want  string
		// epoch is the one that the guest goes on in.
		epoch uint64
		state handover.DestinationState
	}{
		{"prepare", func(d *there, _ *SourceOptions) {
			d.in.prepare = errors.Join(errMishap, errors.New("and more"))
		}, "2 reasons:\n  - a mishap\n  - and more", 1, 0},
		{"no place", func(d *there, _ *SourceOptions) {
			d.New = func(Offer) (Incoming, error) { return nil, errMishap }
		}, "does not take the guest: a mishap", 1, 0},
		{"another of its name has left there", func(d *there, _ *SourceOptions) {
			k := handover.Key{VM: "traveller", Role: handover.RoleSource, ID: handover.NewID()}
			written(t, d.Journal, k, handover.Entry{State: handover.StateGone, Epoch: 1, Settled: true}, "")
		}, "does not take the guest: the guest that comes, in epoch 1, is another or older one", 1, 0},
		{"load", func(d *there, _ *SourceOptions) { d.in.load = errMishap }, "a mishap", 1, handover.DestinationAborted},
		{"locks", func(d *there, _ *SourceOptions) { d.in.locks = errMishap }, "given the guest back, which goes on here: the peer says: a mishap", 3, handover.DestinationForgotten},
		{"journal", func(_ *there, o *SourceOptions) {
			o.Trace = func(p Point) error {
				if p.Op == OpJournal && !p.After {
					return errMishap
				}
				return nil
			}
		}, "a mishap", 1, handover.DestinationRefused},
		{"other version", func(_ *there, o *SourceOptions) { o.Offer.Epoch = 1 << 63 }, "epoch 9223372036854775808", 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, g := newThere(t), newFakeGuest(t)
			o := options(t, d.addr)
			tt.wrong(d, &o)
			_, err := Migrate(t.Context(), t.Context(), g, o)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrInDoubt) {
				t.Fatalf("got %v, want one with %q", err, tt.want)
			}
			if !g.runs() {
				t.Errorf("here: %+v", g)
			}
			s := <-d.ended
			if aborted := s == handover.DestinationForgotten || s == handover.DestinationRefused; s != tt.state && !aborted {
				t.Errorf("the destination is %v, want %v", s, tt.state)
			}
			if d.in.runs() {
				t.Error("the guest runs there")
			}
			if epoch, err := o.Journal.Epoch("traveller"); epoch != tt.epoch || err != nil {
				t.Errorf("epoch %d, %v, want %d", epoch, err, tt.epoch)
			}
		})
	}
}

// TestStateWithoutMemory: a source that sends the state, and never the memory, is given up
// when its connection ends.
func TestStateWithoutMemory(t *testing.T) {
	d := newThere(t)
	c, _ := stranger(t, d)
	if err := c.send(frameState, []byte("early")); err != nil {
		t.Fatal(err)
	}
	_ = c.conn.Close()
	if s := <-d.ended; s != handover.DestinationAborted {
		t.Errorf("the destination is %v", s)
	}
	if d.in.loads != 0 || !d.in.gone {
		t.Errorf("loaded %d times, gone: %v", d.in.loads, d.in.gone)
	}
}

// TestSecondState: a state that comes when the guest may run already is not loaded.
func TestSecondState(t *testing.T) {
	d := newThere(t)
	d.Waits = quick
	c, dialer := stranger(t, d)
	conn, err := dialer.Data(t.Context(), stream.Data, 0)
	if err != nil {
		t.Fatal(err)
	}
	sender := stream.NewSender([]net.Conn{conn}, stream.SenderOptions{})
	defer sender.Close()
	if err := sender.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.send(frameState, []byte("state")); err != nil {
			t.Fatal(err)
		}
	}
	if s := <-d.ended; s != handover.DestinationRefused && s != handover.DestinationAborted {
		t.Errorf("the destination is %v", s)
	}
	if d.in.loads > 1 {
		t.Errorf("loaded %d times", d.in.loads)
	}
}

// badDestination takes the offer of a source and all connections, and does then with the
// control connection as it likes; with each that comes later, too.
func badDestination(t testing.TB, does func(n int, c *control, id handover.ID)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		first := &stream.Acceptor{}
		for n := 0; ; {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p, err := stream.ReadPreamble(conn, time.Now().Add(time.Minute))
			if err != nil {
				_ = conn.Close()
				continue
			}
			a := first
			if a.ID = p.ID; p.Channel == stream.Control && n > 0 {
				a = &stream.Acceptor{ID: p.ID}
			}
			ready, err := a.Accept(context.Background(), conn, p)
			if err != nil {
				continue
			}
			if p.Channel == stream.Control {
				go does(n, newControl(ready, nil), handover.ID(p.ID))
				n++
				continue
			}
			go func() {
				defer ready.Close()
				if r, err := stream.NewReceiver(newMemory(t), stream.ReceiverOptions{}); err == nil {
					_ = r.Serve(context.Background(), ready)
				}
			}()
		}
	}()
	return l.Addr().String()
}

// takesOffer answers yes.
func takesOffer(c *control) bool {
	_, err := c.expect(frameOffer, time.Minute)
	return err == nil && c.sendJSON(frameAnswer, Answer{}) == nil
}

// TestFlood: a destination that never stops talking does not keep the guest from going on.
func TestFlood(t *testing.T) {
	addr := badDestination(t, func(_ int, c *control, id handover.ID) {
		if !takesOffer(c) {
			return
		}
		m := handover.Message{Verb: handover.Started, ID: id, Epoch: 1}
		for c.send(frameHandover, m.Encode()) == nil {
		}
	})
	g := newFakeGuest(t)
	o := options(t, addr)
	o.Waits = quick
	if _, err := Migrate(t.Context(), t.Context(), g, o); err == nil || !g.runs() {
		t.Errorf("got %v, runs: %v", err, g.runs())
	}
}

// TestInDoubt: the process ends while the destination is silent after READY.
func TestInDoubt(t *testing.T) {
	life, end := context.WithCancel(t.Context())
	addr := badDestination(t, func(_ int, c *control, id handover.ID) {
		if !takesOffer(c) {
			return
		}
		for {
			k, body, err := c.receive(frameState, frameHandover)
			if err != nil {
				return
			}
			ready := handover.Message{Verb: handover.Ready, ID: id, Epoch: 1}
			if k == frameState && c.send(frameHandover, ready.Encode()) != nil {
				return
			}
			if m, err := handover.DecodeMessage(body); k == frameHandover && err == nil && m.Verb == handover.Commit {
				end()
			}
		}
	})
	g := newFakeGuest(t)
	o := options(t, addr)
	if _, err := Migrate(t.Context(), life, g, o); !errors.Is(err, ErrInDoubt) || g.runs() {
		t.Errorf("got %v, runs: %v", err, g.runs())
	}
	if err := o.Journal.MayStart("traveller"); !errors.Is(err, handover.ErrInDoubt) {
		t.Errorf("may it be started? %v", err)
	}
}

// TestControlDamage: a frame of which any byte has changed is no frame.
func TestControlDamage(t *testing.T) {
	var whole bytes.Buffer
	m := handover.Message{Verb: handover.Started, ID: handover.NewID(), Epoch: 1}
	if err := newControl(&bufferConn{w: &whole}, nil).send(frameHandover, m.Encode()); err != nil {
		t.Fatal(err)
	}
	for i := range whole.Len() {
		b := bytes.Clone(whole.Bytes())
		b[i] ^= 1 << (i % 8)
		if k, _, err := newControl(&bufferConn{r: bytes.NewReader(b)}, nil).receive(frameHandover, frameTimes); err == nil {
			t.Errorf("byte %d: taken as kind %d", i, k)
		}
	}
	if _, got, err := newControl(&bufferConn{r: bytes.NewReader(whole.Bytes())}, nil).receive(frameHandover); err != nil || !bytes.Equal(got, m.Encode()) {
		t.Errorf("%x, %v", got, err)
	}
	// What is only announced takes no memory.
	b := binary.LittleEndian.AppendUint32([]byte{byte(frameState)}, uint32(limits[frameState]))
	if _, _, err := newControl(&bufferConn{r: bytes.NewReader(b)}, nil).receive(frameState); err == nil {
		t.Error("a frame without a body was taken")
	}
}

// bufferConn is a connection from a reader and to a writer.
type bufferConn struct {
	net.Conn
	r *bytes.Reader
	w *bytes.Buffer
}

func (c *bufferConn) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *bufferConn) Write(p []byte) (int, error)      { return c.w.Write(p) }
func (c *bufferConn) SetWriteDeadline(time.Time) error { return nil }
func (c *bufferConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
