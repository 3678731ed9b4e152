package live

import (
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// TestSilence: a source that falls silent does not hold the destination for ever, be it
// before its memory, in the middle of that, or with the state and not all memory.
func TestSilence(t *testing.T) {
	for name, begins := range map[string]func(*testing.T, *control, *stream.Dialer){
		"after the offer": func(*testing.T, *control, *stream.Dialer) {},
		"in the memory": func(t *testing.T, _ *control, dialer *stream.Dialer) {
			conn, err := dialer.Data(t.Context(), stream.Data, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
		},
		"after the state": func(t *testing.T, c *control, _ *stream.Dialer) {
			if err := c.send(frameState, []byte("state")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newThere(t)
			d.Waits = DefaultWaits
			d.Waits.Silence = 50 * time.Millisecond
			c, dialer := stranger(t, d)
			begins(t, c, dialer)
			_, body, err := c.receive(frameHandover)
			if err != nil {
				t.Fatal(err)
			}
			m, err := handover.DecodeMessage(body)
			if err != nil || m.Verb != handover.Abort || !strings.Contains(m.Reason, "the source has sent nothing for 50ms") {
				t.Errorf("it says %+v, %v", m, err)
			}
			if s := <-d.ended; s != handover.DestinationAborted || d.in.runs() {
				t.Errorf("the destination is %v", s)
			}
		})
	}
}

// TestSilenceEnds: what is slow is not silent, and a guest that is complete waits for what
// the state machine waits for.
func TestSilenceEnds(t *testing.T) {
	var s silence
	s.begin(Waits{Silence: time.Millisecond})
	s.end()
	<-s.complete
	s.begin(Waits{})
	if s.limit != DefaultWaits.Silence {
		t.Errorf("by default it is %v", s.limit)
	}
}
