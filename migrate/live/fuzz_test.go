package live

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
)

// The fuzz targets are about what comes on the control connection of either side. The
// input is a row of frames, each a byte with the kind, two with the length, and the body,
// to which the test puts the checksum: a fuzzer would never find it. Whatever comes, the
// side ends in time, and the guest is where that side's journal says.

// fuzzID is the migration that the inputs speak of.
var fuzzID = handover.ID{1, 2, 3, 4}

// frames adds frames to an input.
func frames(kinds []kind, bodies ...[]byte) (in []byte) {
	for i, body := range bodies {
		in = append(in, byte(kinds[i]))
		in = binary.LittleEndian.AppendUint16(in, uint16(len(body)))
		in = append(in, body...)
	}
	return in
}

// play sends the frames of an input. A kind that there is not goes as it is.
func play(c *control, in []byte) {
	for len(in) >= 3 {
		k, n := kind(in[0]), min(int(binary.LittleEndian.Uint16(in[1:])), len(in)-3)
		body := in[3 : 3+n]
		in = in[3+n:]
		if k < frameOffer || int(k) >= len(limits) {
			if _, err := c.conn.Write(append([]byte{byte(k)}, body...)); err != nil {
				return
			}
			continue
		}
		if n > limits[k] {
			continue
		}
		if c.send(k, body) != nil {
			return
		}
	}
}

func says(v handover.Verb) []byte {
	return handover.Message{Verb: v, ID: fuzzID, Epoch: 1, Reason: "why"}.Encode()
}

func offer(t testing.TB, connections int) []byte {
	text, err := json.Marshal(Offer{Version: Version, ID: fuzzID, Epoch: 1, Name: "traveller", Connections: connections, Guest: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// fuzzWaits are short: an input never answers in time.
var fuzzWaits = Waits{Ready: 5 * time.Millisecond, Commit: 5 * time.Millisecond, Again: time.Millisecond, AgainMost: 2 * time.Millisecond}

// FuzzDestination sends frames to a destination that knows nothing of them yet.
func FuzzDestination(f *testing.F) {
	f.Add(frames([]kind{frameOffer, frameState, frameHandover}, offer(f, 1), []byte("state"), says(handover.Commit)))
	f.Add(frames([]kind{frameOffer, frameHandover}, offer(f, 1), says(handover.Abort)))
	f.Add(frames([]kind{frameOffer, frameState, frameState}, offer(f, 32), nil, nil))
	f.Add(frames([]kind{frameOffer}, offer(f, 33)))
	f.Add(frames([]kind{frameOffer, frameTimes}, offer(f, 1), []byte("{}")))
	f.Add(frames([]kind{frameHandover, frameHandover}, says(handover.Commit), says(handover.Ack)))
	f.Add(frames([]kind{frameState}, []byte("state")))
	f.Fuzz(func(t *testing.T, in []byte) {
		incoming := newFakeIncoming(t)
		s := &Server{Journal: newJournal(t), Host: "there", Waits: fuzzWaits, New: func(Offer) (Incoming, error) { return incoming, nil }}
		here, there := net.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			d := &destination{server: s}
			d.changed.L = &d.mu
			d.acceptor.ID = [16]byte(fuzzID)
			s.begin(ctx, d, fuzzID, there, func() {})
		}()
		go func() { // what is answered is read
			for b := make([]byte, 4096); ; {
				if _, err := here.Read(b); err != nil {
					return
				}
			}
		}()
		play(newControl(here, nil), in)
		_ = here.Close()
		<-done
		if ctx.Err() != nil {
			t.Error("it never ended")
		}
		// Its memory never came.
		if incoming.runs() || incoming.loads > 0 {
			t.Errorf("it runs: %v, it was loaded %d times", incoming.runs(), incoming.loads)
		}
		if epoch, err := s.Journal.Epoch("traveller"); epoch != 1 || err != nil {
			t.Errorf("epoch %d, %v", epoch, err)
		}
	})
}

// FuzzSource sends frames to a source that has made an offer, which was taken, and after
// that REFUSED to whatever it asks.
func FuzzSource(f *testing.F) {
	f.Add(frames([]kind{frameHandover, frameHandover}, says(handover.Ready), says(handover.Started)))
	f.Add(frames([]kind{frameHandover, frameHandover}, says(handover.Refused), says(handover.Ready)))
	f.Add(frames([]kind{frameHandover}, says(handover.Abort)))
	f.Add(frames([]kind{frameTimes, frameHandover}, []byte(`{"load_ns":-1}`), says(handover.Ready)))
	f.Add(frames([]kind{frameOffer}, offer(f, 1)))
	f.Add([]byte{0xff, 1, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		addr := badDestination(t, func(n int, c *control, _ handover.ID) {
			defer c.conn.Close()
			if n == 0 && takesOffer(c) {
				// When the state has come all can be said.
				if _, _, err := c.receive(frameState, frameHandover); err == nil {
					play(c, in)
				}
				return
			}
			for {
				if _, _, err := c.receive(frameHandover); err != nil || c.send(frameHandover, says(handover.Refused)) != nil {
					return
				}
			}
		})
		g := newFakeGuest(t)
		o := options(t, addr)
		o.Offer.ID, o.Waits = fuzzID, fuzzWaits
		o.Waits.Ready = time.Second // for the state to get there; the connection's end comes before
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := Migrate(ctx, ctx, g, o)
		if ctx.Err() != nil {
			t.Fatalf("it never ended: %v", err)
		}
		mayStart := o.Journal.MayStart("traveller")
		switch {
		case err == nil && (!g.destroyed || g.runs() || !errors.Is(mayStart, handover.ErrHandedOver)):
			t.Errorf("moved; destroyed: %v, the journal: %v", g.destroyed, mayStart)
		case err != nil && (!g.runs() || mayStart != nil):
			t.Errorf("not moved: %v; runs: %v, the journal: %v", err, g.runs(), mayStart)
		}
	})
}
