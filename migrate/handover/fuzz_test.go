package handover

import (
	"errors"
	"testing"
	"time"
)

// FuzzRecord reads any file as a record. One that is taken is written as it was read,
// and gives machines that any events leave in order.
func FuzzRecord(f *testing.F) {
	for s := range entries {
		for _, e := range entries[s][1:] {
			if e.State == 0 {
				continue
			}
			b, err := Record{Entry: e, ID: walkID, VM: "vm", Peer: "192.0.2.1:1", Time: time.Unix(1e9, 0).UTC()}.encode()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%v, want ErrDamaged", err)
			}
			return
		}
		again, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeRecord(again); err != nil || !back.Time.Equal(r.Time) || back.Entry != r.Entry || back.Key() != r.Key() {
			t.Fatalf("%+v was read back as %+v, %v", r, back, err)
		}
		_, _, errSource := RestoreSource(r)
		_, _, errDestination := RestoreDestination(r)
		if (errSource == nil) == (errDestination == nil) {
			t.Fatalf("%+v: source %v, destination %v", r, errSource, errDestination)
		}
	})
}

// FuzzMessage reads any bytes as a message.
func FuzzMessage(f *testing.F) {
	for v := Ready; v <= Ack; v++ {
		f.Add(Message{Verb: v, ID: walkID, Epoch: walkEpoch, Reason: "why"}.Encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b)
		if err != nil {
			return
		}
		if string(m.Encode()) != string(b) {
			t.Fatalf("%+v was read from %x", m, b)
		}
	})
}

// FuzzMachines lets any events happen, in any order, to both machines.
func FuzzMachines(f *testing.F) {
	f.Add([]byte{2, 0, 1, 0, 4, 0, 9, 0, 1, 3})
	f.Fuzz(func(t *testing.T, events []byte) {
		s, d := NewSource(walkID, walkEpoch), NewDestination(walkID, walkEpoch)
		for ; len(events) >= 2; events = events[2:] {
			e := Event{Kind: EventKind(events[0]), Timer: Timer(events[1]), Reason: "why"}
			e.Message = Message{Verb: Verb(events[1]), ID: walkID, Epoch: walkEpoch}
			var a, b []Action
			s, a = s.Step(e)
			d, b = d.Step(e)
			for _, a := range append(a, b...) {
				if err := a.Entry.check(); a.Kind == WriteJournal && err != nil {
					t.Fatal(err)
				}
				if _, err := DecodeMessage(a.Message.Encode()); a.Kind == Send && err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
