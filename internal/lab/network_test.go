package lab

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"time"
)

// station is a host's end of a network.
type station struct {
	t *testing.T
	f *os.File
	r *bufio.Reader
	a mac
}

func plugIn(t *testing.T, n *Network, number byte) *station {
	t.Helper()
	f, err := n.plug()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &station{t: t, f: f, r: bufio.NewReader(f), a: mac{0x52, 0, 0, 0, 0, number}}
}

func (s *station) send(to mac, text string) {
	s.t.Helper()
	frame := append(append(append([]byte{}, to[:]...), s.a[:]...), text...)
	frame = append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
	if _, err := s.f.Write(frame); err != nil {
		s.t.Fatal(err)
	}
}

// expect reads the next frame.
func (s *station) expect(from *station, text string) {
	s.t.Helper()
	frame, err := readEthernet(s.r)
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Equal(frame[10:16], from.a[:]) || string(frame[16:]) != text {
		s.t.Errorf("station %d got % x, want %q from %d", s.a[5], frame, text, from.a[5])
	}
}

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func TestSwitch(t *testing.T) {
	n := NewNetwork()
	a, b, c := plugIn(t, n, 1), plugIn(t, n, 2), plugIn(t, n, 3)
	a.send(broadcast, "all")
	b.expect(a, "all")
	c.expect(a, "all")
	// Learned: only a gets it, so that c's next frame is the one after.
	b.send(a.a, "to a")
	a.expect(b, "to a")
	b.send(broadcast, "again")
	a.expect(b, "again")
	c.expect(b, "again")
	// Unknown addresses go to all.
	c.send(mac{2, 2, 2, 2, 2, 2}, "unknown")
	a.expect(c, "unknown")
	b.expect(c, "unknown")
}

func TestSwitchForgetsWhoLeaves(t *testing.T) {
	n := NewNetwork()
	a, b := plugIn(t, n, 1), plugIn(t, n, 2)
	a.send(broadcast, "x")
	b.expect(a, "x")
	a.f.Close()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		n.mu.Lock()
		ports, stations := len(n.ports), len(n.stations)
		n.mu.Unlock()
		if ports == 1 && stations == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d ports and %d stations are left", ports, stations)
		}
	}
	c := plugIn(t, n, 3)
	b.send(a.a, "who is a?")
	c.expect(b, "who is a?")
}

// A host that does not take its frames must not hold up the others, and one
// that talks nonsense must lose its port.
func TestSwitchSurvivesBadHosts(t *testing.T) {
	n := NewNetwork()
	a, b, stuck, bad := plugIn(t, n, 1), plugIn(t, n, 2), plugIn(t, n, 3), plugIn(t, n, 4)
	stuck.send(broadcast, "hello")
	a.expect(stuck, "hello")
	b.expect(stuck, "hello")
	big := string(bytes.Repeat([]byte("x"), 1400))
	for range 2 * queueFrames {
		a.send(stuck.a, big)
	}
	a.send(b.a, "still here")
	b.expect(a, "still here")
	if _, err := bad.f.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if _, err := bad.r.ReadByte(); err != nil {
		t.Log(err) // a frame of before, or the end
	}
	b.send(a.a, "and back")
	a.expect(b, "and back")
}

func FuzzReadEthernet(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 7})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 1, 0xff})
	f.Fuzz(func(t *testing.T, line []byte) {
		frame, err := readEthernet(bytes.NewReader(line))
		if err == nil && !bytes.HasPrefix(line, frame) {
			t.Errorf("% x gives % x", line, frame)
		}
	})
}
